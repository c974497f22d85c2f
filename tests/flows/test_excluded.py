"""A nightly run honours data.exclude_patients: its baseline, and what it counts as a change."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project, set_params
from excluded import LEAVING, write_images

from flows.nightly import exclude_from_baseline
from ral.data.privacy import pseudonyms, read_salt
from ral.errors import UserError
from ral.files import sha256

KEPT = ("Person0001", "Person0002")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = copy_project(tmp_path / "workspace")
    table = pd.DataFrame({"patient_id": [*KEPT, *LEAVING], "split": "train"})
    table.to_parquet(folder / "baseline/split.parquet", index=False)
    (folder / "leaving.txt").write_text("\n".join(LEAVING))
    (folder / "salt").write_bytes(bytes(range(32)))
    return folder


def listed(workspace: Path) -> list[str]:
    return pd.read_parquet(workspace / "baseline/split.parquet")["patient_id"].tolist()


def test_the_baseline_of_a_night_has_none_of_them(workspace: Path) -> None:
    before = (workspace / "baseline/split.parquet").read_bytes()
    exclude_from_baseline(workspace)
    assert (workspace / "baseline/split.parquet").read_bytes() == before
    set_params(workspace, {"data": {"exclude_patients": "leaving.txt"}})  # relative to the workspace
    exclude_from_baseline(workspace)
    assert listed(workspace) == list(KEPT)
    (workspace / "baseline/split.parquet").unlink()
    exclude_from_baseline(workspace)  # no split is accepted yet


def test_pseudonyms_of_the_last_release_are_recognized(workspace: Path) -> None:
    salt = read_salt(workspace / "salt")
    table = pd.read_parquet(workspace / "baseline/split.parquet")
    hidden = table.assign(patient_id=pseudonyms(table["patient_id"], salt))
    hidden.to_parquet(workspace / "baseline/split.parquet", index=False)
    section = {"exclude_patients": "leaving.txt", "pseudonymise": "salt"}
    set_params(workspace, {"data": section})
    exclude_from_baseline(workspace)
    assert listed(workspace) == hidden["patient_id"][: len(KEPT)].tolist()
    hidden.to_parquet(workspace / "baseline/split.parquet", index=False)
    (workspace / "hashes.txt").write_text("\n".join(pseudonyms(pd.Series(LEAVING), salt)))
    set_params(workspace, {"data": section | {"exclude_patients": "hashes.txt", "exclude_salt": "salt"}})
    exclude_from_baseline(workspace)
    assert listed(workspace) == hidden["patient_id"][: len(KEPT)].tolist()


def test_a_missing_list_stops_the_night(workspace: Path) -> None:
    set_params(workspace, {"data": {"exclude_patients": "/absent/leaving.txt"}})
    with pytest.raises(UserError, match=r"/absent/leaving\.txt \(data\.exclude_patients\) does not exist"):
        exclude_from_baseline(workspace)


def test_a_changed_list_is_a_change(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night has nothing to do if the manifest is that of the last one (`RunInputs.manifest`)."""
    from ral.config.base import load
    from ral.config.environment import Environment
    from ral.config.train import ManifestParams
    from tasks.manifest import run

    write_images(tmp_path / "delivered")
    set_params(workspace, {"data": {"exclude_patients": "leaving.txt", "root": str(tmp_path / "delivered")}})
    monkeypatch.chdir(workspace)

    def manifest() -> str:
        params = load(workspace / "params.yaml", ManifestParams)
        environment = Environment(state_dir=tmp_path / "state")
        files = (
            workspace / "data" / name for name in ("phantom", "manifest.json", "location.json", "code.json")
        )
        run(params, environment, *files)
        return sha256(workspace / "data/manifest.json")

    (workspace / "data").mkdir(exist_ok=True)
    first = manifest()
    assert manifest() == first
    shutil.copy("leaving.txt", "copy.txt")
    set_params(workspace, {"data": {"exclude_patients": "copy.txt"}})
    assert manifest() == first
    (workspace / "copy.txt").write_text(LEAVING[0])
    assert manifest() != first
