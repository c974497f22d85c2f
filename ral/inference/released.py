"""Opens a released model for prediction: weights, calibration, thresholds, preparation of images, training profile.

A model is the folder of a release (bundle.json), a project folder after `make run` (models/ and reports/), or its
folder models/. Nothing is unpickled or downloaded.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from ral import artifacts
from ral.config.base import load, read_yaml
from ral.config.environment import load_environment
from ral.config.params import Params
from ral.errors import UserError
from ral.files import sha256
from ral.inference.bundle import BUNDLE, CALIBRATION, OLD_BUNDLE, verify
from ral.inference.calibrated import Calibration, read_calibration
from ral.models.load import load_model
from ral.wording import RESEARCH_NOTE

CHAMPION = "champion"
_VERSION = re.compile(r"v\d+\.\d+\.\d+")

PHANTOM_MODEL = "PHANTOM MODEL: trained on synthetic images, no clinical meaning"


class Preparation(BaseModel):
    """How the training images were prepared (parameters of the section preprocess)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=16, le=2048)
    """Height and width of a prepared image in pixels."""
    fit: Literal["stretch", "pad", "crop"]
    range: Literal["own", "percentile"]


class Profile(BaseModel):
    """What the training images look like (`ral.data.prepare.training_profile`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: dict[str, int]
    """Training images by view."""
    image_mean: tuple[float, float]
    """Mean gray level of an image: 1 % of the training images are outside."""
    image_deviation: tuple[float, float]
    """Standard deviation of the gray levels of an image: 1 % of the training images are outside."""


@dataclass(frozen=True)
class ReleasedModel:
    """Everything that prediction needs of a model."""

    name: str
    """Version of the release or name of the folder, and the first digits of a hash of weights and calibration."""
    network: nn.Module
    """In eval mode, on the CPU: standardised images [images, 1, size, size] to raw logits [images, findings]."""
    metadata: dict[str, Any]
    """Content of model.json."""
    calibration: Calibration
    preparation: Preparation
    profile: Profile | None
    """None if the model was trained before profiles were recorded."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self.metadata["findings"])

    @property
    def phantom(self) -> bool:
        """Whether the model was trained on phantom images."""
        return bool(self.metadata["phantom"])

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
            f"There is no model {text}. Name a folder (of a release, or models/ of a project after `make run`), "
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
    """Open the model in a folder; the files of a release are checked against their hashes first.

    Raises:
        UserError: a file is missing, has changed or is of another model.
    """
    if (folder / BUNDLE).is_file() or (folder / OLD_BUNDLE).is_file():
        return _open_release(folder)
    if not (folder / artifacts.MODEL.name).is_file() and (folder / artifacts.MODEL).is_file():
        folder = folder / artifacts.MODELS
    project = folder.resolve().parent
    network, metadata = load_model(folder)
    preparation = metadata.get("preparation")
    if preparation is None:  # trained by an earlier version
        path = project / "params.yaml"
        if not path.is_file():
            raise UserError(
                f"{folder}/model.json does not say how images are prepared, and there is no {path}. Train again, or "
                "keep models/ in its project."
            )
        preparation = load(path, Params).preprocess.model_dump(include=set(Preparation.model_fields))
    return _checked(project.name, folder, network, metadata, project / artifacts.CALIBRATION, preparation)


def _open_release(folder: Path) -> ReleasedModel:
    content = verify(folder)
    if CALIBRATION not in content.files:
        raise UserError(
            f"{folder} was released without its calibration, by an earlier version. Register the model again, or use "
            "the folder models/ of the project that trained it."
        )
    network, metadata = load_model(folder / "model")
    preparation = metadata.get("preparation")
    if preparation is None:
        section = read_yaml(folder / "params.yaml")["preprocess"]
        preparation = {name: section[name] for name in Preparation.model_fields if name in section}
    return _checked(folder.name, folder / "model", network, metadata, folder / CALIBRATION, preparation)


def _checked(
    name: str,
    folder: Path,
    network: nn.Module,
    metadata: dict[str, Any],
    calibration: Path,
    preparation: dict[str, Any],
) -> ReleasedModel:
    try:
        prepared = Preparation.model_validate({"fit": "stretch", "range": "own"} | preparation)
        profile = metadata.get("profile")
        profile = None if profile is None else Profile.model_validate(profile)
    except ValidationError as error:
        raise UserError(
            f"{folder}/model.json: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        ) from None
    if prepared.size != metadata["size"]:
        raise UserError(
            f"{folder}: images of {prepared.size} pixels in its parameters, of {metadata['size']} in model.json. Both "
            "must come from the same training."
        )
    maps = read_calibration(calibration, metadata["findings"])
    digest = hashlib.sha256(
        f"{sha256(folder / 'model.safetensors')} {sha256(folder / 'model.json')} {maps.version}".encode()
    ).hexdigest()
    return ReleasedModel(f"{name}@{digest[:12]}", network, metadata, maps, prepared, profile)
