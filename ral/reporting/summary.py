"""Print the results of a run as a short table, as `make run`, `dvc exp run` and `flows.train_ral` do at their end.

    python -m ral.reporting.summary [reports/metrics.json] [reports/report.html]

The report is not read, only its path is printed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ral import artifacts
from ral.files import read_json
from ral.wording import PHANTOM_SHORT, RESEARCH, estimate, sealed


def summary(metrics: dict[str, Any], report: Path) -> str:
    """The text to print: notice, means over all findings and per tier, path of the report.

    Args:
        metrics: content of metrics.json.
        report: path of the report, printed in the last line.
    """
    means = {"macro": metrics["macro"], **metrics["tiers"]}
    rows = [("", "findings", "AP", "AUROC")] + [
        (name, str(mean["findings"]), estimate(mean["ap"]), estimate(mean["auroc"]))
        for name, mean in means.items()
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = [
        f"{name:<{widths[0]}}  {count:>{widths[1]}}  {ap:<{widths[2]}}  {auroc}".rstrip()
        for name, count, ap, auroc in rows
    ]
    test = metrics["test"]
    return "\n".join(
        [
            PHANTOM_SHORT if metrics["data"] == "phantom" else RESEARCH,
            *table,
            f"{test['rows']:,} test images of {test['patients']:,} patients; {100 * metrics['confidence']:g} % "
            f"intervals from {metrics['replicates']:,} bootstrap resamples of the patients",
            *filter(None, [sealed(test)]),
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
    try:
        metrics = read_json(options.metrics)
    except FileNotFoundError:
        sys.exit(f"error: {options.metrics} does not exist. Run the pipeline first: make run")
    print(summary(metrics, options.report))


if __name__ == "__main__":
    main()
