"""Opens the model of an export, whatever its format. Nothing is unpickled or downloaded."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ral.errors import UserError
from ral.inference import pt2
from ral.inference.export_folder import MODEL_FILES, Kind, damaged
from ral.models.info import ModelInfo, read_model_info
from ral.models.load import load_network

# Logits [batch, findings] of standardised images float32 [batch, 1, size, size].
Logits = Callable[[Tensor], Tensor]


class ExportedNetwork(nn.Module):
    """A model without its layers: onnxruntime or a graph runs it, on the CPU. It has no heat maps.

    Args:
        logits: the model; a module is registered, so that its weights get the memory format of the original's.
    """

    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits [batch, findings]."""
        return self._logits(images)


def open_export(kind: Kind, folder: Path) -> tuple[nn.Module, ModelInfo]:
    """Open the model of an export whose files were verified.

    Returns:
        The network in eval mode, on the CPU; timm's has the bits of the one that was exported. And the content of
        model.json.

    Raises:
        UserError: a file is missing or damaged, or onnxruntime is not installed.
    """
    if kind == "timm":
        # timm's folder is the backbone with its own classifier: the whole network.
        return load_network(folder, MODEL_FILES[kind], prefix="backbone.")
    path = folder / MODEL_FILES[kind]
    return ExportedNetwork(read_onnx(path) if kind == "onnx" else pt2.read(path)), read_model_info(folder)


def read_onnx(path: Path) -> Logits:
    """Open an ONNX file with onnxruntime, on one thread of the CPU.

    Raises:
        UserError: the file is missing or damaged, or onnxruntime is not installed.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its exceptions have no common class of their own
        raise damaged(path, error) from None

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": np.ascontiguousarray(images.numpy())})[0])

    return logits


def require_onnx(*packages: str) -> None:
    """Refuse ONNX without its packages.

    Raises:
        UserError: the message names the extra.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'ral[onnx]'.")
