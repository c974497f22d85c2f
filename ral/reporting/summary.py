"""Print the results of a run as a short table, as `make run`, `dvc exp run` and `flows.train_ral` do at their end.

    python -m ral.reporting.summary [reports/metrics.json] [reports/report.html]

The report is not read, only its path is printed.
"""

import argparse
from pathlib import Path

from ral import artifacts
from ral.errors import UserError, exit_with_message
from ral.evaluation.results import Metrics
from ral.evaluation.specs import LABELS, RANKED_BY
from ral.wording import notice, sealed


def summary(metrics: Metrics, report: Path) -> str:
    """The text to print: notice, means over all findings and per tier, path of the report.

    Args:
        metrics: content of metrics.json.
        report: path of the report, printed in the last line.
    """
    means = {"macro": metrics.macro, **metrics.tiers}
    rows = [("", "findings", *(LABELS[metric] for metric in RANKED_BY))] + [
        (name, str(mean.findings), *(mean[metric].text() for metric in RANKED_BY))
        for name, mean in means.items()
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = [
        f"{name:<{widths[0]}}  {count:>{widths[1]}}  {ap:<{widths[2]}}  {auroc}".rstrip()
        for name, count, ap, auroc in rows
    ]
    test = metrics.test
    return "\n".join(
        [
            notice(metrics.phantom),
            *table,
            f"{test.rows:,} test images of {test.patients:,} patients; {metrics.percent} "
            f"intervals from {metrics.replicates:,} bootstrap resamples of the patients",
            *filter(None, [sealed(test.sealed_patients)]),
            f"report: {report}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metrics", type=Path, nargs="?", default=Path(artifacts.METRICS))
    parser.add_argument("report", type=Path, nargs="?", default=Path(artifacts.REPORT))
    options = parser.parse_args()
    with exit_with_message():
        if not options.metrics.exists():
            raise UserError(f"{options.metrics} does not exist. Run the pipeline first: make run")
        metrics = Metrics.read(options.metrics)
    print(summary(metrics, options.report))


if __name__ == "__main__":
    main()
