"""A release's bundle: everything needed to review, use and restore a model, with the SHA-256 of every file."""

import shutil
from pathlib import Path, PurePosixPath

from ral import artifacts
from ral.config.base import load, read_yaml
from ral.config.params import Params
from ral.errors import UserError
from ral.files import read_json, sha256, write_json
from ral.inference.bundle import BUNDLE, CALIBRATION, FINDINGS, MODEL, Bundle
from ral.preparation import Preparation
from ral.records import Record

# Name in the bundle -> path that the stages write.
FILES = {
    artifacts.REPORT.name: artifacts.REPORT,
    artifacts.MODEL_CARD.name: artifacts.MODEL_CARD,
    artifacts.METRICS.name: artifacts.METRICS,
    CALIBRATION: artifacts.CALIBRATION,
    FINDINGS: artifacts.FINDINGS,
    MODEL: artifacts.WEIGHTS,
    "model/model.json": artifacts.MODEL,
    artifacts.SPLIT.name: artifacts.SPLIT,
    "params.yaml": PurePosixPath("params.yaml"),
    "dvc.lock": PurePosixPath("dvc.lock"),
}


def build_bundle(workspace: Path, decision: Record, commit: str, folder: Path) -> None:
    """Write a bundle from the outputs of a complete run.

    Args:
        workspace: the project's folder with data/, models/, reports/, params.yaml and dvc.lock.
        decision: the gate's decision.
        commit: commit of the run, 40 hexadecimal digits.
        folder: existing empty folder to write into.

    Raises:
        UserError: a file of the run is missing, its weights are damaged or not finite, or params.yaml is invalid.
    """
    from ral.models.load import read_weights

    read_weights(require_file(workspace / FILES[MODEL]))
    for name, source in FILES.items():
        path = require_file(workspace / source)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    run_info = workspace / artifacts.RUN_INFO
    if run_info.is_file():  # if the report was made here and not taken from DVC's cache
        shutil.copyfile(run_info, folder / run_info.name)
    decision.write(folder / "decision.json")
    data = read_json(require_file(workspace / artifacts.VALIDATION))
    write_json(folder / "profile.json", data["profile"])
    model = read_json(folder / "model/model.json")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    Bundle(
        commit=commit,
        data_manifest=sha256(require_file(workspace / artifacts.MANIFEST)),
        phantom=model["phantom"],
        findings=model["findings"],
        preparation=read_preparation(workspace / "params.yaml"),
        params=read_yaml(workspace / "params.yaml"),
        files={name: sha256(folder / name) for name in names},
    ).write(folder / BUNDLE)


def read_preparation(params: Path) -> Preparation:
    """How a run prepares images; a released model must agree in it to be compared with the run's model.

    Raises:
        UserError: see `ral.config.base.load`.
    """
    config = load(params, Params).preprocess
    return Preparation.model_validate(config.model_dump(include=set(Preparation.model_fields)))


def require_file(path: Path) -> Path:
    """Return the path of a file that a run must have written.

    Raises:
        UserError: the file does not exist.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, but a release needs it. Run the whole pipeline first (dvc repro)."
        )
    return path
