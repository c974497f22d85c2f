"""Opens a released model for prediction: weights, calibration, thresholds, preparation of images, training profile.

A model is the folder of a release (bundle.json), a project folder after `make run` (models/ and reports/), its folder
models/, or a folder that `ral export` wrote (export.json). Nothing is unpickled or downloaded.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ral import artifacts
from ral.config.base import load
from ral.config.environment import load_environment
from ral.config.params import Params
from ral.errors import UserError
from ral.files import sha256
from ral.inference.bundle import BUNDLE, CALIBRATION, OLD_BUNDLE, verify
from ral.inference.calibrated import Calibration, read_calibration
from ral.inference.export_folder import CARD, INDEX, Kind, damaged, model_files, verify_export
from ral.inference.exported import ExportedNetwork, open_export
from ral.models.info import ModelInfo, read_model_info
from ral.models.load import load_network
from ral.preparation import ImageProfile, Preparation
from ral.wording import RESEARCH_NOTE

CHAMPION = "champion"
_VERSION = re.compile(r"v\d+\.\d+\.\d+")

PHANTOM_MODEL = "PHANTOM MODEL: trained on synthetic images, no clinical meaning"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model keeps what belongs to it."""

    name: str
    """Version of the release or name of the folder."""
    folder: Path
    """With model.json and the weights."""
    weights: list[Path]
    calibration: Path
    """calibration.json: calibration maps and thresholds."""
    card: Path
    """The model card; it may be missing."""
    preparation: Preparation | None
    """How the training images were prepared, for a model.json of an earlier version, which does not say it."""
    exported: Kind | None
    """The format of an export; None for any other model."""


@dataclass(frozen=True)
class ReleasedModel:
    """Everything that prediction needs of a model."""

    name: str
    """Version of the release or name of the folder, and the first digits of a hash of weights and calibration."""
    network: nn.Module
    """In eval mode, on the CPU: standardised images [images, 1, size, size] to raw logits [images, findings]."""
    info: ModelInfo
    """Content of model.json."""
    calibration: Calibration
    preparation: Preparation
    profile: ImageProfile | None
    """None if the model was trained before profiles were recorded."""
    files: ModelFiles

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.info.findings

    @property
    def cpu_only(self) -> bool:
        """Whether the network runs on the CPU only."""
        return isinstance(self.network, ExportedNetwork)

    @property
    def phantom(self) -> bool:
        """Whether the model was trained on phantom images."""
        return self.info.phantom

    @property
    def notice(self) -> str:
        """What must be shown with every result."""
        return f"{PHANTOM_MODEL}; {RESEARCH_NOTE}" if self.phantom else RESEARCH_NOTE


def find_model(text: str | Path, state_dir: Path | None = None) -> Path:
    """The folder of a model from what the user wrote: a folder, `champion` or a version such as v0.2.0.

    Args:
        text: what the user wrote.
        state_dir: folder of the registry; None for that of ral.toml.

    Raises:
        UserError: there is no such model.
    """
    path = Path(text)
    if path.is_dir():
        return path
    if str(text) != CHAMPION and not _VERSION.fullmatch(str(text)):
        raise UserError(
            f"There is no model {text}. Name a folder (of a release, of an export, or of a project after `make run`), "
            "`champion`, or a version of the registry (python -m ral.release list)."
        )
    state = state_dir or load_environment().state_dir
    # The folders are read directly: reading the tags of the registry would need GTO.
    folder = state / CHAMPION if str(text) == CHAMPION else state / "releases" / str(text)
    if not folder.is_dir():
        raise UserError(
            f"There is no {text} in the registry {state} (see python -m ral.release list). RAL_STATE_DIR names "
            "another one."
        )
    return folder.resolve()


def open_model(folder: Path) -> ReleasedModel:
    """Open the model in a folder; the files of a release or an export are checked against their hashes first.

    Raises:
        UserError: a file is missing, has changed or is of another model.
    """
    files = _model_files(folder)
    network: nn.Module
    if files.exported is None:
        network, info = load_network(files.folder)
    else:
        network, info = open_export(files.exported, files.folder)
    description = files.folder / artifacts.MODEL.name
    preparation = info.preparation or files.preparation
    if preparation is None:
        raise UserError(
            f"{description} does not say how images are prepared, and there is no "
            f"{files.folder.resolve().parent / 'params.yaml'}. Train again, or keep models/ in its project."
        )
    if preparation.size != info.size:
        raise UserError(
            f"{folder}: images of {preparation.size} pixels in its parameters, of {info.size} in model.json. Both "
            "must come from the same training."
        )
    maps = read_calibration(files.calibration, info.findings)
    hashes = [*(sha256(path) for path in (*files.weights, description)), maps.version]
    digest = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    return ReleasedModel(f"{files.name}@{digest[:12]}", network, info, maps, preparation, info.profile, files)


def _model_files(folder: Path) -> ModelFiles:
    if (folder / BUNDLE).is_file() or (folder / OLD_BUNDLE).is_file():
        return _release(folder)
    if (folder / INDEX).is_file():
        index = verify_export(folder)
        try:
            pixels = _pixels(index["preprocessing"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder / INDEX, error) from None
        name, kind, calibration = folder.resolve().name, index["kind"], folder / CALIBRATION
        return ModelFiles(name, folder, model_files(kind, folder), calibration, folder / CARD, pixels, kind)
    if not (folder / artifacts.MODEL.name).is_file() and (folder / artifacts.MODEL).is_file():
        folder = folder / artifacts.MODELS
    project = folder.resolve().parent
    params = project / "params.yaml"
    # Only a model.json of an earlier version needs params.yaml, whose other sections do not matter here.
    preparation = None
    if params.is_file() and read_model_info(folder).preparation is None:
        preparation = _pixels(load(params, Params).preprocess.model_dump())
    weights, card = [folder / artifacts.WEIGHTS.name], project / artifacts.MODEL_CARD
    return ModelFiles(project.name, folder, weights, project / artifacts.CALIBRATION, card, preparation, None)


def _release(folder: Path) -> ModelFiles:
    content = verify(folder)
    if CALIBRATION not in content.files:
        raise UserError(
            f"{folder} was released without its calibration, by an earlier version. Register the model again, or use "
            "the folder models/ of the project that trained it."
        )
    model = folder / "model"
    weights, preparation = [model / "model.safetensors"], _pixels(content.params["preprocess"])
    card = folder / "model_card.md"
    return ModelFiles(folder.resolve().name, model, weights, folder / CALIBRATION, card, preparation, None)


def _pixels(section: Mapping[str, Any]) -> Preparation:
    return Preparation.model_validate(
        {name: section[name] for name in Preparation.model_fields if name in section}
    )
