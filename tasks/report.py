"""Write the report (one HTML page with results, training and data) and the model card.

    python -m tasks.report

Reads the outputs of the other steps and draws the plots; it computes no metrics. Beside the page it leaves run.css,
from which the page takes the id, commit and date of the run: no output of the step, because it depends on the clock.
"""

import logging
import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.params import ReportParams
from ral.log import LOG_FORMAT
from tasks import step

if TYPE_CHECKING:
    from ral.reporting.report import Inputs

logger = logging.getLogger("tasks.report")

# Limit in bytes, for mail and browsers.
MAX_BYTES = 15_000_000

# Set by `dvc exp run`, where this is the last stage; `make run` and the flows print the results themselves.
EXPERIMENT = "DVC_EXP_BASELINE_REV"


def read_inputs(
    params: ReportParams, validated: Path, prepared: Path, models: Path, reports: Path
) -> "Inputs":
    """Read the outputs of the other steps that the report and the model card show."""
    import pandas as pd

    from ral.data.dataset_info import DatasetInfo, read_class_counts
    from ral.data.validation.result import ValidationResult
    from ral.evaluation import calibration_io
    from ral.evaluation.results import Metrics
    from ral.explain.contents import Gallery, Geometry
    from ral.models.info import read_model_info
    from ral.reporting.report import Inputs, installed_versions
    from ral.robustness.contents import Robustness

    def table(path: PurePath, folder: Path = reports) -> pd.DataFrame:
        # Only empty cells are missing values; a finding may be named NA.
        names = (
            "finding", "taken_for", "attribute", "group", "metric", "flagged", "note", "not_estimable", "name", "level"
        )  # fmt: skip
        return pd.read_csv(
            folder / path.name, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=[""]
        )

    gallery = reports / artifacts.GALLERY.name
    localisation = gallery / artifacts.LOCALISATION.name
    return Inputs(
        params=params,
        validation=ValidationResult.read(validated / artifacts.VALIDATION.name),
        dataset=DatasetInfo.read(prepared / artifacts.DATASET.name),
        class_counts=read_class_counts(prepared / artifacts.CLASS_COUNTS.name),
        model=read_model_info(models),
        history=table(artifacts.HISTORY, models),
        metrics=Metrics.read(reports / artifacts.METRICS.name),
        findings=table(artifacts.FINDINGS),
        curves=table(artifacts.CURVES),
        calibration=calibration_io.read(reports / artifacts.CALIBRATION.name),
        reliability=table(artifacts.RELIABILITY),
        operating=table(artifacts.OPERATING),
        decision_curves=table(artifacts.DECISION_CURVES),
        characteristics=table(artifacts.CHARACTERISTICS),
        audit=table(artifacts.AUDIT),
        second_reading=table(artifacts.SECOND_READING),
        comparison=table(artifacts.COMPARISON),
        gallery=Gallery.read(gallery / "gallery.json"),
        pictures={path.name: path.read_bytes() for path in sorted(gallery.glob("*.jpg"))},
        geometry=Geometry.read(reports / artifacts.GEOMETRY.name),
        confusion=table(artifacts.CONFUSION),
        robustness=Robustness.read(reports / artifacts.ROBUSTNESS.name / artifacts.AUDITED.name),
        versions=installed_versions(),
        localisation=table(artifacts.LOCALISATION, gallery) if localisation.exists() else None,
    )


def run(
    params: ReportParams, validated: Path, prepared: Path, models: Path, reports: Path, out_file: Path
) -> None:
    """Render the report into `out_file`, and model_card.md into the same folder.

    Raises:
        UserError: the report is larger than 15 MB.
    """
    from ral.errors import UserError
    from ral.files import atomic_write
    from ral.labels import marked
    from ral.reporting.card import card
    from ral.reporting.report import render
    from ral.reporting.summary import summary

    inputs = read_inputs(params, validated, prepared, models, reports)
    page = render(inputs).encode()
    if len(page) >= MAX_BYTES:
        raise UserError(
            f"{out_file} would have {len(page):,} bytes; the limit is {MAX_BYTES:,}. "
            "Show fewer images (explain.per_kind) or none (report.show_images: false)."
        )
    with atomic_write(out_file) as draft:
        draft.write_bytes(page)
    with atomic_write(out_file.with_name(artifacts.MODEL_CARD.name)) as draft:
        draft.write_text(card(inputs), encoding="utf-8", newline="\n")
    if EXPERIMENT in os.environ and os.environ.get(LOG_FORMAT) != "json":
        print(summary(inputs.metrics, out_file), flush=True)
    else:
        logger.info(marked(f"report: {out_file}", inputs.phantom))


def run_and_note(params: ReportParams, validated: Path, prepared: Path, models: Path, reports: Path) -> None:
    """Render the report into `reports`, and note beside it which run made it."""
    from ral.reporting.run_info import write_run_info
    from ral.runs import RUN_FILE, RunRecord, folder

    out_file = reports / artifacts.REPORT.name
    run(params, validated, prepared, models, reports, out_file)
    write_run_info(out_file, RunRecord.read(folder() / RUN_FILE))


if __name__ == "__main__":
    step.command(
        "report", __doc__, run_and_note, ReportParams,
        {
            "validated": (artifacts.VALIDATED, "output folder of the step validate"),
            "prepared": (artifacts.PREPARED, "output folder of the step preprocess"),
            "models": (artifacts.MODELS, "output folder of the step train"),
            "reports": (artifacts.REPORTS, "output folder of the step evaluate; the report is written there too"),
        },
    )  # fmt: skip
