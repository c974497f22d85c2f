"""The format of timm: config.json and model.safetensors, for timm.create_model("local-dir:FOLDER", pretrained=True)."""

from pathlib import Path

from torch import Tensor

from ral.errors import UserError
from ral.files import follow_umask, read_json, write_json
from ral.inference.exported import Logits
from ral.models import Network, import_timm
from ral.models.info import ModelInfo
from ral.user_code import is_class_path

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# timm's name of each preprocess.fit. Its `border` pads with the mean, not with black.
_CROP_MODES = {"stretch": "squash", "crop": "center", "pad": "border"}

# Where the architecture's own pretrained weights came from: not true of these weights.
_ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def write(network: Network, info: ModelInfo, fit: str, folder: Path) -> None:
    """Write config.json and model.safetensors.

    Args:
        network: the trained network.
        info: the content of model.json.
        fit: parameter preprocess.fit.
        folder: an existing folder.

    Raises:
        UserError: timm does not have the head or the network.
    """
    backbone = info.model.backbone
    if is_class_path(backbone):
        raise UserError(
            f"model.backbone is {backbone}, your own network, which timm does not have. Use ral export onnx, or torch."
        )
    if network.head is not None:
        raise UserError(
            f"model.head is {info.model.head}, which timm does not have; it opens linear heads only. "
            "Use ral export onnx, or torch."
        )
    size, channels = info.size, network.channels
    # timm's images are in [0, 1], those of the training in [0, 255].
    import_timm().models.save_for_hf(
        network.backbone,
        folder,
        model_config={"label_names": list(info.findings)},
        model_args=info.model.options,
        safe_serialization=True,
        data_config={
            "input_size": (channels, size, size),
            "mean": (info.pixel_mean / 255,) * channels,
            "std": (info.pixel_deviation / 255,) * channels,
            "interpolation": "hamming",  # the nearest to area averaging (docs/export.md)
            "crop_pct": 1.0,
            "crop_mode": _CROP_MODES[fit],
        },
    )
    follow_umask(folder / WEIGHTS)
    config = read_json(folder / CONFIG)
    for name in _ORIGIN:
        config["pretrained_cfg"].pop(name, None)
    write_json(folder / CONFIG, config)


def read(folder: Path) -> Logits:
    """Open the folder with timm, on the CPU.

    Raises:
        UserError: a file is missing; timm would look for pickled weights.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist: export the model again.")
    model = import_timm().create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    model.eval().requires_grad_(False)
    channels = model.pretrained_cfg["input_size"][0]

    def logits(images: Tensor) -> Tensor:
        values: Tensor = model(images.expand(-1, channels, -1, -1))
        return values

    return logits
