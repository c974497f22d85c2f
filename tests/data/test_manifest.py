"""The manifest tells content apart, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, set_params

from ral.data.file_hash import FileHash
from ral.data.images import file_hashes
from ral.data.images import locate as images
from ral.data.images.file_hashes import FileHashCache
from ral.data.manifest import Manifest, manifest_bytes, read_manifest
from ral.errors import UserError
from ral.files import read_json, sha256


def read(root: Path, known: FileHashCache | None = None) -> Manifest:
    counted: list[int] = []
    found = read_manifest(root, counted.append, known)
    assert sum(counted) == manifest_bytes(root)
    return found


def test_says_what_is_there(phantom_copy: Path) -> None:
    found = read(phantom_copy)
    assert set(found.files) == {path.name for path in phantom_copy.iterdir()}
    for name, facts in found.files.items():
        path = phantom_copy / name
        assert facts == FileHash(bytes=path.stat().st_size, sha256=sha256(path))
    assert found.folders == {}


def test_two_places_with_the_same_files_agree(phantom_copy: Path, tmp_path: Path) -> None:
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    other = tmp_path / "elsewhere/deep"
    shutil.copytree(phantom_copy, other)
    (other / ".hidden").write_text("no data")
    link = tmp_path / "link"
    link.mkdir()
    for path in phantom_copy.iterdir():
        (link / path.name).symlink_to(path)
    first = read(phantom_copy)
    assert first == read(other) == read(link)
    assert str(tmp_path) not in first.model_dump_json()
    assert first.folders["images"].images == 400


@pytest.mark.parametrize("change", ["image", "name", "table"])
def test_a_change_is_seen(phantom_copy: Path, change: str) -> None:
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    before = read(phantom_copy)
    image = min((phantom_copy / "images").iterdir())
    if change == "image":
        image.write_bytes(image.read_bytes() + b"x")
    elif change == "name":
        image.rename(image.with_name("other.png"))
    else:
        table = phantom_copy / "Data_Entry_2017.csv"
        table.write_text(table.read_text() + "\n")
    assert read(phantom_copy) != before


def test_unchanged_files_are_not_read_again(
    phantom_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = time.time() - 3600
    for path in phantom_copy.rglob("*"):
        os.utime(path, (hour, hour))
    known = FileHashCache(tmp_path / "state")
    before = read(phantom_copy, known)

    def refuse(_: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(images, "stream_hash", refuse)
    monkeypatch.setattr(file_hashes, "file_sha256", refuse)
    assert read(phantom_copy, known) == before
    assert len(images.list_images(phantom_copy, lambda _: None, known)[0]) == 400
    os.utime(phantom_copy / "test_list.txt")
    with pytest.raises(AssertionError, match="read again"):
        read(phantom_copy, known)


def test_folder_that_leads_back_into_itself(phantom_copy: Path) -> None:
    before = read(phantom_copy)
    (phantom_copy / "again").symlink_to(phantom_copy)
    assert read(phantom_copy) == before


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no files"):
        read_manifest(tmp_path, lambda _: None)
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "x", lambda _: None)


@pytest.mark.parametrize(
    "name", ["table_\udcf6.csv", "folder_\udcf6/a.txt", "images/\udcf6.png", "a/b/\udcf6.png"]
)
def test_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    for read_it in (manifest_bytes, lambda root: read_manifest(root, lambda _: None)):
        with pytest.raises(UserError, match=r"the name `[^`]*\\xf6[^`]*` is not UTF-8\. Rename it"):
            read_it(tmp_path)
    (tmp_path / name).unlink()


def test_hidden_names_may_be_anything(phantom_copy: Path) -> None:
    before = read(phantom_copy)
    (phantom_copy / ".\udcf6").write_text("x")
    (phantom_copy / "._images_001.tar.gz").write_text("Mac OS X")
    assert read(phantom_copy) == before


def test_data_folder_with_an_odd_name(phantom_copy: Path) -> None:
    before = read(phantom_copy)
    assert read(phantom_copy.rename(phantom_copy.with_name("a\nb [*] Ä "))) == before
    with pytest.raises(UserError, match=r"images\\xf6 is not UTF-8"):
        manifest_bytes(phantom_copy.with_name("images\udcf6"))


def test_zip_is_listed_once_for_its_images_and_its_hash(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with zipfile.ZipFile(root / "images.zip", "w") as packed:
        packed.writestr("images/a.png", b"image")
    hour = time.time() - 3600
    os.utime(root / "images.zip", (hour, hour))
    known = FileHashCache(tmp_path / "state")
    facts = FileHash(bytes=(root / "images.zip").stat().st_size, sha256=sha256(root / "images.zip"))
    assert read(root, known).files == {"images.zip": facts}
    listed = known.archive(root / "images.zip")
    assert listed is not None
    assert listed[0]["image_id"].tolist() == ["a.png"]
    assert listed[1] == facts


def test_only_archives_in_which_images_are_looked_for_are_opened(phantom_copy: Path) -> None:
    (phantom_copy / "old").mkdir()
    (phantom_copy / "old/images_001.zip").write_text("no zip")
    (phantom_copy / "notes.zip").write_text("no zip")
    assert {"old/images_001.zip", "notes.zip"} <= set(read(phantom_copy).files)
    (phantom_copy / "images_002.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"images_002\.zip is truncated or damaged"):
        read_manifest(phantom_copy, lambda _: None)


def test_pipes_and_broken_links_are_left_out(phantom_copy: Path) -> None:
    before = read(phantom_copy)
    os.mkfifo(phantom_copy / "pipe.csv")
    os.mkfifo(phantom_copy / "images_002.tar.gz")
    (phantom_copy / "gone.csv").symlink_to("/gone/gone.csv")
    (phantom_copy / "round").symlink_to("round")
    assert read(phantom_copy) == before


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_embedded_data_set_is_not_read_and_nothing_large_imported(
    phantom_copy: Path, tmp_path: Path, elsewhere: bool
) -> None:
    """DVC tracks it as an output itself, and runs this step every time."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    root = phantom_copy if elsewhere else shutil.copytree(phantom_copy, folder / "data/phantom")

    def step() -> tuple[Manifest, bool, set[str]]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "tasks.manifest"], cwd=folder, capture_output=True, text=True,
            check=True, env=os.environ | {"PYTHONPATH": str(ROOT), "RAL_DATA_ROOT": str(root)},
        )  # fmt: skip
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        phantom = read_json(folder / "data/location.json")["phantom"]
        return (
            Manifest.read(folder / "data/manifest.json"),
            phantom,
            imported & {"pandas", "pyarrow", "torch"},
        )

    manifest, phantom, imported = step()
    assert phantom is not elsewhere
    assert manifest == (read(root) if elsewhere else Manifest(files={}, folders={}))
    assert imported == ({"pandas", "pyarrow"} if elsewhere else set())
    # Who leaves is not in the data: the manifest says that the list is another one.
    (folder / "leaving.txt").write_text("1\n")
    set_params(folder, {"data": {"exclude_patients": "leaving.txt"}})
    assert step()[0].exclude_patients == sha256(folder / "leaving.txt")


def test_data_in_the_folder_of_the_embedded_data_set_are_refused(phantom_copy: Path, tmp_path: Path) -> None:
    """The step phantom replaces that folder, so they would be deleted."""
    folder = tmp_path / "project"
    root = shutil.copytree(phantom_copy, folder / "data/phantom/mine")
    shutil.copy(ROOT / "params.yaml", folder)
    (tmp_path / "link").symlink_to(root)
    for name in (root, tmp_path / "link"):
        done = subprocess.run(
            [sys.executable, "-m", "tasks.manifest"], cwd=folder, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAL_DATA_ROOT": str(name)},
        )  # fmt: skip
        assert done.returncode == 1
        assert "which the step phantom replaces" in done.stderr
        assert not (folder / "data/manifest.json").exists()
