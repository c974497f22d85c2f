"""Images per second from shards, against decoding every image in every epoch, on the same cores.

    python -m benchmarks.input_pipeline            # 224 px from images of 1024 px, about two minutes
    python -m benchmarks.input_pipeline --quick    # fewer images

The peer works like the official RAL repository: a torch DataLoader whose workers open each PNG with Pillow,
resize it and convert it to a normalised float tensor; one worker per core. Ours gathers batches of random
rows from memory-mapped shards and normalises them. Both deliver float32 batches [256, 1, 224, 224]; runs
alternate, and rates are medians. Prints a table and, as the last line, JSON: input_ratio (without
augmentation), augmented_ratio (with the same affine maps, per image in the peer and per batch in ours).
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer images, under a minute")
    options = parser.parse_args()

import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from benchmarks.synthetic import write_dataset
from ral.config.data import PhantomConfig
from ral.config.train import AugmentConfig
from ral.data.dataset import Dataset
from ral.data.images.locate import list_images, read_images
from ral.inference.prefetch import Prefetcher, gather
from ral.models.inputs import normalised
from ral.phantom.archive import write_phantom
from ral.training.augment import augmented, draw_transforms, transform

SIZE, RAW, BATCH, CORES = 224, 1024, 256, 2
AUGMENT = AugmentConfig(flip=0.5, rotate=8.0, shift=0.06, zoom=0.1)


class Statistics(NamedTuple):
    """Of the pixels, in gray levels."""

    pixel_mean: float = 127.5
    pixel_deviation: float = 73.9


class Decoded(torch.utils.data.Dataset[Tensor]):
    """Opens, resizes and normalises one image, and augments it if asked."""

    def __init__(self, paths: list[Path], images: int, augment: bool) -> None:
        self.paths, self.images, self.augment = paths, images, augment

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.paths[row % len(self.paths)]) as source:
            small = source.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        image = normalised(torch.from_numpy(np.array(small)).unsqueeze(0), Statistics())
        if self.augment:
            image = transform(image, draw_transforms(1, AUGMENT, torch.Generator().manual_seed(row)))
        return image[0]


def peer(paths: list[Path], images: int, augment: bool) -> float:
    """Images per second of the DataLoader, without its start-up."""
    loader = torch.utils.data.DataLoader(
        Decoded(paths, images + BATCH, augment), BATCH // 4, shuffle=True, num_workers=CORES
    )
    batches = iter(loader)
    next(batches)
    start, done = time.perf_counter(), 0
    for batch in batches:
        done += len(batch)
    return done / (time.perf_counter() - start)


def ours(dataset: Dataset, images: int, augment: bool) -> float:
    """Images per second from shards, an epoch of random order."""
    order = np.resize(np.random.default_rng(0).permutation(len(dataset.studies)), images)

    def batches() -> Iterator[Tensor]:
        for start in range(0, images, BATCH):
            yield gather(dataset, order[start : start + BATCH], pin=False)

    start, done = time.perf_counter(), 0
    generator = torch.Generator().manual_seed(0)
    with Prefetcher(batches) as prefetched:
        for pixels in prefetched:
            if augment:
                augmented(pixels, draw_transforms(len(pixels), AUGMENT, generator), Statistics())
            else:
                normalised(pixels, Statistics())
            done += len(pixels)
    return done / (time.perf_counter() - start)


def write_images(folder: Path, images: int) -> list[Path]:
    """Phantom images enlarged to 1024 px with noise, as PNG files of about the size of NIH's (0.4 MB)."""
    archive = folder / "archive"
    archive.mkdir()
    write_phantom(archive, PhantomConfig(images=200, size=128, floor=0.009, seed=1))
    listed, _ = list_images(archive, lambda _: None)
    first = listed[listed["path"] == listed["path"].iloc[0]].head(images)
    rng, paths = np.random.default_rng(0), []
    for image_id, content in zip(first["image_id"], read_images(archive, first), strict=True):
        with Image.open(io.BytesIO(content)) as image:
            large = np.asarray(image.resize((RAW, RAW), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(large + rng.normal(0, 1.0, large.shape), 0, 255).astype(np.uint8)
        paths.append(folder / image_id)
        Image.fromarray(noisy).save(paths[-1])
    return paths


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    quick = options.quick
    torch.set_num_threads(CORES)
    rounds, decoded, gathered = (2, 512, 8192) if quick else (5, 1024, 32768)
    print(
        f"{platform.processor() or platform.machine()}, {CORES} cores; {RAW} px images to {SIZE} px batches"
    )
    print(f"{'augmentation':14}{'decode images/s':>16}{'shards images/s':>16}{'ratio':>8}")
    ratios = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, 64)
        (folder / "prepared").mkdir()
        dataset = write_dataset(folder / "prepared", 8192, SIZE)
        ours(dataset, 8192, False)  # load the shards into the page cache, like the images
        for augment in (False, True):
            rates = [(peer(paths, decoded, augment), ours(dataset, gathered, augment)) for _ in range(rounds)]
            peer_rate, our_rate = (statistics.median(part) for part in zip(*rates, strict=True))
            ratios[augment] = round(our_rate / peer_rate, 1)
            print(
                f"{'with' if augment else 'without':14}{peer_rate:16.0f}{our_rate:16.0f}{ratios[augment]:8.1f}"
            )
    print(json.dumps({"input_ratio": ratios[False], "augmented_ratio": ratios[True]}))


if __name__ == "__main__":
    main(options)
