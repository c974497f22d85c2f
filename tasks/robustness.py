"""Robustness audit: score changed test images, and compare with the unchanged ones.

    python -m tasks.robustness

Writes robustness/robustness.json (all results, for report, card and gate), and for other programs robustness/shifts.csv
(a row per shift, metric, and finding, tier or mean) and robustness/flip.csv (a row per finding, tier or mean). Does
nothing but write an empty robustness.json unless robustness.enabled is true.
Uses a GPU if available. docs/robustness.md has the shifts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.environment import Environment, load_environment
from ral.config.robustness import RobustnessParams
from tasks import step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ral.records import Record
    from ral.robustness.subject import Subject


def run(
    params: RobustnessParams,
    environment: Environment,
    validated: Path,
    prepared: Path,
    models: Path,
    reports: Path,
    out: Path,
) -> None:
    """Audit the network in `models` on the test images in `prepared` and write the results to the folder `out`.

    Raises:
        UserError: network, data and calibration do not belong together; see also `ral.robustness.padding`.
    """
    from ral.data.dataset_info import DatasetInfo
    from ral.files import atomic_directory
    from ral.robustness.contents import Robustness
    from ral.wording import RESEARCH_NOTE

    phantom = DatasetInfo.read(prepared / artifacts.DATASET.name).phantom
    result = Robustness(notice=RESEARCH_NOTE, data="phantom" if phantom else "images")
    with atomic_directory(out) as draft:
        if params.robustness.enabled:
            subject = read_subject(params, prepared, models, reports)
            result = result.model_copy(update=audit(params, environment, subject, validated, draft))
        result.write(draft / artifacts.AUDITED.name)
        for name, part in {"shifts.csv": result.shifts, "flip.csv": result.flip}.items():
            if part is not None:
                write_rows(draft / name, part.rows, result.data)


def write_rows(path: Path, rows: "Sequence[Record]", data: str) -> None:
    """Write rows as CSV, for other programs."""
    import pandas as pd

    table = pd.DataFrame([row.model_dump() for row in rows]).assign(data=data)
    table.to_csv(path, index=False, lineterminator="\n")


def read_subject(params: RobustnessParams, prepared: Path, models: Path, reports: Path) -> "Subject":
    """The network, the test images and the calibration."""
    import torch

    from ral.data.dataset import open_dataset
    from ral.evaluation import calibration_io
    from ral.evaluation.rows import read_studies
    from ral.models.load import load_network
    from ral.robustness.subject import prepare

    torch.set_num_threads(params.robustness.threads)
    network, info = load_network(models)
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    calibration = calibration_io.read(reports / artifacts.CALIBRATION.name)
    return prepare(
        network, info, open_dataset(prepared), read_studies(prepared), calibration, params.evaluate
    )


def audit(
    params: RobustnessParams, environment: Environment, subject: "Subject", validated: Path, folder: Path
) -> dict[str, object]:
    """The requested parts of the audit, as fields of `Robustness`; `folder` is for temporary files."""
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from ral.robustness.flip import audit_flip
    from ral.robustness.padding import padded
    from ral.robustness.pixels import requested
    from ral.robustness.shifts import audit_shifts

    config = params.robustness
    others = []
    if config.shifts.pad:
        columns = ["image_id", "path", "member", "offset", "hash"]
        images = pd.read_parquet(validated / artifacts.IMAGES.name, columns=columns)
        others = [padded(subject, params.data, params.preprocess, images, folder, environment)]
    # The last digits of some linear algebra depend on the number of threads.
    with threadpool_limits(1, user_api="blas"):
        shifts, logits = audit_shifts(subject, requested(config.shifts), config.seed, others)
        parts: dict[str, object] = {"audited": subject.summary(), "shifts": shifts}
        if "flip" in logits:
            parts["flip"] = audit_flip(subject, logits[""], logits["flip"])
    return parts


if __name__ == "__main__":
    step.command(
        "robustness", __doc__, run, RobustnessParams,
        {
            "validated": (artifacts.VALIDATED, "output folder of the step validate"),
            "prepared": (artifacts.PREPARED, "output folder of the step preprocess"),
            "models": (artifacts.MODELS, "output folder of the step train"),
            "reports": (artifacts.REPORTS, "output folder of the step evaluate"),
            "out": (artifacts.ROBUSTNESS, "folder to write"),
        },
        load_environment,
    )  # fmt: skip
