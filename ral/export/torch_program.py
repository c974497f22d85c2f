"""Writes the format of torch.export (.pt2). `ral.inference.pt2` opens it."""

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ral.errors import UserError
from ral.inference.export_folder import MODEL_FILES
from ral.models.info import ModelInfo


def trace(network: nn.Module, size: int) -> ExportedProgram:
    """The network as a graph, for images float32 [batch, 1, size, size] of any batch size.

    Raises:
        UserError: torch cannot trace this network.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        # Two images: torch takes a batch of one for a fixed size.
        return torch.export.export(
            network, (torch.zeros(2, 1, size, size),), dynamic_shapes=({0: batch},), strict=False
        )
    except (RuntimeError, ValueError, torch._dynamo.exc.UserError) as error:
        raise UserError(f"torch.export cannot trace this network: {str(error)[:500]}") from None


def write(network: nn.Module, info: ModelInfo, folder: Path) -> None:
    """Write model.pt2: images float32 [batch, 1, size, size] to logits [batch, findings], any batch size.

    Args:
        network: in eval mode, on the CPU.
        info: the content of model.json.
        folder: an existing folder.

    Raises:
        UserError: torch cannot trace the network, or it needs something that `ral.inference.pt2.read` refuses.
    """
    program = trace(network, info.size)
    program.example_inputs = None  # they would be pickled
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}  # else paths of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(program, folder / MODEL_FILES["torch"])
