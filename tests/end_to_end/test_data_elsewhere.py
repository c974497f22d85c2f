"""The phantom images are drawn only where they are the data, however another data folder is named."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import shipped
from conftest import set_params

Run = Callable[..., subprocess.CompletedProcess[str]]
DRAWN = {"Data_Entry_2017.csv", "images_001.tar.gz"}


def named(how: str, folder: Path, root: Path) -> dict[str, str]:
    """Name a data folder by a variable, by ral.toml or by params.yaml; returns variables to set."""
    if how == "RAL_DATA_ROOT":
        return {how: str(root)}
    if how == "ral.toml":
        (folder / how).write_text(f'data_root = "{root}"\n')
    else:
        set_params(folder, {"data": {"root": str(root)}})
    return {}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that is no phantom's."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shipped.write("chexpert", folder)
    return folder


@pytest.mark.parametrize("how", ["RAL_DATA_ROOT", "ral.toml", "data.root"])
def test_no_phantom_is_drawn_for_data_that_lies_elsewhere(
    run: Run, workspace: Path, images: Path, how: str
) -> None:
    variables = named(how, workspace, images)
    printed = run("dvc", "repro", "phantom", cwd=workspace, **variables).stdout
    assert "no phantom images are drawn" in printed
    assert not DRAWN & {path.name for path in (workspace / "data/phantom").iterdir()}
    assert "train.csv" in (workspace / "data/manifest.json").read_text()
    for path in ("dvc.lock", "data/location.json"):
        assert str(images) not in (workspace / path).read_text()


@pytest.mark.long
def test_going_there_and_back_draws_once(run: Run, workspace: Path, images: Path) -> None:
    def lock(**variables: str) -> tuple[str, bool, str]:
        printed = run("dvc", "repro", "phantom", cwd=workspace, **variables).stdout
        drawn = {path.name for path in (workspace / "data/phantom").iterdir()} >= DRAWN
        return (workspace / "dvc.lock").read_text(), drawn, printed

    phantom, drawn, _ = lock()
    assert drawn
    own, drawn, _ = lock(RAL_DATA_ROOT=str(images))
    assert not drawn
    again, drawn, printed = lock()
    assert (again, drawn) == (phantom, True)
    assert "drawing" not in printed
    (workspace.parent / "linked").symlink_to(images)
    assert lock(RAL_DATA_ROOT=str(workspace.parent / "linked"))[:2] == (own, False)
    # The phantom folder by its whole path is the same folder.
    assert lock(RAL_DATA_ROOT=str(workspace / "data/phantom"))[:2] == (phantom, True)
