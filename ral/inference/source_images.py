"""Images of a label table, read from the files that its source located."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ral.data.images.decode import decode
from ral.data.images.locate import read_images
from ral.errors import UserError
from ral.inference.images import InputImage
from ral.preparation import Preparation


def image_contents(root: Path, images: pd.DataFrame) -> Iterator[bytes]:
    """The files of images in stored order, one archive after the other."""
    archives = images["path"].where(images["member"] != "", "").tolist()
    for _, rows in itertools.groupby(range(len(images)), key=lambda row: archives[row]):
        yield from read_images(root, images.iloc[list(rows)])


def dark_image(
    image_id: str, content: bytes, view: str, monochrome1: str, preparation: Preparation
) -> InputImage:
    """A PNG or JPEG image that the table marks as MONOCHROME1 (high values are dark)."""
    from ral.data.images.bad_image import BadImage

    if monochrome1 == "fail":
        raise UserError(
            f"{image_id} is MONOCHROME1 according to the table: high values are dark, which PNG and JPEG cannot "
            "express. Set preprocess.monochrome1 in the file of --data to invert or keep (docs/images.md)."
        )
    if monochrome1 == "keep":
        return InputImage(image_id, content, view=view)
    try:
        pixels = decode(content, preparation.size, image_id, preparation.fit, preparation.range, invert=True)
    except BadImage as error:
        return InputImage(image_id, error=f"{error.reason} ({error.detail})")
    return InputImage(image_id, pixels=pixels, view=view)
