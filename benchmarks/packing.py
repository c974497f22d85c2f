"""Packing images into shards against bare decoding and resizing of the same images on the same cores.

    python -m benchmarks.packing            # 1,200 images of 1024 x 1024
    python -m benchmarks.packing --quick    # 240 of 768 x 768, within a minute

Bare is a loop over the image files that reads, decodes (Pillow), resizes and discards, with as many threads
as packing has workers. Packing also checks each image's hash, stores it in the decoded image cache, and
writes the shards. Runs are interleaved. Prints a table and, as the last line, JSON: packing_share (images a
second of packing over bare, the worst of 1 and 2 workers, single files), packing_share_gz (the same with one
gzipped archive, which bare does not have to unpack), worker_scaling (images a second with 2 workers over 1,
the worse of the two layouts; limited by the cores that are free), bare_scaling (the same for the bare loop:
what the machine allows), and cpu_share, cpu_share_gz (bare's CPU time over packing's with 1 worker: valid on
a shared machine too).
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller images, within a minute")
    options = parser.parse_args()

import io
import json
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ral.compute.dask_pool import open_pool
from ral.config.dask import DaskTarget
from ral.config.data import PreprocessConfig
from ral.data.images.locate import list_images
from ral.data.images.pack import pack
from ral.memory import keep_freed_memory

SIZE = 224
# Distinct images; the others repeat them with another trailer, which changes the hash of the file but no
# pixel.
DRAWN = 16
# Shards of a run: several per worker, as with any archive large enough for parallel packing.
SHARDS = 4


def draw(images: int, side: int) -> list[bytes]:
    """PNG files that compress about as well as X-rays: smooth shades and noise."""
    rng = np.random.default_rng(0)
    drawn = []
    y, x = np.mgrid[0:side, 0:side] / side
    for _ in range(DRAWN):
        waves = sum(np.sin(rng.uniform(2, 20, 2) @ np.array([x.ravel(), y.ravel()])) for _ in range(6))
        image = 128 + 18 * np.asarray(waves).reshape(side, side) + rng.normal(0, 2.5, (side, side))
        stream = io.BytesIO()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(stream, "PNG")
        drawn.append(stream.getvalue())
    return [drawn[number % DRAWN] + number.to_bytes(4) for number in range(images)]


def lay_out(folder: Path, images: list[bytes]) -> dict[str, Path]:
    """The images as single files, and as one gzipped archive."""
    loose, packed = folder / "files", folder / "archive"
    (loose / "images").mkdir(parents=True)
    packed.mkdir()
    for number, content in enumerate(images):
        (loose / f"images/{number:06}.png").write_bytes(content)
    with tarfile.open(packed / "images_001.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(loose / "images", "images")
    return {"files": loose, "archive": packed}


def bare(root: Path, workers: int) -> None:
    """Read, decode and resize every file."""

    def share(paths: list[Path]) -> None:
        for path in paths:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX))

    paths = sorted((root / "images").iterdir())
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, [paths[number::workers] for number in range(workers)]))


def packing(root: Path, images: pd.DataFrame, workers: int, folder: Path) -> None:
    """Pack the images as the step preprocess does."""
    keep_freed_memory()  # the bare loop profits as well
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = PreprocessConfig(size=SIZE, shard_images=-(-len(images) // SHARDS))
    with open_pool(DaskTarget(workers=workers)) as pool:
        pack(root, images, config, folder, pool, lambda _: None, folder / "state")


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time of a call, in seconds."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    quick = options.quick
    count, side, rounds = (240, 768, 3) if quick else (1200, 1024, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roots = lay_out(folder, draw(count, side))
        lists = {layout: list_images(root, lambda _: None)[0] for layout, root in roots.items()}
        calls: dict[tuple[str, int], Callable[[], None]] = {}
        for workers in (1, 2):
            calls["bare", workers] = partial(bare, roots["files"], workers)
            for layout, root in roots.items():
                calls[layout, workers] = partial(packing, root, lists[layout], workers, folder / "out")
        times: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in calls}
        for call in calls.values():  # warm-up: a virtual machine's memory is slow on first access
            call()
        for _ in range(rounds):
            for key, call in calls.items():
                times[key].append(timed(call))
    wall = {key: statistics.median(wall for wall, _ in runs) for key, runs in times.items()}
    cpu = {key: statistics.median(cpu for _, cpu in runs) for key, runs in times.items()}
    rate = {key: count / seconds for key, seconds in wall.items()}
    print(f"{count} images of {side} x {side} to {SIZE} x {SIZE}, medians of {rounds}")
    print(f"{'':10}{'1 worker':>20}{'2 workers':>20}{'scaling':>10}")
    for kind in ("bare", *roots):
        one, two = rate[kind, 1], rate[kind, 2]
        print(f"{kind:10}{one:13.1f} images/s{two:13.1f} images/s{two / one:10.2f}")
    share = {kind: min(rate[kind, workers] / rate["bare", workers] for workers in (1, 2)) for kind in roots}
    scaling = {kind: rate[kind, 2] / rate[kind, 1] for kind in ("bare", *roots)}
    print(
        json.dumps(
            {
                "packing_share": round(share["files"], 3),
                "packing_share_gz": round(share["archive"], 3),
                "worker_scaling": round(min(scaling[kind] for kind in roots), 2),
                "bare_scaling": round(scaling["bare"], 2),
                "cpu_share": round(cpu["bare", 1] / cpu["files", 1], 3),
                "cpu_share_gz": round(cpu["bare", 1] / cpu["archive", 1], 3),
            }
        )
    )


if __name__ == "__main__":
    main(options)
