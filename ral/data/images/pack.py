"""Packs images into pixel shards: what was never decoded is decoded on Dask's workers, then shards are put together.

Between the two stands the store (`ral.data.images.cache`), so that a killed worker, a full disk or tomorrow's larger delivery
costs only the images that are not in it yet. Workers hold one image and one chunk at a time, and while a shard is put
together that shard.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ral.compute.dask_pool import Pool, Report
from ral.config.data import PreprocessConfig
from ral.data.images.bad_image import BadImage
from ral.data.images.cache import CacheLookup, Damaged, DecodedImageCache, chunk_images
from ral.data.images.decode import decode_noted
from ral.data.images.locate import read_images
from ral.data.images.shards import write_shard
from ral.errors import UserError

# Most bytes of pixels in a shard: the memory that a worker needs to put one together.
SHARD_BYTES = 512 << 20

# Most images of one task where any image can be read by itself, and the least tasks for each worker.
RUN_IMAGES, RUNS_PER_WORKER = 1024, 4

# Fewer archives than this for each worker are cut into runs, so that all have work to the end.
ARCHIVES_PER_WORKER = 4

# A chunk that is found damaged is decoded again; one that is so again and again means a bad disk.
TRIES = 3


@dataclass(frozen=True)
class Packed:
    """What became of the images.

    `shards` has name, images and SHA-256 of each shard; `good` says of each image whether it is in them; `sums` int64
    [good images, 2] has the sum of an image's pixels and of their squares. For each of the others, `reason` says what
    is wrong in words that are the same for every image with that fault, `explained` with what was found in this one.
    `notes` says of each image what is to be told of it though it is used (`ral.data.images.decode.NOTES`), mostly "".
    """

    shards: list[dict[str, Any]]
    good: np.ndarray
    sums: np.ndarray
    reason: list[str]
    explained: list[str]
    notes: list[str]


def pack(
    root: Path,
    images: pd.DataFrame,
    config: PreprocessConfig,
    out: Path,
    pool: Pool,
    progress: Report,
    state_dir: Path | None = None,
) -> Packed:
    """Decode images that were never decoded before, and write the shards of all.

    Args:
        root: the data folder.
        images: rows of `ral.data.images.locate.list_images`, in its order; the shards keep that order. A column `invert` (bool),
            where there is one, says of which PNG and JPEG images high values are dark.
        config: how images are prepared, images of a shard, what to do about bad images.
        out: folder that gets `shards/`. Workers in other processes must see it, `root` and `state_dir`.
        pool: who does the work.
        progress: told of every image that is decoded or found in the store.
        state_dir: where decoded images are kept for later runs; None keeps them only until the shards are written.

    Raises:
        UserError: an image is bad and `on_bad_image` is fail, too many are, an image has changed since it was listed, or an
            archive is damaged.
        OSError: the disk is full, or not writable. What was decoded is kept: run again.
    """
    # A worker that somebody else started works in another folder: relative paths mean nothing to it.
    folder = (out / "shards").absolute()
    folder.mkdir()
    if state_dir is None:
        store = DecodedImageCache(folder.parent / ".decoded", config.size)
    else:
        store = DecodedImageCache.open(state_dir.absolute(), config.size, config.fit, config.range)
    images = _with_keys(images)
    hashes = images["key"]
    for attempt in range(TRIES):
        report = progress if attempt == 0 else _quiet  # no image counts twice
        found = store.find(hashes)
        missing = np.flatnonzero(found.chunk < 0)
        report(len(images) - len(missing))
        if config.on_bad_image == "fail":
            _refuse(root, images, found)
        if len(missing):
            runs = _runs(images.iloc[missing], pool.workers)
            items = [(root.absolute(), run, store.folder, config) for run in runs]
            pool.run(decode_run, items, [len(run) for run in runs], report)
            found = store.find(hashes)
        good = np.array([not reason for reason in found.reason], bool)
        _check_share(root, good, images, found, config)
        shards = _write_shards(store, found, images["image_id"], good, config, folder, pool)
        if shards is not None:
            break
    else:
        raise UserError(
            f"{store.folder}: decoded images were damaged as soon as they were written. Check that disk.",
            kind="disk",
        )
    if state_dir is None:
        for path in store.folder.iterdir():
            path.unlink()
        store.folder.rmdir()
    bad = np.flatnonzero(~good)
    return Packed(
        shards=[shard for shard, _ in shards],
        good=good,
        sums=np.concatenate([sums for _, sums in shards]),
        reason=[f"image {found.reason[index]}" for index in bad],
        explained=[f"image {found.reason[index]} ({found.detail[index]})" for index in bad],
        notes=found.note,
    )


def _with_keys(images: pd.DataFrame) -> pd.DataFrame:
    """Images with `invert` and `key`: under which each is in the store, by its content and whether it is inverted."""
    if "invert" not in images:
        return images.assign(invert=False, key=images["hash"])
    return images.assign(key=images["hash"].where(~images["invert"], images["hash"] + "-inverted"))


def _quiet(_: int) -> None:
    """No progress."""


def image_name(root: Path, path: str, member: str) -> str:
    """An image for an error: which one, and where it is."""
    return f"Image {member.rpartition('/')[2]} in {root}/{path}" if member else f"Image {root}/{path}"


def _name(root: Path, images: pd.DataFrame, index: int) -> str:
    return image_name(root, images["path"].iloc[index], images["member"].iloc[index])


def _refuse(root: Path, images: pd.DataFrame, found: CacheLookup) -> None:
    """Raise the error of the first image that an earlier run found to be bad."""
    for index, reason in enumerate(found.reason):
        if reason:
            raise BadImage(_name(root, images, index), reason, found.detail[index])


def _check_share(
    root: Path, good: np.ndarray, images: pd.DataFrame, found: CacheLookup, config: PreprocessConfig
) -> None:
    bad = np.flatnonzero(~good)
    if len(bad) > config.max_bad_fraction * len(good):
        first = f"{_name(root, images, bad[0])} {found.reason[bad[0]]}"
        raise UserError(
            f"{len(bad)} of {len(good)} images are bad ({len(bad) / len(good):.2%}), more than "
            f"preprocess.max_bad_fraction ({config.max_bad_fraction:.2%}) allows. The first: {first}. "
            "Check how the images were copied, or raise that share."
        )
    if not good.any():
        raise UserError("No image can be used: every one is bad. Check how the images were copied.")


def _runs(images: pd.DataFrame, workers: int) -> list[pd.DataFrame]:
    """Cut images into tasks, each of one archive or of single files, in stored order.

    A gzipped archive can only be read from its front, so it stays whole if there are enough of them; the workers else
    share all of them out evenly, and whoever begins in the middle of one unpacks what is before without decoding it.
    """
    streamed = (images["member"] != "") & ~images["path"].str.endswith(".tar")
    many = images.loc[streamed, "path"].nunique() >= ARCHIVES_PER_WORKER * workers
    share = np.zeros(len(images), np.int64)
    inside = streamed.to_numpy()
    if not many:
        share[inside] = np.arange(inside.sum()) * workers // max(1, inside.sum())
    single = int((~inside).sum())
    share[~inside] = np.arange(single) // max(1, min(RUN_IMAGES, -(-single // (RUNS_PER_WORKER * workers))))
    place = images["path"].where(images["member"] != "", "")
    return [run for _, run in images.groupby([place.to_numpy(), share], sort=False)]


def decode_run(
    root: Path, images: pd.DataFrame, folder: Path, config: PreprocessConfig, report: Report
) -> None:
    """Decode images of one archive, or single ones, into chunks of the store. A task for a worker.

    Args:
        root: the data folder.
        images: rows of the list of images, with their keys in the store.
        folder: the store's.
        config: how images are prepared, and whether a bad one is an error or remembered as bad.
        report: told of every image.
    """
    size = config.size
    store = DecodedImageCache(folder, size)
    step = chunk_images(size)
    chunks = [images.iloc[start : start + step] for start in range(0, len(images), step)]
    # Another worker, killed since, may have written some.
    todo = [chunk for chunk in chunks if not store.path(chunk["key"].tolist()).exists()]
    report(len(images) - sum(map(len, todo)))
    if not todo:
        return
    contents = read_images(root, pd.concat(todo))
    stack = np.empty((step, size, size), np.uint8)
    for chunk in todo:
        faults, notes = [], []
        columns = (chunk[name].tolist() for name in ("path", "member", "invert"))
        for pixels, path, member, invert in zip(stack, *columns, strict=False):
            fault, note, name = ("", ""), "", image_name(root, path, member)
            try:
                pixels[:], note = decode_noted(next(contents), size, name, config.fit, config.range, invert)
            except BadImage as error:
                if config.on_bad_image == "fail":
                    raise
                pixels[:] = 0
                fault = error.reason, error.detail
            faults.append(fault)
            notes.append(note)
            report(1)
        store.write(chunk["key"].tolist(), stack[: len(chunk)], faults, notes)


def _write_shards(
    store: DecodedImageCache,
    found: CacheLookup,
    image_ids: "pd.Series[str]",
    good: np.ndarray,
    config: PreprocessConfig,
    folder: Path,
    pool: Pool,
) -> list[tuple[dict[str, Any], np.ndarray]] | None:
    """Write all shards; None if a chunk was damaged and must be decoded again."""
    most = max(1, min(config.shard_images, SHARD_BYTES // config.size**2))
    rows = np.flatnonzero(good)
    items = []
    for number, start in enumerate(range(0, len(rows), most)):
        part = rows[start : start + most]
        used, chunk = np.unique(found.chunk[part], return_inverse=True)
        names = [found.names[index] for index in used]
        path = folder / f"{number:05}.arrow"
        items.append(
            (store.folder, config.size, path, image_ids.iloc[part].tolist(), names, chunk, found.row[part])
        )
    done = pool.run(write_one_shard, items, [0] * len(items), _quiet)
    return None if any(result is None for result in done) else done


def write_one_shard(
    folder: Path,
    size: int,
    path: Path,
    image_ids: list[str],
    names: list[str],
    chunk: np.ndarray,
    row: np.ndarray,
    report: Callable[[int], None],
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Put one shard together from chunks of the store. A task for a worker.

    Args:
        folder: the store's.
        size: height and width of an image.
        path: shard to write.
        image_ids: its images.
        names: the chunks that have them.
        chunk: which of `names` has each image.
        row: and in which row.
        report: not told anything; images are counted when they are decoded.

    Returns:
        Name, images and SHA-256 of the shard, and its images' sums; None if a chunk was damaged.
    """
    store = DecodedImageCache(folder, size)
    stack = np.empty((len(image_ids), size, size), np.uint8)
    sums = np.empty((len(image_ids), 2), np.int64)
    for index, name in enumerate(names):
        here = np.flatnonzero(chunk == index)
        try:
            content = store.read(name)
        except Damaged:
            return None
        stack[here] = content.images[row[here]]
        sums[here] = content.sums[row[here]]
    digest = write_shard(path, image_ids, stack)
    return {"name": path.name, "images": len(image_ids), "sha256": digest}, sums


def pixel_statistics(sums: np.ndarray, size: int) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of images given their sums and sums of squares; exact until the end."""
    pixels = len(sums) * size * size
    total, squares = int(sums[:, 0].sum()), int(sums[:, 1].sum())
    mean = total / pixels
    variance = squares / pixels - mean * mean
    return round(mean, 6), round(math.sqrt(max(variance, 1.0)), 6)
