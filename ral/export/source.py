"""What an export is made from: where a trained model keeps its weights, calibration, card and preprocessing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ral import artifacts
from ral.errors import UserError

Kind = Literal["timm", "onnx", "torch"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Parameters of the section preprocess that change the pixels of an image.
PIXELS = {"size", "fit", "range"}


@dataclass(frozen=True)
class Source:
    """Files of a trained model."""

    model: Path
    """Folder with model.json and model.safetensors."""
    calibration: Path
    """calibration.json: calibration maps and thresholds."""
    card: Path
    """model_card.md."""
    preprocess: dict[str, Any]
    """The parameters in `PIXELS`."""


def find_source(folder: Path) -> Source:
    """Find the files of a trained model.

    Args:
        folder: a release bundle, which is verified; a project folder after a complete run; or its models folder.

    Raises:
        UserError: it is none of these, a file is missing, or a bundle is damaged.
    """
    from ral.config.base import load
    from ral.config.data import PreprocessConfig
    from ral.config.params import Params
    from ral.release.bundle import BUNDLE, verify

    folder = folder.absolute()
    if (folder / BUNDLE).is_file():
        params = verify(folder).params["preprocess"]
        preprocess = PreprocessConfig.model_validate(params)
        model = folder / "model"
        calibration, card = folder / artifacts.CALIBRATION.name, folder / artifacts.MODEL_CARD.name
        remedy = "The release was made by an earlier version: export from the outputs of its run, or release again."
    else:
        project = folder if (folder / "models").is_dir() else folder.parent
        if not (project / "params.yaml").is_file() or not (project / artifacts.MODEL).is_file():
            raise UserError(
                f"--model: {folder} is no release bundle ({BUNDLE}), no project folder after a complete run, and no "
                "models folder of one. For the champion: --model STATE/champion, where STATE is state_dir of ral.toml."
            )
        preprocess = load(project / "params.yaml", Params).preprocess
        model = project / artifacts.MODELS
        calibration, card = project / artifacts.CALIBRATION, project / artifacts.MODEL_CARD
        remedy = "Run the whole pipeline first (dvc repro)."
    for path in (calibration, card):
        if not path.is_file():
            raise UserError(f"{path} does not exist, but an export needs it. {remedy}")
    return Source(model, calibration, card, preprocess.model_dump(include=PIXELS))
