"""Two or more models on the same images: paired differences with intervals and p values.

    python -m ral.evaluation.compare models/baseline models/ral
    python -m ral.evaluation.compare a.parquet b.parquet c.parquet --split val --out comparison.csv

Each argument is a table of logits (image_id and a column per finding) or a folder that holds
`logits/test.parquet` or `test.parquet`. The first is the baseline. Select models with `--split val`; the test images
are for the final report. Tiers, replicates, interval and seed are those of the section `evaluate` in params.yaml.
"""

import argparse
from pathlib import Path

from ral import artifacts

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="logits; the first is the baseline")
    parser.add_argument("--studies", type=Path, default=Path(artifacts.STUDIES), help="labels and split")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    options = parser.parse_args()

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.data.splits.holdout import unsealed
from ral.errors import UserError, exit_with_message
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, draw, holm
from ral.evaluation.resampled_metrics import Scored, ranking, too_few
from ral.evaluation.rows import ATTRIBUTES, KEYS, Split, align, findings_of, floats
from ral.evaluation.score import data_of, means_to_take, tier_of
from ral.evaluation.specs import LABELS, RANKED_BY
from ral.evaluation.table_rows import ComparisonRow, read_rows, to_frame
from ral.evaluation.tables import rounded
from ral.files import atomic_write
from ral.labels import Tier, is_spreadsheet_safe
from ral.wording import notice, p_value

TEXT = ("metric", "level", "name", "model", "baseline", "note", "data")
# Columns of `ComparisonRow` that are filled here; images and patients are for whoever knows which images are scored.
COLUMNS = tuple(column.name for column in fields(ComparisonRow) if column.name not in ("images", "patients"))


def compare(
    studies: pd.DataFrame, models: Mapping[str, pd.DataFrame], split: Split, config: EvaluateConfig
) -> pd.DataFrame:
    """Differences in AP and AUROC to the first model, per finding, tier and macro.

    All models are evaluated on the same resamples of the patients, so shared variation cancels. The p value
    is that of a t test with the spread of the resampled differences; p_holm is Holm-corrected over the rows
    of the same metric and level (finding, tier, macro), for all models together.

    Args:
        studies: as for `score.evaluate`.
        models: name -> logits of all images of the split; at least two models.
        split: the split to compare on.
        config: tiers, minimum positives and bootstrap.

    Returns:
        A table with the columns `COLUMNS`; a finding or tier that is not estimable has a note and no numbers.

    Raises:
        UserError: fewer than two models, or see `rows.align`.
    """
    if len(models) < 2:
        raise UserError("A comparison needs at least two models.")
    names = findings_of(studies)
    aligned = {model: align(studies, logits, split, model) for model, logits in models.items()}
    rows = next(iter(aligned.values()))[0]
    resamples = draw(
        rows["patient_id"].to_numpy(dtype=str), config.replicates, config.seed, config.confidence, config.interval
    )  # fmt: skip
    scored = {
        model: {name: Scored(floats(rows[name]), scores[name].to_numpy(), None, {}) for name in names}
        for model, (_, scores) in aligned.items()
    }
    reasons = {
        name: too_few(finding, resamples.patient, config.min_positives, split)
        for name, finding in next(iter(scored.values())).items()
    }
    values = {
        model: {
            name: ranking(finding, resamples, RANKED_BY)
            for name, finding in findings.items()
            if not reasons[name]
        }
        for model, findings in scored.items()
    }
    train = studies[studies["split"] == "train"]
    tiers = {name: tier_of(name, train[name], config)[0] for name in names}
    table = to_frame(_rows(values, reasons, tiers, resamples))[list(COLUMNS)]
    for _, family in table.groupby(["metric", "level"]):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy(dtype=np.float64))
    return rounded(table.assign(data=data_of(studies)), text=TEXT)


def _rows(
    values: Mapping[str, Mapping[str, Mapping[str, BootstrapDistribution]]],
    reasons: Mapping[str, str | None],
    tiers: Mapping[str, Tier],
    resamples: Resamples,
) -> list[ComparisonRow]:
    """The rows of every model but the first.

    Args:
        values: model -> estimable finding -> metric -> its distribution; the first model is the baseline.
        reasons: finding -> why it is not estimable; None if it is.
        tiers: finding -> tier.
        resamples: of the images of the distributions.
    """
    baseline, *others = values
    rows = []
    for metric, model in itertools.product(RANKED_BY, others):
        for level, name, members in means_to_take(tiers):
            estimable = [member for member in members if not reasons[member]]
            row = ComparisonRow(metric, level, name, model, baseline, len(estimable))
            if not estimable:
                reason = reasons[name] if level == "finding" else "no estimable finding"
                rows.append(replace(row, note=f"not estimable: {reason}"))
                continue
            value, baseline_value = (
                _mean([values[side][member][metric] for member in estimable], resamples)
                for side in (model, baseline)
            )
            found = resamples.paired(value, baseline_value)
            rows.append(
                replace(
                    row, value=found.first, baseline_value=found.second, difference=found.difference, low=found.low,
                    high=found.high, p=found.p,
                )
            )  # fmt: skip
    return rows


