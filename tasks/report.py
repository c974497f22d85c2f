"""Write the report (one HTML page with results, training and data) and the model card.

    python -m tasks.report

Reads the outputs of the other steps and draws the plots; it computes no metrics. Beside the page it leaves run.css,
from which the page takes the id, commit and date of the run: no output of the step, because it depends on the clock.
"""

import logging
import os
from pathlib import Path

from ral.config.base import load
from ral.config.params import ReportParams
from ral.log import LOG_FORMAT
from tasks import step

logger = logging.getLogger("tasks.report")

# Limit in bytes, for mail and browsers.
MAX_BYTES = 15_000_000

# Set by `dvc exp run`, where this is the last stage; `make run` and the flows print the results themselves.
EXPERIMENT = "DVC_EXP_BASELINE_REV"


def run(
    params: ReportParams, validated: Path, prepared: Path, models: Path, reports: Path, out_file: Path
) -> None:
    """Render the report into `out_file`, and model_card.md into the same folder.

    Raises:
        UserError: the report is larger than 15 MB.
    """
    import pandas as pd

    from ral.data.dataset_info import DatasetInfo, read_class_counts
    from ral.data.validation.result import ValidationResult
    from ral.errors import UserError
    from ral.evaluation.calibration_io import SavedCalibration
    from ral.evaluation.results import Metrics
    from ral.explain.contents import Gallery, Geometry
    from ral.files import atomic_write, read_json
    from ral.labels import marked
    from ral.reporting.card import card
    from ral.reporting.report import Inputs, installed_versions, render
    from ral.reporting.summary import summary

    def table(path: Path) -> pd.DataFrame:
        # Only empty cells are missing values; a finding may be named NA.
        names = (
            "finding", "taken_for", "attribute", "group", "metric", "flagged", "note", "not_estimable", "name", "level"
        )  # fmt: skip
        return pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=[""])

    inputs = Inputs(
        params=params,
        validation=ValidationResult.read(validated / "validation.json"),
        dataset=DatasetInfo.read(prepared / "dataset.json"),
        class_counts=read_class_counts(prepared / "class_counts.json"),
        model=read_json(models / "model.json"),
        history=table(models / "history.csv"),
        metrics=Metrics.read(reports / "metrics.json"),
        findings=table(reports / "findings.csv"),
        curves=table(reports / "curves.csv"),
        calibration=SavedCalibration.read(reports / "calibration.json"),
        reliability=table(reports / "reliability.csv"),
        operating=table(reports / "operating.csv"),
        decision_curves=table(reports / "decision_curves.csv"),
        characteristics=table(reports / "characteristics.csv"),
        audit=table(reports / "audit.csv"),
        second_reading=table(reports / "second_reading.csv"),
        comparison=table(reports / "comparison.csv"),
        gallery=Gallery.read(reports / "gallery" / "gallery.json"),
        pictures={path.name: path.read_bytes() for path in sorted((reports / "gallery").glob("*.jpg"))},
        geometry=Geometry.read(reports / "geometry.json"),
        confusion=table(reports / "confusion.csv"),
        versions=installed_versions(),
    )
    page = render(inputs).encode()
    if len(page) >= MAX_BYTES:
        raise UserError(
            f"{out_file} would have {len(page):,} bytes; the limit is {MAX_BYTES:,}. "
            "Show fewer images (explain.per_kind) or none (report.show_images: false)."
        )
    with atomic_write(out_file) as draft:
        draft.write_bytes(page)
    with atomic_write(out_file.with_name("model_card.md")) as draft:
        draft.write_text(card(inputs), encoding="utf-8", newline="\n")
    if EXPERIMENT in os.environ and os.environ.get(LOG_FORMAT) != "json":
        print(summary(inputs.metrics, out_file), flush=True)
    else:
        logger.info(marked(f"report: {out_file}", inputs.phantom))


def run_and_note(
    params: ReportParams, validated: Path, prepared: Path, models: Path, reports: Path, out_file: Path
) -> None:
    """Render the report, and note beside it which run made it."""
    from ral.files import read_json
    from ral.reporting.run_info import write_run_info
    from ral.runs import folder

    run(params, validated, prepared, models, reports, out_file)
    write_run_info(out_file, read_json(folder() / "run.json"))


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "validated": ("data/validated", "output folder of the step validate"),
            "prepared": ("data/prepared", "output folder of the step preprocess"),
            "models": ("models", "output folder of the step train"),
            "reports": ("reports", "output folder of the step evaluate; the report is written there too"),
        },
    )
    step.main(
        "report",
        lambda: run_and_note(
            load(options.params, ReportParams),
            options.validated,
            options.prepared,
            options.models,
            options.reports,
            options.reports / "report.html",
        ),
    )
