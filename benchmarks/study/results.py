"""Writes docs/RESULTS.md, its plots and docs/results/differences.csv from the runs of the study.

    python -m benchmarks.study.results                     # docs/results/runs.csv and runs/study
    python -m benchmarks.study.results --out /tmp/page     # reads and writes /tmp/page/results/

Reads <out>/results/runs.csv, <state>/data.npz and <state>/logits/. The same inputs give the same bytes.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--state", type=Path, default=Path("runs/study"), help="folder of data.npz and logits"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of RESULTS.md and results/")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="tiers, bootstrap, calibration"
    )
    options = parser.parse_args()


from threadpoolctl import threadpool_limits

from benchmarks.study import comparisons, plots, tables
from benchmarks.study.arms import Study, assemble
from benchmarks.study.comparisons import HEADLINE, Comparisons
from benchmarks.study.groups import BASELINES, GROUPS, label, members
from benchmarks.study.inputs import read_data, read_runs, read_scales
from benchmarks.study.page import FINDINGS_PLOT, PLOTTED, THIN_PLOT, page, plot_of
from benchmarks.study.statistics import Bootstrap
from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.errors import exit_with_message
from ral.evaluation.results import Interval
from ral.files import atomic_write


def write(state: Path, out: Path, config: EvaluateConfig) -> None:
    """Write the page, the plots and differences.csv.

    Args:
        state: folder of data.npz and logits/.
        out: folder of RESULTS.md and of results/, which has runs.csv.
        config: tiers, bootstrap, calibration and threshold.

    Raises:
        UserError: see `inputs` and `arms.assemble`.
    """
    runs = read_runs(out / "results" / "runs.csv")
    scales = read_scales(out / "results" / "scales.csv")
    data = read_data(state / "data.npz", config)
    with threadpool_limits(1):
        study = assemble(runs, state, Bootstrap(data, config, config.replicates), scales)
        differences = comparisons.compare(study)
        text = page(study, differences, out / "results")
    draw(study, differences, out / "results")
    comparisons.write(differences, out / "results" / "differences.csv")
    with atomic_write(out / "RESULTS.md") as draft:
        draft.write_text(text, encoding="utf-8")


def draw(study: Study, differences: Comparisons, folder: Path) -> None:
    """Draw the plots of the stages that ran."""
    for group in GROUPS:
        names = members(group, study.main)
        for metric, level, title in PLOTTED:
            if not tables.has_intervals(differences, group.name, names, metric, level):
                continue
            panels = {
                f"− {label(baseline)}": {
                    _row(study, name): _interval(differences, group.name, name, baseline, metric, level)
                    for name in names
                }
                for baseline in BASELINES
            }
            plots.forest(
                folder / plot_of(group.name, metric, level), group.title, panels, f"difference of {title}"
            )
    _draw_findings(study, differences, folder / FINDINGS_PLOT)
    names = list(dict.fromkeys(name for arms in study.thin.values() for name in arms))
    if names:
        levels = {
            f"{level} AP": {
                label(name): {
                    ratio: tables.interval(study.bootstrap, arms[name], "ap", level, arms[name].folds)
                    for ratio, arms in study.thin.items()
                    if name in arms
                }
                for name in names
            }
            for level in ("macro", "tail")
        }
        plots.curves(folder / THIN_PLOT, levels, "AP")


def _draw_findings(study: Study, differences: Comparisons, path: Path) -> None:
    """AP of each finding for the statements of the page; nothing before an arm has run on every fold."""
    data = study.bootstrap.data
    panels = {
        f"{label(arm.name)}\n− {label(baseline.name)}": {
            name: _interval(differences, HEADLINE, arm.name, baseline.name, "ap", name)
            for name in sorted(data.findings, key=lambda finding: -data.positives[finding])
        }
        for _, arm, baseline in differences.pairs()
    }
    if panels:
        plots.forest(path, "Findings, the most frequent first", panels, "difference of AP")


def _row(study: Study, name: str) -> str:
    """Name of an arm in a plot, with its folds if some are missing."""
    folds = study.main[name].folds
    complete = folds == study.bootstrap.data.folds
    return label(name) if complete else f"{label(name)} (fold {', '.join(map(str, folds))})"


def _interval(
    differences: Comparisons, table: str, arm: str, baseline: str, metric: str, level: str
) -> Interval | None:
    one = differences.find(table, arm, baseline, metric, level)
    return Interval(one.value, one.low, one.high) if one else None


def main(options: argparse.Namespace) -> None:
    """Run the command."""
    with exit_with_message():
        write(options.state, options.out, load(options.params, EvaluateParams).evaluate)
    print(f"{options.out / 'RESULTS.md'} is written")


if __name__ == "__main__":
    main(options)
