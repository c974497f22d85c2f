"""Packing: nothing is decoded twice, nothing is lost when it is cut off, and no bad image keeps its label."""

import errno
import gzip
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ral.compute.dask_pool import open_pool
from ral.config.dask import DaskTarget
from ral.config.data import PreprocessConfig
from ral.data.images import pack as module
from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode
from ral.data.images.locate import list_images
from ral.data.images.pack import PackResult, pack
from ral.data.images.shards import open_shard
from ral.errors import UserError

SIZE = 16


def image(seed: int, side: int = 32) -> bytes:
    stream = io.BytesIO()
    image = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"images/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a gzipped archive, a plain one and single files; 700 images."""
    folder = tmp_path / "raw"
    (folder / "images_003").mkdir(parents=True)
    write_tar(folder / "images_001.tar.gz", {f"a{n:04}.png": image(n) for n in range(300)})
    write_tar(folder / "images_002.tar", {f"b{n:04}.png": image(1000 + n) for n in range(300)})
    for n in range(100):
        (folder / f"images_003/c{n:04}.png").write_bytes(image(2000 + n))
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded."""
    seen: list[str] = []
    real = module.decode_with_note
    monkeypatch.setattr(
        module, "decode_with_note", lambda c, s, name, *way: seen.append(name) or real(c, s, name, *way)
    )
    return seen


def packed(
    root: Path, out: Path, state: Path | None = None, target: DaskTarget | None = None, **config: Any
) -> tuple[PackResult, pd.DataFrame]:
    images, _ = list_images(root, lambda _: None)
    out.mkdir(exist_ok=True)
    told: list[int] = []
    settings = PreprocessConfig(**{"size": SIZE, "shard_images": 128, **config})
    with open_pool(target or DaskTarget(workers=2)) as pool:
        done = pack(root, images, settings, out, pool, told.append, state)
    assert sum(told) == len(images)
    return done, images


def contents(root: Path) -> dict[str, bytes]:
    found = {}
    for path in root.glob("*.tar*"):
        with tarfile.open(path) as tar:
            found |= {Path(m.name).name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return found | {path.name: path.read_bytes() for path in root.glob("*/*.png")}


def read_shards(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((out / "shards").iterdir()):
        ids, images = open_shard(path, SIZE)
        found |= dict(zip(ids.to_pylist(), images, strict=True))
    return found


def test_every_image_is_packed_once_in_order(root: Path, tmp_path: Path) -> None:
    done, images = packed(root, tmp_path / "out")
    shards = read_shards(tmp_path / "out")
    assert list(shards) == images["image_id"].tolist()
    assert [shard.images for shard in done.shards] == [128] * 5 + [60]
    for name, content in contents(root).items():
        assert (shards[name] == decode(content, SIZE, name)).all()
    sums = [[int(image.sum()), int((image.astype(int) ** 2).sum())] for image in shards.values()]
    assert done.sums.tolist() == sums
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shards"]


def test_bytes_do_not_depend_on_workers_or_store(root: Path, tmp_path: Path) -> None:
    first, _ = packed(root, tmp_path / "a", target=DaskTarget(workers=1))
    packed(root, tmp_path / "b", tmp_path / "state", DaskTarget(workers=3))
    again, _ = packed(root, tmp_path / "c", tmp_path / "state")
    assert first.shards == again.shards
    for path in (tmp_path / "a/shards").iterdir():
        for other in "bc":
            assert path.read_bytes() == (tmp_path / other / "shards" / path.name).read_bytes()


def test_rerun_decodes_nothing(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    packed(root, tmp_path / "a", tmp_path / "state")
    assert len(decoded) == 700
    packed(root, tmp_path / "b", tmp_path / "state", shard_images=50)
    assert len(decoded) == 700


def test_larger_delivery_decodes_only_what_is_new(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    packed(root, tmp_path / "a", tmp_path / "state")
    content = contents(root)
    (root / "images_002.tar").unlink()
    write_tar(
        root / "images_002.tar.gz",  # packed anew, and in another order
        {name: content[name] for name in sorted(content, reverse=True) if name[0] == "b"}
        | {"d.png": image(5000)},
    )
    (root / "images_003/b5.png").write_bytes(image(6000))
    decoded.clear()
    packed(root, tmp_path / "b", tmp_path / "state")
    assert sorted(name.split()[1].split("/")[-1] for name in decoded) == ["b5.png", "d.png"]


def test_damaged_chunk_is_decoded_again(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    first, _ = packed(root, tmp_path / "a", tmp_path / "state")
    path = max((tmp_path / "state/images").rglob("*.arrow"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    decoded.clear()
    again, _ = packed(root, tmp_path / "b", tmp_path / "state")
    assert again.shards == first.shards
    assert 0 < len(decoded) <= 256


BAD = {
    "b0007.png": (b"Forbidden", "image is not an image"),
    "a0005.png": (image(5)[:200], "image cannot be decoded"),
    "c0001.png": (image(6, 1), "image is too small to be an image"),
}


@pytest.fixture
def spoiled(root: Path) -> Path:
    """The folder with a bad image in each place."""
    content = contents(root) | {name: content for name, (content, _) in BAD.items()}
    for archive in sorted(root.glob("*.tar*")):
        letter = {"1": "a", "2": "b"}[archive.name[9]]
        write_tar(archive, {name: content[name] for name in sorted(content) if name[0] == letter})
    (root / "images_003/c0001.png").write_bytes(content["c0001.png"])
    return root


@pytest.mark.parametrize("cached", [False, True])
def test_bad_images_are_left_out_with_their_reason(
    spoiled: Path, tmp_path: Path, decoded: list[str], cached: bool
) -> None:
    state = tmp_path / "state" if cached else None
    for number in range(2):  # the second time they are remembered
        done, images = packed(spoiled, tmp_path / f"out{number}", state, on_bad_image="quarantine")
        bad = images.loc[~done.good, "image_id"].tolist()
        assert bad == ["a0005.png", "b0007.png", "c0001.png"]
        assert done.reason == [BAD[name][1] for name in bad]
        assert done.explained[1] == "image is not an image (9 bytes)"
        shards = read_shards(tmp_path / f"out{number}")
        assert list(shards) == images.loc[done.good, "image_id"].tolist()
        assert len(done.sums) == 697
    assert len(decoded) == (700 if cached else 1400)


@pytest.mark.parametrize("cached", [False, True])
def test_bad_image_is_an_error_unless_quarantined(spoiled: Path, tmp_path: Path, cached: bool) -> None:
    state = tmp_path / "state" if cached else None
    if cached:  # also where it is only remembered
        packed(spoiled, tmp_path / "a", state, on_bad_image="quarantine")
    with pytest.raises(BadImage, match=r"Image .*[abc]000\d\.png.* (is|cannot) .*on_bad_image"):
        packed(spoiled, tmp_path / "b", state)


def test_too_many_bad_images_are_an_error(spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"3 of 700 images are bad \(0\.43%\), more than .*max_bad_fraction \(0\.10%\)"
    ):
        packed(spoiled, tmp_path / "out", on_bad_image="quarantine", max_bad_fraction=0.001)


def test_images_are_shared_out_evenly(root: Path) -> None:
    images, _ = list_images(root, lambda _: None)
    streamed = images["path"].str.endswith(".tar.gz")  # read from its start only
    assert 0 < streamed.sum() < len(images)
    for workers in (1, 2, 3):
        tasks = module._tasks(images, workers)
        assert sorted(number for task in tasks for number in task.index) == list(images.index)
        archives = [set(task["path"].where(task["member"] != "", "")) for task in tasks]
        assert {len(names) for names in archives} == {1}  # of one archive, or of single files
        parts = [len(task) for task in tasks if streamed[task.index].all()]
        assert len(parts) == workers
        # A later task unpacks what lies before its part, so it decodes a little less.
        lengths = [round(parts[0] * (1 - module.SKIP_COST) ** number) for number in range(workers)]
        assert parts == pytest.approx(lengths, abs=1)
        others = [len(task) for task in tasks if not streamed[task.index].any()]
        assert len(others) >= module.MIN_TASKS_PER_WORKER * workers
        assert max(others) <= -(-sum(others) // (module.MIN_TASKS_PER_WORKER * workers))
    # Several archives: no task has more than its even share of one.
    archive = images[streamed]
    some = pd.concat([archive.assign(path=f"{n}.tar.gz") for n in range(12)], ignore_index=True)
    assert max(map(len, module._tasks(some, 64))) <= -(-len(some) // 64)
    many = pd.concat([images.iloc[:300].assign(path=f"{n}.tar.gz") for n in range(8)])
    assert [set(task["path"]) for task in module._tasks(many, 2)] == [{f"{n}.tar.gz"} for n in range(8)]


SCRIPT = """
import resource, sys
from pathlib import Path
from ral.config.dask import DaskTarget
from ral.config.data import PreprocessConfig
from ral.compute.dask_pool import open_pool
from ral.data.images.locate import list_images
from ral.data.images.pack import pack
root, out, state, limit = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
images, _ = list_images(root, lambda _: None)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
out.mkdir()
with open_pool(DaskTarget(workers=2)) as pool:
    pack(root, images, PreprocessConfig(size=16, shard_images=400), out, pool, lambda _: None, state)
