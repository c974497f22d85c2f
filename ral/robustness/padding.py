"""The shift `pad`: the source images, prepared with black borders instead of being stretched to a square.

Prepared images do not record the height and width of their source, so the test images are decoded again.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from ral.compute.dask_pool import open_pool
from ral.config.data import DataConfig, PreprocessConfig
from ral.config.environment import Environment
from ral.data.dataset_info import DatasetInfo
from ral.data.images.pack import pack
from ral.data.images.shards import open_shard
from ral.data.privacy import Pseudonymizer
from ral.errors import UserError
from ral.progress import Progress
from ral.robustness.contents import ShiftInfo
from ral.robustness.pixels import Pixels
from ral.robustness.subject import Change, Subject

# Images that are compared at a time.
BLOCK = 512


def unavailable(info: DatasetInfo, config: PreprocessConfig) -> str | None:
    """Why padding cannot be compared with these prepared images; None if it can."""
    if config.fit != "stretch":
        return f"the images were prepared with preprocess.fit {config.fit}, not stretch"
    if info.inverted and config.monochrome1 == "invert":
        return "some images were inverted (preprocess.monochrome1), and it is not recorded which"
    return None


def padded(
    subject: Subject,
    data: DataConfig,
    config: PreprocessConfig,
    images: pd.DataFrame,
    folder: Path,
    environment: Environment,
) -> tuple[ShiftInfo, Change | None]:
    """The shift `pad`, and its pixels as a function of the rows; None if it is not available.

    Arguments are those of `padded_pixels`.
    """
    info = ShiftInfo(name="pad", kind="pad", strength=None, label="Padded, not stretched")
    reason = unavailable(subject.dataset.info, config)
    if reason is None:
        ids = subject.test["image_id"].tolist()
        with TemporaryDirectory(dir=folder) as temporary:
            pixels = padded_pixels(data, config, images, ids, Path(temporary), environment)
        if not _same(pixels, subject):
            return info, lambda _, rows: pixels[rows]
        reason = "all test images are square"
    return info.model_copy(update={"not_available": reason}), None


def _same(pixels: Pixels, subject: Subject) -> bool:
    """Whether pixels are those of the prepared test images; compared in parts, as a test split may fill the memory."""
    return all(
        np.array_equal(
            pixels[start : start + BLOCK], subject.dataset.gather(subject.rows[start : start + BLOCK])
        )
        for start in range(0, len(pixels), BLOCK)
    )


def padded_pixels(
    data: DataConfig,
    config: PreprocessConfig,
    images: pd.DataFrame,
    image_ids: Sequence[str],
    folder: Path,
    environment: Environment,
) -> Pixels:
    """Prepare images anew with `preprocess.fit: pad`.

    Args:
        data: the section data.
        config: the section preprocess of the prepared images.
        images: images.parquet of the step validate: image_id, path, member, offset, hash.
        image_ids: the images to prepare, by their ids in the prepared data.
        folder: for temporary files; Dask's workers need access to it.
        environment: root of the data on this machine, where Dask runs, and the cache of decoded images.

    Returns:
        Pixels uint8 [images, size, size], in the order of `image_ids`.

    Raises:
        UserError: the source images are not on this machine, or not those that were prepared.
    """
    root = Path(environment.located(data).root)
    if not root.is_dir():
        raise UserError(
            f"{root} does not exist: the shift `pad` reads the source images. Set data_root in ral.toml, or "
            "robustness.shifts.pad: false."
        )
    listed = images.assign(image_id=Pseudonymizer.of(data).ids(images["image_id"]))
    wanted = listed[listed["image_id"].isin(image_ids)].reset_index(drop=True)
    if len(wanted) != len(image_ids):
        raise UserError(
            f"{len(image_ids) - len(wanted)} of {len(image_ids)} test images are not among the source images of the "
            "step validate. Run `dvc repro preprocess`."
        )
    pad = config.model_copy(update={"fit": "pad", "on_bad_image": "fail"})
    with open_pool(environment.dask) as pool, Progress("decoding images", len(wanted), "images") as progress:
        packed = pack(root, wanted, pad, folder, pool, progress.add, environment.state_dir)
    place_of = pd.Series(np.arange(len(image_ids)), index=list(image_ids))
    places, first = place_of.loc[wanted["image_id"]].to_numpy(), 0
    pixels: Pixels = np.empty((len(image_ids), config.size, config.size), np.uint8)
    for shard in packed.shards:
        pixels[places[first : first + shard.images]] = open_shard(
            folder / "shards" / shard.name, config.size
        )[1]
        first += shard.images
    return pixels