def _mean(parts: list[BootstrapDistribution], resamples: Resamples) -> BootstrapDistribution:
    return parts[0] if len(parts) == 1 else resamples.mean(parts)


def read_logits(path: Path, split: Split) -> pd.DataFrame:
    """Read the logits of a command-line argument.

    Raises:
        UserError: there is no such file, it is not a Parquet table, or a column name is unsafe in a spreadsheet.
    """
    candidates = (
        [path / "logits" / f"{split}.parquet", path / f"{split}.parquet"] if path.is_dir() else [path]
    )
    for file in candidates:
        if file.is_file():
            try:
                table = pd.read_parquet(file)
            except (OSError, ValueError) as error:
                raise UserError(f"{file} is not a Parquet table: {error}") from None
            check_names(str(file), table)
            return table
    raise UserError(
        f"{path}: no logits found. Give a Parquet table, or a folder with logits/{split}.parquet or {split}.parquet."
    )


def check_names(where: str, logits: pd.DataFrame) -> None:
    """Check the findings of a file by the rules for names in params.yaml, because they are written to CSV
    files unescaped.

    Raises:
        UserError: a name is unsafe in a spreadsheet; `where` names the logits in the message.
    """
    unsafe = [str(name) for name in logits.columns if not is_spreadsheet_safe(str(name))]
    if unsafe:
        raise UserError(
            f"{where}: the column {unsafe[0]!a} would be a formula or several cells in a spreadsheet. Rename "
            "the finding and recompute the logits."
        )


def read_table(path: Path, findings: list[str]) -> pd.DataFrame:
    """Read the columns of studies.parquet that `compare` needs.

    Raises:
        UserError: the file is missing, or has no column for a finding of the logits.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run the step preprocess, or pass --studies.")
    table = pd.read_parquet(path)
    missing = [name for name in (*KEYS, *findings) if name not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}, required by the logits or the split.")
    return table[[*KEYS, *(name for name in ATTRIBUTES if name in table.columns), *findings]]


def text(table: pd.DataFrame, confidence: float, rows: int, patients: int, split: str) -> str:
    """The comparison as text for a terminal."""
    lines = [
        notice("phantom" in set(table["data"])),
        f"{rows:,} {split} images of {patients:,} patients; {100 * confidence:g} % intervals; p after "
        "Holm's correction",
    ]
    for (metric, model), part in table.groupby(["metric", "model"], sort=False):
        lines += ["", f"{LABELS[str(metric)]}: {model} − {part['baseline'].iloc[0]}"]
        width = part["name"].str.len().max()
        for row in read_rows(part, ComparisonRow):
            content = row.note or (
                f"{row.baseline_value:.3f} → {row.value:.3f}  {row.difference_text}  p {p_value(row.p_holm)}"
            )
            lines.append(f"  {row.name:<{width}}  {content}")
    return "\n".join(lines)


def main(options: argparse.Namespace) -> None:
    """Run the command."""
    with exit_with_message():
        if len({str(path) for path in options.models}) < len(options.models):
            raise UserError("A model is given twice. Give each model once.")
        models = {str(path): read_logits(path, options.split) for path in options.models}
        show(models, options.studies, options.split, options.params, options.out)


def show(
    models: Mapping[str, pd.DataFrame], studies_file: Path, split: Split, params: Path, out: Path | None
) -> None:
    """Compare, print, and write the table to `out` if given. Sealed test patients are excluded.

    Raises:
        UserError: see `compare`, `read_table` and `ral.config.base.load`.
    """
    config = load(params, EvaluateParams).evaluate
    first = next(iter(models.values()))
    studies = read_table(studies_file, [str(name) for name in first.columns if name != "image_id"])
    studies, *unsealed_logits = unsealed(studies, config.sealed, *models.values())
    models = dict(zip(models, unsealed_logits, strict=True))
    with threadpool_limits(1):
        table = compare(studies, models, split, config)
    split_studies = studies[studies["split"] == split]
    print(text(table, config.confidence, len(split_studies), split_studies["patient_id"].nunique(), split))
    if out:
        with atomic_write(out) as draft:
            table.to_csv(draft, index=False, lineterminator="\n")


if __name__ == "__main__":
    main(options)
