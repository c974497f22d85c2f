"""Packs images into pixel shards: decodes new images on Dask's workers, then assembles the shards.

Decoded images are cached in between (`ral.data.images.cache`). After a killed worker, a full disk or a larger
delivery, only images that are not cached are decoded. A worker holds one image and one chunk in memory, or
one shard.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ral.compute.dask_pool import Pool, Report
from ral.config.data import PreprocessConfig
from ral.data.dataset_info import Shard
from ral.data.images.bad_image import BadImage
from ral.data.images.cache import CacheLookup, DamagedChunkError, DecodedImageCache, chunk_images
from ral.data.images.decode import decode_with_note
from ral.data.images.locate import read_images
from ral.data.images.shards import drop_images, same_pixels, write_shard
from ral.errors import UserError

# Maximum bytes of pixels in a shard: the memory that a worker needs to assemble it.
SHARD_BYTES = 512 << 20

# Maximum images per task if images can be read independently, and minimum tasks per worker.
MAX_TASK_IMAGES, MIN_TASKS_PER_WORKER = 1024, 4

# With fewer archives per worker, archives are divided into several tasks, so that all workers stay busy.
ARCHIVES_PER_WORKER = 4

# Time to unpack an image of a gzipped archive that another task decodes, over the time to unpack and decode one.
SKIP_COST = 0.04

# A damaged chunk is decoded again; repeated damage means a bad disk.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class PackResult:
    """Result of packing images.

    Attributes:
        shards: name, images and SHA-256 of each shard.
        good: for each image, whether it is in the shards.
        sums: int64 [good images, 2], sum of the pixels and of their squares.
        reason: for each bad image, the fault, worded the same for all images with it.
        explained: the same with the specifics of the image.
        notes: for each image, keys of `ral.data.images.decode.NOTES`, usually "".
    """

    shards: list[Shard]
    good: np.ndarray
    sums: np.ndarray
    reason: list[str]
    explained: list[str]
    notes: list[str]

    def same_pixels(self, folder: Path, size: int) -> "pd.Series[str]":
        """Find packed images with identical pixels, see `ral.data.images.shards.same_pixels`."""
        return same_pixels([folder / shard.name for shard in self.shards], size, self.sums)

    def without(self, leaves: np.ndarray, folder: Path, size: int) -> "PackResult":
        """The result as if some good images had not been packed; rewrites the shards.

        Args:
            leaves: for each good image, whether it leaves, bool.
            folder: folder of the shards.
            size: height and width of an image.
        """
        good = self.good.copy()
        good[np.flatnonzero(self.good)[leaves]] = False
        return replace(
            self,
            shards=drop_images(folder, self.shards, ~leaves, size),
            good=good,
            sums=self.sums[~leaves],
            notes=[note if stays else "" for note, stays in zip(self.notes, good, strict=True)],
        )


def pack(
    root: Path,
    images: pd.DataFrame,
    config: PreprocessConfig,
    out: Path,
    pool: Pool,
    progress: Report,
    state_dir: Path | None = None,
) -> PackResult:
    """Decode images that are not cached, and write the shards of all images.

    Args:
        root: the data folder.
        images: rows of `ral.data.images.locate.list_images`, in its order, which the shards keep. An optional
            column `invert` (bool) marks PNG and JPEG images whose high values are dark.
        config: how images are prepared, images per shard, handling of bad images.
        out: folder that gets `shards/`. Remote workers need access to it, `root` and `state_dir`.
        pool: executes the tasks.
        progress: called with the number of images newly decoded or found in the cache.
        state_dir: folder of the cache for later runs; None caches only until the shards are written.

    Raises:
        UserError: an image is bad and `on_bad_image` is fail, too many images are bad, an image has changed
            since it was listed, or an archive is damaged.
        OSError: the disk is full, or not writable. Decoded images are cached for the next run.
    """
    # Use absolute paths: workers that were started elsewhere have another working directory.
    folder = (out / "shards").absolute()
    folder.mkdir()
    if state_dir is None:
        cache = DecodedImageCache(folder.parent / ".decoded", config.size)
    else:
        cache = DecodedImageCache.open(state_dir.absolute(), config.size, config.fit, config.range)
    packer = _Packer(root.absolute(), _with_keys(images), config, cache, pool)
    for attempt in range(MAX_ATTEMPTS):
        lookup = packer.decode(progress if attempt == 0 else _no_progress)  # count each image once
        good = packer.usable(lookup)
        shards = packer.write_shards(lookup, good, folder)
        if shards is not None:
            break
    else:
        raise UserError(
            f"{cache.folder}: decoded images were damaged right after they were written. Check the disk.",
            kind="disk",
        )
    if state_dir is None:
        for path in cache.folder.iterdir():
            path.unlink()
        cache.folder.rmdir()
    bad = np.flatnonzero(~good)
    return PackResult(
        shards=[written.shard for written in shards],
        good=good,
        sums=np.concatenate([written.sums for written in shards]),
        reason=[f"image {lookup.reason[index]}" for index in bad],
        explained=[f"image {lookup.reason[index]} ({lookup.detail[index]})" for index in bad],
        notes=lookup.note,
    )


@dataclass(frozen=True)
class _Packer:
    """Images to pack, how, and where they are cached.

    Attributes:
        root: the data folder.
        images: rows of the list of images, with their cache keys.
        config: how images are prepared.
        cache: cache of decoded images.
        pool: executes the tasks.
    """

    root: Path
    images: pd.DataFrame
    config: PreprocessConfig
    cache: DecodedImageCache
    pool: Pool

    def decode(self, report: Report) -> CacheLookup:
        """Decode the images that are not cached; returns where all images are.

        Raises:
            UserError: an image is bad and `on_bad_image` is fail, or the raw data has changed.
        """
        lookup = self.cache.find(self.images["key"])
        missing = np.flatnonzero(lookup.chunk < 0)
        report(len(self.images) - len(missing))
        if self.config.on_bad_image == "fail":
            _raise_first_fault(self.root, self.images, lookup)
        if not len(missing):
            return lookup
        tasks = _tasks(self.images.iloc[missing], self.pool.workers)
        items = [(self.root, task, self.cache.folder, self.config) for task in tasks]
        self.pool.run(decode_task, items, [len(task) for task in tasks], report)
        return self.cache.find(self.images["key"])

    def usable(self, lookup: CacheLookup) -> np.ndarray:
        """Which images are not bad, bool [images].

        Raises:
            UserError: more images are bad than `max_bad_fraction` allows, or all are.
        """
        good = np.array([not reason for reason in lookup.reason], bool)
        _check_bad_fraction(self.root, good, self.images, lookup, self.config)
        return good

    def write_shards(
        self, lookup: CacheLookup, good: np.ndarray, folder: Path
    ) -> "list[WrittenShard] | None":
        """Write the shards of the good images; None if a chunk was damaged and must be decoded again."""
        shard_images = max(1, min(self.config.shard_images, SHARD_BYTES // self.config.size**2))
        rows = np.flatnonzero(good)
        items = []
        for number, start in enumerate(range(0, len(rows), shard_images)):
            part = rows[start : start + shard_images]
            used, chunk = np.unique(lookup.chunk[part], return_inverse=True)
            parts = ShardParts(
                path=folder / f"{number:05}.arrow",
                image_ids=self.images["image_id"].iloc[part].tolist(),
                chunk_names=[lookup.names[index] for index in used],
                chunk=chunk,
                row=lookup.row[part],
            )
            items.append((self.cache.folder, self.config.size, parts))
        written: list[WrittenShard | None] = self.pool.run(
            write_one_shard, items, [0] * len(items), _no_progress
        )
        complete = [shard for shard in written if shard is not None]
        return complete if len(complete) == len(written) else None


def _with_keys(images: pd.DataFrame) -> pd.DataFrame:
    """Add `invert` and the cache `key`, which covers content and inversion."""
    if "invert" not in images:
        return images.assign(invert=False, key=images["hash"])
    return images.assign(key=images["hash"].where(~images["invert"], images["hash"] + "-inverted"))


def _no_progress(_: int) -> None:
    """Ignore progress."""


def image_name(root: Path, path: str, member: str) -> str:
    """Describe an image and its location, for errors."""
    return f"Image {member.rpartition('/')[2]} in {root}/{path}" if member else f"Image {root}/{path}"


def _name(root: Path, images: pd.DataFrame, index: int) -> str:
    return image_name(root, images["path"].iloc[index], images["member"].iloc[index])


def _raise_first_fault(root: Path, images: pd.DataFrame, lookup: CacheLookup) -> None:
    """Raise the cached error of the first bad image."""
    for index, reason in enumerate(lookup.reason):
        if reason:
            raise BadImage(_name(root, images, index), reason, lookup.detail[index])


def _check_bad_fraction(
    root: Path, good: np.ndarray, images: pd.DataFrame, lookup: CacheLookup, config: PreprocessConfig
) -> None:
    bad = np.flatnonzero(~good)
    if len(bad) > config.max_bad_fraction * len(good):
        first = f"{_name(root, images, bad[0])} {lookup.reason[bad[0]]}"
        raise UserError(
            f"{len(bad)} of {len(good)} images are bad ({len(bad) / len(good):.2%}), more than "
            f"preprocess.max_bad_fraction ({config.max_bad_fraction:.2%}) allows. The first: {first}. "
            "Check how the images were copied, or increase that limit."
        )
    if not good.any():
        raise UserError("No image can be used: all are bad. Check how the images were copied.")


def _tasks(images: pd.DataFrame, workers: int) -> list[pd.DataFrame]:
    """Divide images into tasks, each of one archive or of single files, in stored order.

    A gzipped archive can only be read from its start, so it is one task if there are enough archives. Otherwise all
    images are divided, and a task that starts inside an archive unpacks, but does not decode, what precedes: of a
    single archive, later tasks have fewer images, so that all end together.
    """
    streamed = (images["member"] != "") & ~images["path"].str.endswith(".tar")
    archives = images.loc[streamed, "path"].nunique()
    part = np.zeros(len(images), np.int64)
    in_archive = streamed.to_numpy()
    if archives < ARCHIVES_PER_WORKER * workers:
        shares = (1 - (SKIP_COST if archives == 1 else 0)) ** np.arange(workers)
        ends = np.cumsum(shares) / shares.sum() * in_archive.sum()
        part[in_archive] = np.searchsorted(ends[:-1], np.arange(in_archive.sum()) + 0.5)
    single = int((~in_archive).sum())
    part[~in_archive] = np.arange(single) // max(
        1, min(MAX_TASK_IMAGES, -(-single // (MIN_TASKS_PER_WORKER * workers)))
    )
    archive = images["path"].where(images["member"] != "", "")
    return [task for _, task in images.groupby([archive.to_numpy(), part], sort=False)]


def decode_task(
    root: Path, images: pd.DataFrame, folder: Path, config: PreprocessConfig, report: Report
) -> None:
    """Decode images of one archive, or single files, into chunks of the cache; a Dask task.

    Args:
        root: the data folder.
        images: rows of the list of images, with their cache keys.
        folder: folder of the cache.
        config: how images are prepared, and whether a bad image raises an error or is recorded.
        report: called with the number of newly decoded images.
    """
    size = config.size
    cache = DecodedImageCache(folder, size)
    step = chunk_images(size)
    chunks = [images.iloc[start : start + step] for start in range(0, len(images), step)]
    # An earlier attempt may have written some.
    pending = [chunk for chunk in chunks if not cache.path(chunk["key"].tolist()).exists()]
    report(len(images) - sum(map(len, pending)))
    if not pending:
        return
    contents = read_images(root, pd.concat(pending))
    stack = np.empty((step, size, size), np.uint8)
    for chunk in pending:
        faults, notes = [], []
        columns = (chunk[name].tolist() for name in ("path", "member", "invert"))
        for pixels, path, member, invert in zip(stack, *columns, strict=False):
            fault, note, name = ("", ""), "", image_name(root, path, member)
            try:
                pixels[:], note = decode_with_note(
                    next(contents), size, name, config.fit, config.range, invert
                )
            except BadImage as error:
                if config.on_bad_image == "fail":
                    raise
                pixels[:] = 0
                fault = error.reason, error.detail
            faults.append(fault)
            notes.append(note)
            report(1)
        cache.write(chunk["key"].tolist(), stack[: len(chunk)], faults, notes)


@dataclass(frozen=True)
class ShardParts:
    """Which rows of which chunks of the cache a shard is made of.

    Attributes:
        path: shard to write.
        image_ids: images of the shard.
        chunk_names: names of the chunks that have them.
        chunk: index into `chunk_names` for each image.
        row: row in that chunk for each image.
    """

    path: Path
    image_ids: list[str]
    chunk_names: list[str]
    chunk: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class WrittenShard:
    """A shard, and the sums of its images: int64 [images, 2], of the pixels and of their squares."""

    shard: Shard
    sums: np.ndarray


def write_one_shard(folder: Path, size: int, parts: ShardParts, report: Report) -> WrittenShard | None:
    """Assemble one shard from chunks of the cache; a Dask task.

    Args:
        folder: folder of the cache.
        size: height and width of an image.
        parts: what to write where.
        report: unused; images are counted when they are decoded.

    Returns:
        The shard; None if a chunk was damaged.
    """
    cache = DecodedImageCache(folder, size)
    stack = np.empty((len(parts.image_ids), size, size), np.uint8)
    sums = np.empty((len(parts.image_ids), 2), np.int64)
    for index, name in enumerate(parts.chunk_names):
        selected = np.flatnonzero(parts.chunk == index)
        try:
            content = cache.read(name)
        except DamagedChunkError:
            return None
        stack[selected] = content.images[parts.row[selected]]
        sums[selected] = content.sums[parts.row[selected]]
    digest = write_shard(parts.path, parts.image_ids, stack)
    return WrittenShard(Shard(name=parts.path.name, images=len(parts.image_ids), sha256=digest), sums)


def pixel_statistics(sums: np.ndarray, size: int) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, from exact sums and sums of squares."""
    pixels = len(sums) * size * size
    total, squares = int(sums[:, 0].sum()), int(sums[:, 1].sum())
    mean = total / pixels
    variance = squares / pixels - mean * mean
    return round(mean, 6), round(math.sqrt(max(variance, 1.0)), 6)
