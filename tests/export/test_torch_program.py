"""A .pt2 file that torch would unpickle or run is refused before torch opens it."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.errors import UserError
from ral.export.torch_program import write
from ral.inference.export_folder import MODEL_FILES
from ral.inference.pt2 import checked_copy, read
from ral.models.load import load_network

GRAPH, SAMPLE = "models/model.json", "data/sample_inputs/model.pt"


@pytest.fixture
def program(project: Callable[..., Path], tmp_path: Path) -> Path:
    network, info = load_network(project() / "models")
    write(network, info, tmp_path)
    return tmp_path / MODEL_FILES["torch"]


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change or add a part of the archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    full = f"{next(iter(parts)).partition('/')[0]}/{name}"
    parts[full] = change(parts.get(full, b""))
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def change_graph(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def edit(content: bytes) -> bytes:
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    rewrite(path, GRAPH, edit)


def test_what_write_makes_is_opened_and_has_no_pickle(program: Path) -> None:
    checked_copy(program)
    assert read(program)(torch.zeros(3, 1, 64, 64)).shape == (3, 3)
    with zipfile.ZipFile(program) as archive:
        sizes = {name.partition("/")[2]: archive.getinfo(name).file_size for name in archive.namelist()}
    assert sizes[SAMPLE] == 0
    assert [name for name in sizes if name.endswith((".pkl", ".pt"))] == [SAMPLE]
    # Anybody who has torch alone can open it, too.
    assert torch.export.load(program).module()(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_part_is_not_loaded(program: Path, tmp_path: Path) -> None:
    rewrite(program, SAMPLE, lambda _: pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(UserError, match="sample_inputs"):
        read(program)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["data/weights/model.pt", "data/constants/custom_obj_0", "data/aotinductor/model/a.so", "x"]
)
def test_parts_of_other_kinds(program: Path, name: str) -> None:
    rewrite(program, name, lambda _: b"x")
    with pytest.raises(UserError, match=name.rpartition("/")[2]):
        read(program)


def test_tensors_that_are_marked_as_pickled(program: Path) -> None:
    name = "data/weights/model_weights_config.json"
    rewrite(program, name, lambda content: content.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
    with pytest.raises(UserError, match="pickled tensors"):
        read(program)


def _rename_input(graph: dict[str, Any]) -> None:
    text = json.dumps(graph).replace('"images"', json.dumps("images=print('run')"))
    graph.clear()
    graph.update(json.loads(text))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda graph: graph["graph_module"]["graph"]["nodes"][0].update(target="torch.hub.load"), "torch.hub.load"),
        (
            lambda graph: graph["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.from_file.default"),
            "from_file",
        ),
        (lambda graph: graph.update(guards_code=["print('run')"]), "guards"),
        (_rename_input, "images=print"),
        (
            lambda graph: graph["range_constraints"].update({"__import__('os')": {"min_val": 1, "max_val": None}}),
            "__import__",
        ),
        (
            lambda graph: graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0]["as_expr"].update(
                expr_str="__import__('os').getcwd()"
            ),
            "__import__",
        ),
        (
            lambda graph: graph["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec='[1, {"type": "collections.defaultdict", "context": "x", "children_spec": []}]'
            ),
            "in_spec",
        ),
    ],
)  # fmt: skip
def test_code_in_the_graph(program: Path, change: Callable[[dict], object], reason: str) -> None:
    change_graph(program, change)
    with pytest.raises(UserError) as caught:
        read(program)
    assert reason in str(caught.value)


def test_torch_reads_what_was_checked(program: Path) -> None:
    """An archive with another one in front: zipfile reads the last, and another program might read the first."""
    good = program.read_bytes()
    rewrite(program, SAMPLE, lambda _: b"pickle")
    program.write_bytes(program.read_bytes() + good)
    with zipfile.ZipFile(checked_copy(program)) as copy:
        assert copy.read(f"model/{SAMPLE}") == b""
    assert read(program)(torch.zeros(3, 1, 64, 64)).shape == (3, 3)


def test_missing_and_damaged_files(program: Path) -> None:
    program.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read(program)
    program.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read(program)


def test_a_damaged_graph(program: Path) -> None:
    good = program.read_bytes()
    for content in (b"[" * 100_000 + b"]" * 100_000, b"[]", b"{}"):
        program.write_bytes(good)
        rewrite(program, GRAPH, lambda _, content=content: content)  # type: ignore[misc]
        with pytest.raises(UserError, match="damaged"):
            read(program)
    program.write_bytes(good)
    change_graph(program, lambda graph: graph["graph_module"]["graph"].update(nodes=5))
    with pytest.raises(UserError, match="damaged"):
        read(program)
