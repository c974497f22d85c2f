"""Opens a program of torch.export (.pt2): a graph as JSON, and weights as raw bytes.

torch.export.load unpickles parts that such a file may have, and runs code in it. `ral export torch` writes no such
part, and `read` refuses files that have one. torch then reads a copy with the checked parts only: a damaged archive may
have contents that zipfile and torch see differently.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ral.errors import UserError
from ral.inference.export_folder import damaged

# All files that `ral export torch` puts into the archive, below its top folder.
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
# from_file opens any file, and may change it.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ge|gt|le|lt)",
    re.ASCII,
)
_SIZE = re.compile(
    r"(Symbol\('[a-z]+[0-9]+', (positive|nonnegative)=True, integer=True\)"
    r"|(Integer|Add|Mul|Pow|Max|Min|FloorDiv|Mod)(?=\()|-?[0-9]+|[(), ])*"
)
_EQUATION = re.compile(r"[a-z]+(,[a-z]+)*->[a-z]*|\w*", re.ASCII)  # text arguments, such as those of einsum
_STRUCTURE = re.compile(r'([\[\]{}:, "0-9]|type|context|children_spec|null|builtins\.(tuple|list|dict))*')

# What reading a damaged graph raises. RecursionError, of deeply nested JSON, is a RuntimeError.
_DAMAGED = (RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def read(path: Path) -> nn.Module:
    """Open a .pt2 file, on the CPU. Nothing is unpickled.

    Returns:
        Maps standardised images float32 [batch, 1, size, size] to logits [batch, findings].

    Raises:
        UserError: the file is missing or damaged, or has parts that torch would unpickle or run.
    """
    from torch.export.pt2_archive._package import load_pt2

    checked = checked_copy(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Not torch.export.load, which falls back to an older, pickled format.
            return load_pt2(checked).exported_programs["model"].module()
    except _DAMAGED as error:
        raise damaged(path, error) from None


def checked_copy(path: Path) -> io.BytesIO:
    """Check that a .pt2 file has only parts that `ral export torch` writes.

    Returns:
        An archive with the parts that were checked.

    Raises:
        UserError: the file is missing or damaged, or has other parts; the message names the first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            reason = next((name for name in names if not _FILES.fullmatch(name)), None)
            if reason is None and len(set(names)) < len(names):
                reason = "two parts of the same name"
            parts = {} if reason else dict(zip(names, map(archive.read, archive.namelist()), strict=True))
        if reason is None:
            reason = _unsafe(parts)
    except (FileNotFoundError, zipfile.BadZipFile, *_DAMAGED) as error:
        raise damaged(path, error) from None
    if reason:
        raise UserError(
            f"{path} has {reason[:200]}, which ral export does not write: torch may unpickle or run it. Export the "
            "model again from its safetensors weights."
        )
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    copy.seek(0)
    return copy


def _unsafe(parts: dict[str, bytes]) -> str | None:
    """The first part or string that torch would unpickle or run."""
    if parts[_SAMPLE]:
        return _SAMPLE
    if any(_has_pickles(parts[name]) for name in _TENSORS):
        return "pickled tensors"
    return next(_unsafe_strings(json.loads(parts[_GRAPH])), None)


def _has_pickles(config: bytes) -> bool:
    return any(entry["use_pickle"] is not False for entry in json.loads(config)["config"].values())


def _unsafe_strings(program: dict[str, Any]) -> Iterator[str]:
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
