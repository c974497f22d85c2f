"""A release's bundle: everything needed to review, use and restore a model, with the SHA-256 of every file."""

import shutil
from pathlib import Path
from typing import Any

from ral.config.base import load, read_yaml
from ral.config.data import PreprocessConfig
from ral.config.params import Params
from ral.errors import UserError
from ral.files import read_json, sha256, write_json
from ral.inference.bundle import BUNDLE, CALIBRATION, FINDINGS, MODEL, verify

__all__ = ["BUNDLE", "build_bundle", "preparation", "require_file", "verify"]

# Name in the bundle -> path that the stages of dvc.yaml write.
FILES = {
    "report.html": "reports/report.html",
    "model_card.md": "reports/model_card.md",
    "metrics.json": "reports/metrics.json",
    CALIBRATION: "reports/calibration.json",
    FINDINGS: "reports/findings.csv",
    MODEL: "models/model.safetensors",
    "model/model.json": "models/model.json",
    "split.parquet": "data/prepared/split.parquet",
    "params.yaml": "params.yaml",
    "dvc.lock": "dvc.lock",
}

# Which run made the report: beside it if the report was made here and not taken from DVC's cache.
RUN_INFO = "reports/run.css"

# Parameters of the section preprocess that change the pixels of an image.
PIXELS = ("size", "fit")


def build_bundle(workspace: Path, decision: dict[str, Any], commit: str, folder: Path) -> None:
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
    run_info = workspace / RUN_INFO
    if run_info.is_file():
        shutil.copyfile(run_info, folder / run_info.name)
    write_json(folder / "decision.json", decision)
    data = read_json(require_file(workspace / "data/validated/validation.json"))
    write_json(folder / "profile.json", data["profile"])
    model = read_json(folder / "model/model.json")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = {
        "commit": commit,
        "data_manifest": sha256(require_file(workspace / "data/manifest.json")),
        "phantom": bool(model["phantom"]),
        "findings": model["findings"],
        "preparation": preparation(workspace / "params.yaml"),
        "params": read_yaml(workspace / "params.yaml"),
        "files": {name: sha256(folder / name) for name in names},
    }
    write_json(folder / BUNDLE, content)


def preparation(params: Path) -> dict[str, Any]:
    """The preprocessing parameters in `PIXELS`: two models must agree in them to be scored on the same images.

    Raises:
        UserError: see `ral.config.base.load`.
    """
    config: PreprocessConfig = load(params, Params).preprocess
    return {name: getattr(config, name) for name in PIXELS}


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
