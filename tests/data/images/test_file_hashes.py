"""An unchanged file is not read again; a changed one is."""

import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from ral.data.images import file_hashes
from ral.data.images import locate as module
from ral.data.images.file_hashes import FileHashCache
from ral.data.images.locate import list_images
from ral.files import sha256


def age(folder: Path) -> None:
    """Make the files look as if they had been there for an hour."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 3600 * 10**9))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each image that was read."""
    seen: list[int] = []
    real = module.stream_hash
    monkeypatch.setattr(module, "stream_hash", lambda stream: seen.append(1) or real(stream))
    return seen


def listed(root: Path, tmp_path: Path) -> tuple:
    counted: list[int] = []
    images, hashes = list_images(root, counted.append, FileHashCache(tmp_path / "state"))
    assert sum(counted) == module.total_bytes(root)
    return images, hashes


@pytest.mark.parametrize("loose", [False, True])
def test_unchanged_files_are_not_read_again(
    phantom_copy: Path, tmp_path: Path, hashed: list[int], loose: bool
) -> None:
    if loose:
        with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
            tar.extractall(phantom_copy, filter="data")
        (phantom_copy / "images_001.tar.gz").unlink()
    age(phantom_copy)
    first = listed(phantom_copy, tmp_path)
    assert len(hashed) == 400
    second = listed(phantom_copy, tmp_path)
    assert len(hashed) == 400
    assert first[0].equals(second[0])
    assert first[1] == second[1]


def test_changed_archive_is_read_again(phantom_copy: Path, tmp_path: Path, hashed: list[int]) -> None:
    age(phantom_copy)
    listed(phantom_copy, tmp_path)
    os.utime(phantom_copy / "images_001.tar.gz")
    listed(phantom_copy, tmp_path)
    assert len(hashed) == 800


def test_only_the_new_image_of_a_folder_is_read(
    phantom_copy: Path, tmp_path: Path, hashed: list[int]
) -> None:
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    (phantom_copy / "images_001.tar.gz").unlink()
    age(phantom_copy)
    images, _ = listed(phantom_copy, tmp_path)
    shutil.copy(phantom_copy / images["path"].iloc[7], phantom_copy / "images/new.png")
    again, _ = listed(phantom_copy, tmp_path)
    assert len(hashed) == 401
    assert again.set_index("image_id").loc["new.png", "hash"] == images["hash"].iloc[7]


def test_file_that_may_still_change_is_not_remembered(
    phantom_copy: Path, tmp_path: Path, hashed: list[int]
) -> None:
    os.utime(phantom_copy / "images_001.tar.gz")
    listed(phantom_copy, tmp_path)
    listed(phantom_copy, tmp_path)
    assert len(hashed) == 800


def test_damaged_memory_is_no_memory(phantom_copy: Path, tmp_path: Path, hashed: list[int]) -> None:
    age(phantom_copy)
    listed(phantom_copy, tmp_path)
    for path in (tmp_path / "state/raw").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.write_bytes(b"PAR1")
    listed(phantom_copy, tmp_path)
    assert len(hashed) == 800


def test_zip_that_has_not_changed_is_not_read_again(tmp_path: Path, hashed: list[int]) -> None:
    root = tmp_path / "images"
    root.mkdir()
    with zipfile.ZipFile(root / "images.zip", "w") as packed:
        for number in range(5):
            packed.writestr(f"images/{number}.png", bytes([number]))
    age(root)
    known = FileHashCache(tmp_path / "state")
    known.sha256(root / "images.zip")  # as of a file that is no archive
    first = listed(root, tmp_path)
    assert len(hashed) == 5
    second = listed(root, tmp_path)
    assert len(hashed) == 5
    assert first[0].equals(second[0])
    assert first[1] == second[1]
    assert first[1]["images.zip"].sha256 == sha256(root / "images.zip")
    with zipfile.ZipFile(root / "images.zip", "a") as packed:
        packed.writestr("images/5.png", b"5")
    age(root)
    assert len(listed(root, tmp_path)[0]) == 6


def test_archive_that_was_listed_by_other_rules_is_read_again(
    phantom_copy: Path, tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    age(phantom_copy)
    with monkeypatch.context() as before:
        before.setattr(file_hashes, "LISTING_VERSION", 1)
        listed(phantom_copy, tmp_path)
    assert len(hashed) == 400
    listed(phantom_copy, tmp_path)
    assert len(hashed) == 800
    listed(phantom_copy, tmp_path)
    assert len(hashed) == 800
