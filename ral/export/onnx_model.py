"""Writes the ONNX format by torch's exporter. `ral.inference.exported` opens it with onnxruntime."""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from ral.export.torch_program import trace
from ral.inference.export_folder import MODEL_FILES
from ral.inference.exported import require_onnx
from ral.models.info import ModelInfo

# A file of one piece cannot be larger than 2 GiB; the weights of a larger model go beside it into model.onnx.data.
_ONE_PIECE = 2**31 - 2**26


def write(network: nn.Module, info: ModelInfo, folder: Path) -> None:
    """Write model.onnx: images float32 [batch, 1, size, size] to logits [batch, findings], any batch size.

    Args:
        network: in eval mode, on the CPU.
        info: the content of model.json.
        folder: an existing folder.

    Raises:
        UserError: the extra `onnx` is not installed.
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    verbosity = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                trace(network, info.size),
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
    content, keys = info.to_json(), ("findings", "size", "pixel_mean", "pixel_deviation", "phantom")
    model.metadata_props.clear()
    model.metadata_props.update({key: json.dumps(content[key]) for key in keys})
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    program.save(folder / MODEL_FILES["onnx"], external_data=size > _ONE_PIECE)