"""


def test_disk_full_in_the_middle_loses_nothing(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    """A limit on the size of files stands for the disk: chunks of 256 images pass, shards of 400 do not."""
    state = tmp_path / "state"
    command = [sys.executable, "-c", SCRIPT, str(root), str(tmp_path / "a"), str(state), "90000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    packed(root, tmp_path / "b", state, shard_images=400)
    assert not decoded
    assert list(read_shards(tmp_path / "b")) == list_images(root, lambda _: None)[0]["image_id"].tolist()


def test_disk_full_while_decoding_keeps_what_is_whole(root: Path, tmp_path: Path, decoded: list[str]) -> None:
    """Chunks of single images (50) pass, those of half an archive (150) do not."""
    state = tmp_path / "state"
    command = [sys.executable, "-c", SCRIPT, str(root), str(tmp_path / "a"), str(state), "30000"]
    chunks = 0
    for _ in range(5):  # Dask may begin with both halves of the archive
        assert subprocess.run(command, capture_output=True).returncode != 0
        chunks = len(list(state.rglob("*.arrow")))
        if chunks:
            break
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
    assert not list(state.rglob("*.draft"))
    packed(root, tmp_path / "b", state)
    assert len(decoded) < 700
    assert chunks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size, which grows when it is asked for again."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        remount = ",remount" if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}{remount}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system; a limit on file sizes is tested above")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # the failed run's maps are open yet


@pytest.mark.parametrize("size", ["100k", "320k"])
def test_full_disk(
    root: Path, tmp_path: Path, decoded: list[str], small_disk: Callable[[str], Path], size: str
) -> None:
    """100k: full while images are decoded; 320k: full while shards are written."""
    disk = small_disk(size)
    images, _ = list_images(root, lambda _: None)
    with pytest.raises(OSError, match="No space left") as caught:
        packed(root, disk / "a", disk / "state")
    assert caught.value.errno == errno.ENOSPC
    first = len(decoded)
    shutil.rmtree(disk / "a")  # as the step does with its draft
    small_disk("10m")
    decoded.clear()
    packed(root, disk / "b", disk / "state")
    assert list(read_shards(disk / "b")) == images["image_id"].tolist()
    assert len(decoded) < first if size == "320k" else len(decoded) < len(images)


def test_two_runs_at_once_share_a_store(root: Path, tmp_path: Path) -> None:
    limit = str(resource.RLIM_INFINITY)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(root), str(tmp_path / name), str(tmp_path / "state"), limit]
        )
        for name in "ab"
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert read_shards(tmp_path / "a").keys() == read_shards(tmp_path / "b").keys()


def test_truncated_archive_is_named(root: Path, tmp_path: Path) -> None:
    images, _ = list_images(root, lambda _: None)
    path = root / "images_001.tar.gz"
    path.write_bytes(path.read_bytes()[:20000])
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(UserError, match=r"images_001\.tar\.gz is truncated or damaged"),
        open_pool(DaskTarget()) as pool,
    ):
        pack(root, images, PreprocessConfig(size=16, shard_images=9), tmp_path / "out", pool, lambda _: None)


def test_raw_images_are_only_read(root: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}
    packed(root, tmp_path / "out", tmp_path / "state")
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}
    shutil.rmtree(tmp_path / "state")
    assert gzip.decompress((root / "images_001.tar.gz").read_bytes())
