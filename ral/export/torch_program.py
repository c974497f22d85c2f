"""The format of torch.export (.pt2): a graph as JSON, and weights as raw bytes.

torch.export.load unpickles parts that such a file may have, and runs code in it. `write` leaves the one pickled part
out, and `read` refuses files with parts that would be unpickled or run.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ral.errors import UserError
from ral.export.check import Logits

MODEL = "model.pt2"

# All files that `write` puts into the archive, below its top folder.
_FILES = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)
_SAMPLE, _GRAPH = "data/sample_inputs/model.pt", "models/model.json"
_TENSORS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

# Strings of the graph that torch does not only compare: it looks operators up, evaluates sizes as Python, and imports
# what the structure of inputs and outputs names. Names end up in generated code, so they must be plain.
_PLAIN = re.compile(r"[\w.+]*", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ge|gt|le|lt)", re.ASCII
)
_SIZE = re.compile(
    r"(Symbol\('[a-z]+[0-9]+', (positive|nonnegative)=True, integer=True\)"
    r"|(Integer|Add|Mul|Pow|Max|Min|FloorDiv|Mod)(?=\()|-?[0-9]+|[(), ])*"
)
_EQUATION = re.compile(r"[a-z]+(,[a-z]+)*->[a-z]*|\w*", re.ASCII)  # text arguments, such as those of einsum
_STRUCTURE = re.compile(r'([\[\]{}:, "0-9]|type|context|children_spec|null|builtins\.(tuple|list|dict))*')


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


def write(network: nn.Module, metadata: dict[str, Any], folder: Path) -> None:
    """Write model.pt2: images float32 [batch, 1, size, size] to logits [batch, findings], any batch size.

    Args:
        network: in eval mode, on the CPU.
        metadata: the content of model.json.
        folder: an existing folder.

    Raises:
        UserError: torch cannot trace the network, or it needs something that `read` refuses.
    """
    program = trace(network, metadata["size"])
    program.example_inputs = None  # they would be pickled
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}  # else paths of this machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.export.save(program, folder / MODEL)


def read(folder: Path) -> Logits:
    """Open model.pt2, on the CPU. Nothing is unpickled.

    Raises:
        UserError: the file is missing or damaged, or has parts that torch would unpickle or run.
    """
    from torch.export.pt2_archive._package import load_pt2

    path = folder / MODEL
    refuse_unsafe(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Not torch.export.load, which falls back to an older, pickled format.
            program = load_pt2(str(path)).exported_programs["model"]
    except (RuntimeError, AssertionError, KeyError, ValueError) as error:
        raise _damaged(path, error) from None
    module = program.module()

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return logits


def refuse_unsafe(path: Path) -> None:
    """Check that a .pt2 file has only parts that `write` makes, before torch opens it.

    Raises:
        UserError: the file is missing or damaged, or has other parts; the message names the first.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: export the model again.")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2]: name for name in archive.namelist()}
            reason = next((name for name in parts if not _FILES.fullmatch(name)), None)
            if reason is None and len(parts) < len(archive.namelist()):
                reason = "two parts of the same name"
            if reason is None and archive.getinfo(parts[_SAMPLE]).file_size:
                reason = _SAMPLE
            if reason is None and any(_has_pickles(archive.read(parts[name])) for name in _TENSORS):
                reason = "pickled tensors"
            if reason is None:
                reason = next(_unsafe_parts(json.loads(archive.read(parts[_GRAPH]))), None)
    except (zipfile.BadZipFile, KeyError, AttributeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None
    if reason:
        raise UserError(
            f"{path} has {reason[:200]}, which ral export does not write: torch may unpickle or run it. Export the "
            "model again from its safetensors weights."
        )


def _has_pickles(config: bytes) -> bool:
    return any(entry["use_pickle"] is not False for entry in json.loads(config)["config"].values())


def _unsafe_parts(program: dict[str, Any]) -> Iterator[str]:
    """Strings of the graph that could make torch run something other than operators on tensors."""
    if program.get("guards_code"):
        yield "guards"
    pending: list[tuple[str, Any]] = [("", program)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, list):
            pending += [(key, item) for item in value]
        elif isinstance(value, dict):
            is_node = "target" in value and "inputs" in value
            pending += [("operator" if is_node and name == "target" else name, value[name]) for name in value]
            pending += [("name", name) for name in value]
        elif isinstance(value, str) and not _allowed(key).fullmatch(value):
            yield f"the {key} {value!r}"


def _allowed(key: str) -> re.Pattern[str]:
    special = {
        "operator": _OPERATOR,
        "expr_str": _SIZE,
        "as_string": _EQUATION,
        "in_spec": _STRUCTURE,
        "out_spec": _STRUCTURE,
    }
    return special.get(key, _PLAIN)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({str(error)[:300]}). Export the model again.")
