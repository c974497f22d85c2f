"""The paths in ral/artifacts.py are those of dvc.yaml, and no other module spells them."""

import ast
from pathlib import PurePosixPath

import pytest
from conftest import ROOT
from stages import stages

from ral import artifacts

PATHS = {name: str(path) for name, path in vars(artifacts).items() if isinstance(path, PurePosixPath)} | {
    f"logits({split})": str(artifacts.logits(split)) for split in ("val", "test")
}
# Not outputs of a stage as a whole: folders that several stages write into, and what git tracks.
FOLDERS = {"models", "reports", "baseline"}
NO_OUTPUTS = FOLDERS | {"reports/run.css"}


def outputs() -> set[str]:
    """Outputs and metrics of all stages."""
    return {path for stage in stages().values() for key in ("outs", "metrics") for path in stage.get(key, ())}


def test_every_path_is_an_output_or_in_one() -> None:
    outs = outputs()
    for name, path in PATHS.items():
        parents = {path, *map(str, PurePosixPath(path).parents)}
        assert path in NO_OUTPUTS or parents & outs, f"{name}: no stage writes {path}"


def test_every_output_that_another_module_names_has_a_constant() -> None:
    # models/weights and models/validation.json are written by the training alone.
    assert outputs() - set(PATHS.values()) == {"models/weights", "models/validation.json"}


def test_no_path_is_spelled_twice() -> None:
    values = list(PATHS.values())
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("package", ["ral", "tasks", "flows"])
def test_paths_of_outputs_are_spelled_in_one_module(package: str) -> None:
    spelled = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path not in (ROOT / "ral/artifacts.py", ROOT / "ral/inference/pt2.py")  # an archive of PyTorch
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in {p for p in PATHS.values() if "/" in p}
    ]
    assert not spelled, "\n".join(["write artifacts.NAME instead of:", *spelled])
