"""Robustness audit: score changed test images, and compare with the unchanged ones.

    python -m tasks.robustness

Writes robustness/robustness.json (all results, for report, card and gate) and robustness/shifts.csv (a row per shift,
metric, and finding, tier or mean). Does nothing but write an empty robustness.json unless robustness.enabled is true.
Uses a GPU if available. docs/robustness.md has the shifts.
"""

from pathlib import Path

from ral import artifacts
from ral.config.robustness import RobustnessParams
from tasks import step


def run(params: RobustnessParams, prepared: Path, models: Path, reports: Path, out: Path) -> None:
    """Audit the network in `models` on the test images in `prepared` and write the results to the folder `out`.

    Raises:
        UserError: network, data and calibration do not belong together.
    """
    from ral.data.dataset_info import DatasetInfo
    from ral.files import atomic_directory
    from ral.robustness.contents import Robustness
    from ral.wording import RESEARCH_NOTE

    phantom = DatasetInfo.read(prepared / artifacts.DATASET.name).phantom
    result = Robustness(notice=RESEARCH_NOTE, data="phantom" if phantom else "images")
    if params.robustness.enabled:
        result = result.model_copy(update=audit(params, prepared, models, reports))
    with atomic_directory(out) as draft:
        result.write(draft / artifacts.AUDITED.name)
        if result.shifts is not None:
            import pandas as pd

            rows = [row.model_dump() for row in result.shifts.rows]
            table = pd.DataFrame(rows).assign(data=result.data)
            table.to_csv(draft / "shifts.csv", index=False, lineterminator="\n")


def audit(params: RobustnessParams, prepared: Path, models: Path, reports: Path) -> dict[str, object]:
    """The requested parts of the audit, as fields of `Robustness`."""
    import torch
    from threadpoolctl import threadpool_limits

    from ral.data.dataset import open_dataset
    from ral.evaluation import calibration_io
    from ral.evaluation.rows import read_studies
    from ral.models.load import load_network
    from ral.robustness.flip import audit_flip
    from ral.robustness.pixels import requested
    from ral.robustness.shifts import audit_shifts
    from ral.robustness.subject import prepare

    config = params.robustness
    torch.set_num_threads(config.threads)
    network, info = load_network(models)
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = open_dataset(prepared)
    calibration = calibration_io.read(reports / artifacts.CALIBRATION.name)
    # The last digits of some linear algebra depend on the number of threads.
    with threadpool_limits(1, user_api="blas"):
        subject = prepare(network, info, dataset, read_studies(prepared), calibration, params.evaluate)
        shifts, logits = audit_shifts(subject, requested(config.shifts), config.seed)
        parts: dict[str, object] = {"audited": subject.summary(), "shifts": shifts}
        if "flip" in logits:
            parts["flip"] = audit_flip(subject, logits[""], logits["flip"])
    return parts


if __name__ == "__main__":
    step.command(
        "robustness", __doc__, run, RobustnessParams,
        {
            "prepared": (artifacts.PREPARED, "output folder of the step preprocess"),
            "models": (artifacts.MODELS, "output folder of the step train"),
            "reports": (artifacts.REPORTS, "output folder of the step evaluate"),
            "out": (artifacts.ROBUSTNESS, "folder to write"),
        },
    )  # fmt: skip
