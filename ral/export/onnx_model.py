"""The ONNX format, by torch's exporter; run by onnxruntime."""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral.errors import UserError
from ral.export.check import Logits
from ral.export.torch_program import trace

MODEL = "model.onnx"

# A file of one piece cannot be larger than 2 GiB; the weights of a larger model go into model.onnx.data.
_ONE_PIECE = 2**31 - 2**26


def write(network: nn.Module, metadata: dict[str, Any], folder: Path) -> None:
    """Write model.onnx: images float32 [batch, 1, size, size] to logits [batch, findings], any batch size.

    Args:
        network: in eval mode, on the CPU.
        metadata: the content of model.json.
        folder: an existing folder.

    Raises:
        UserError: the extra `onnx` is not installed.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    verbosity = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                trace(network, metadata["size"]),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    finally:
        logging.getLogger("onnxscript").setLevel(verbosity)
    assert program is not None
    model = program.model
    # The exporter records stack traces with paths of this machine.
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.metadata_props.clear()
        graph.metadata_props.clear()
    keys = ("findings", "size", "pixel_mean", "pixel_deviation", "phantom")
    model.metadata_props.clear()
    model.metadata_props.update({key: json.dumps(metadata[key]) for key in keys})
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    program.save(folder / MODEL, external_data=size > _ONE_PIECE)


def read(folder: Path) -> Logits:
    """Open model.onnx with onnxruntime, on the CPU.

    Raises:
        UserError: the file is missing or damaged, or onnxruntime is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    path = folder / MODEL
    if not path.is_file():
        raise UserError(f"{path} does not exist: export the model again.")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its exceptions have no common class of their own
        raise UserError(
            f"{path}: onnxruntime cannot open it ({str(error)[:300]}). Export the model again."
        ) from None

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return logits


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'ral[onnx]'.")
