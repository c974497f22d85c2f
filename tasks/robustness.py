"""Robustness audit: score changed and attacked test images, compare with the unchanged ones, and probe for shortcuts.

    python -m tasks.robustness

Writes robustness/robustness.json (all results, for report, card and gate) and, of what is requested, tables for other
programs: shifts.csv and attacks.csv (a row per shift or attack, metric, and finding, tier or mean), flip.csv (a
row per finding, tier or mean), probes.csv, within.csv and strata.csv (shortcut probes). Does nothing but write an empty
robustness.json unless robustness.enabled is true.
Uses a GPU if available. docs/robustness.md has the shifts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.environment import Environment, load_environment
from ral.config.robustness import RobustnessParams
from tasks import step

if TYPE_CHECKING:
    from ral.records import Record
    from ral.robustness.contents import Robustness
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
        for name, rows in tables(result).items():
            if rows:
                write_rows(draft / f"{name}.csv", rows, result.data)


def tables(result: "Robustness") -> dict[str, "Sequence[Record]"]:
    """The rows of each part of the audit, by the name of the file."""
    rows: dict[str, Sequence[Record]] = {}
    if result.shifts is not None:
        rows["shifts"] = result.shifts.rows
    if result.flip is not None:
        rows["flip"] = result.flip.rows
    if result.attacks is not None:
        rows["attacks"] = result.attacks.rows
    if result.probes is not None:
        rows |= {
            "probes": result.probes.probes,
            "within": result.probes.within,
            "strata": result.probes.strata,
        }
    return rows


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
    from ral.memory import keep_freed_memory
    from ral.models.load import load_network
    from ral.robustness.subject import prepare

    keep_freed_memory()
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

    from ral.robustness.attacks import audit_attacks
    from ral.robustness.flip import audit_flip
    from ral.robustness.padding import padded
    from ral.robustness.pixels import requested
    from ral.robustness.probes import audit_probes
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
        if config.probes.attributes:
            parts["probes"] = audit_probes(subject, logits[""], config.probes, config.seed)
        if config.attacks.eps:
            parts["attacks"] = audit_attacks(subject, config.attacks, config.seed)
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
