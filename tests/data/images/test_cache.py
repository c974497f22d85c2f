"""The cache returns what was written or detects damage; it is private, and old chunks are pruned."""

import os
import stat
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ral.data.images import cache as store_module
from ral.data.images.cache import DamagedChunkError, DecodedImageCache, chunk_images, decoding_version, prune
from ral.files import private_file

GOOD = ("", "")


@pytest.fixture
def cache(tmp_path: Path) -> DecodedImageCache:
    return DecodedImageCache.open(tmp_path / "state", 8, "stretch", "own")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def test_images_are_found_by_their_content(cache: DecodedImageCache) -> None:
    first, second = images(3), images(2, 1)
    cache.write(["a", "b", "c"], first, [GOOD] * 3, [""] * 3)
    cache.write(["d", "e"], second, [GOOD, ("is blank", "every pixel is 0")], ["exif", ""])
    lookup = cache.find(["e", "x", "b", "d", "b"])
    assert (lookup.chunk < 0).tolist() == [False, True, False, False, False]
    assert lookup.reason == ["is blank", "", "", "", ""]
    assert lookup.detail[0] == "every pixel is 0"
    assert lookup.note == ["", "", "", "exif", ""]
    for place, pixels in ((2, first[1]), (3, second[0]), (4, first[1])):
        chunk = cache.read(lookup.names[lookup.chunk[place]])
        assert (chunk.images[lookup.row[place]] == pixels).all()
        assert chunk.sums[lookup.row[place]].tolist() == [pixels.sum(), (pixels.astype(int) ** 2).sum()]


def test_empty_store_has_nothing(cache: DecodedImageCache) -> None:
    assert cache.find(["a"]).chunk.tolist() == [-1]
    assert cache.find([]).chunk.tolist() == []


@pytest.mark.parametrize("where", ["pixels", "end"])
def test_damage_is_noticed_and_removed(cache: DecodedImageCache, where: str) -> None:
    cache.write(["a", "b"], images(2), [GOOD] * 2, [""] * 2)
    path = cache.path(["a", "b"])
    content = bytearray(path.read_bytes())
    if where == "pixels":
        content[content.index(images(2).tobytes()) + 70] ^= 1
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(DamagedChunkError):
        cache.read(path.name)
    assert not path.exists()
    assert cache.find(["a"]).chunk.tolist() == [-1]


def test_chunk_that_cannot_be_opened_is_as_if_it_were_not_there(cache: DecodedImageCache) -> None:
    cache.write(["a"], images(1), [GOOD], [""] * 1)
    (cache.folder / "b.arrow").write_bytes(b"")
    assert cache.find(["a"]).chunk.tolist() == [0]
    assert not (cache.folder / "b.arrow").exists()


def test_only_this_user_may_look(cache: DecodedImageCache, tmp_path: Path) -> None:
    cache.write(["a"], images(1), [GOOD], [""] * 1)
    for path in (tmp_path / "state", tmp_path / "state/images", cache.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.path(["a"]).stat().st_mode) == 0o600


def test_failed_write_leaves_nothing(cache: DecodedImageCache) -> None:
    with pytest.raises(TypeError):
        cache.write(["a"], images(1), [(None, object())], [""])  # type: ignore[list-item]
    assert list(cache.folder.iterdir()) == []


def test_other_parameters_are_another_store() -> None:
    ways = product((8, 9), ("stretch", "pad"), ("own", "percentile"))
    assert len({decoding_version(*way) for way in ways}) == 8  # type: ignore[arg-type]
    assert decoding_version(8, "pad", "own") == decoding_version(8, "pad", "own")


@pytest.mark.parametrize("name", ["decode.py", "resize.py", "dicom.py", "dicom_display.py", "npz.py"])
def test_other_code_is_another_store(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = decoding_version(8, "pad", "own")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: read(path) + (b"# another way" if path.name == name else b"")
    )
    assert decoding_version(8, "pad", "own") != before


def test_every_file_that_decodes_is_part_of_the_version() -> None:
    """What decode.py and dicom.py import of this project, directly or not, decides pixels, but for errors and their remedies."""
    script = "import sys, ral.data.images.decode, ral.data.images.dicom, ral.data.images.dicom_display; print(*(m for m in sys.modules if m.startswith('ral.')))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    named = {f"ral.data.images.{name.removesuffix('.py')}" for name in store_module._CODE}
    assert set(loaded.split()) - {"ral.data", "ral.data.images", "ral.errors", "ral.extras"} <= named


def test_chunk_of_large_images_is_short() -> None:
    assert chunk_images(64) == 256
    assert chunk_images(1024) == 64
    assert chunk_images(2048) == 16


def test_prune_by_age_and_by_size(cache: DecodedImageCache, tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        cache.write([name], images(1), [GOOD], [""] * 1)
        os.utime(cache.path([name]), (0, os.path.getmtime(cache.path([name])) - age * 86400))
    size = cache.path(["a"]).stat().st_size
    assert prune(tmp_path / "state", max_days=2.5, dry=True) == size
    assert prune(tmp_path / "state", max_days=2.5) == size
    assert cache.find(list("abcd")).chunk.tolist() == [*cache.find(list("abc")).chunk.tolist(), -1]
    assert prune(tmp_path / "state", max_bytes=size) == 2 * size
    assert (cache.find(list("abcd")).chunk >= 0).tolist() == [True, False, False, False]
    assert prune(tmp_path / "state", max_bytes=0) == size
    assert not cache.folder.exists()


def test_what_is_read_is_in_use(cache: DecodedImageCache, tmp_path: Path) -> None:
    cache.write(["a"], images(1), [GOOD], [""] * 1)
    os.utime(cache.path(["a"]), (0, 0))
    cache.read(cache.path(["a"]).name)
    assert prune(tmp_path / "state", max_days=1) == 0


def test_prune_removes_what_a_killed_writer_left(cache: DecodedImageCache, tmp_path: Path) -> None:
    kill = "import os, signal, sys; from pathlib import Path; from ral.files import private_file\n"
    kill += "with private_file(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    subprocess.run([sys.executable, "-c", kill, str(cache.path(["a"]))])
    (stale_draft,) = cache.folder.iterdir()
    with private_file(cache.path(["b"])) as written:
        prune(tmp_path / "state")
        assert written.exists()
    assert not stale_draft.exists()
