"""Writes the phantom data set in the layout of NIH ChestX-ray14: table, archive, lists and boxes."""

import tarfile
from collections.abc import Callable
from pathlib import Path

from ral.config.data import PhantomConfig
from ral.labels import NO_FINDING
from ral.phantom import boxes
from ral.phantom.population import PhantomImage, draw_population
from ral.phantom.signs import draw_with_boxes
from ral.phantom.stored import Gzip, png

# Names and header are NIH's. The header contains commas in its two pairs of brackets, so it splits into eleven fields.
TABLE = "Data_Entry_2017.csv"
ARCHIVE = "images_001.tar.gz"
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
README = "README.txt"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)

# Width of the imaged field in millimetres, for the pixel spacing.
_FIELD_MM = 360

_README_TEXT = """\
PHANTOM IMAGES - NOT X-RAYS OF PEOPLE

Every image in {archive} is a phantom: it was drawn by a program, shows no person, and is marked with the
word PHANTOM. The signs of findings on the images are simplified. Patients, ages and labels in {table} are
made up too. Only the frequencies and co-occurrences of the findings, and the numbers of images per patient, follow the
published table of NIH ChestX-ray14 (Wang et al., CVPR 2017), whose layout this folder uses. Findings rarer than
{floor:g} of the images were raised to that share.

The images are for testing the software. They have no clinical meaning, nor has any result computed on them.

{images} images of {size} x {size} pixels, seed {seed}.
"""


def write_phantom(
    folder: Path, config: PhantomConfig, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Draw the data set into an existing empty folder; the output depends only on `config`.

    `progress` is called with the number of newly finished images.

    Raises:
        OSError: the folder cannot be written.
    """
    images = draw_population(config)
    rows = [HEADER, *(_row(image, config.size) for image in images)]
    _write_lines(folder / TABLE, rows)
    _write_lines(folder / TRAIN_VAL_LIST, [image.image_id for image in images if not image.test])
    _write_lines(folder / TEST_LIST, [image.image_id for image in images if image.test])
    text = _README_TEXT.format(archive=ARCHIVE, table=TABLE, **config.model_dump())
    (folder / README).write_text(text, encoding="utf-8", newline="\n")
    located = _write_archive(folder / ARCHIVE, images, config, progress)
    _write_lines(folder / boxes.TABLE, [boxes.HEADER, *located])


def _row(image: PhantomImage, size: int) -> str:
    """The row of an image in the table."""
    labels = "|".join(image.findings) or NO_FINDING
    spacing = f"{_FIELD_MM / size:.6g}"
    patient = f"{image.follow_up},{image.patient},{image.age},{image.sex},{image.view}"
    return f"{image.image_id},{labels},{patient},{size},{size},{spacing},{spacing}"


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _write_archive(
    path: Path, images: list[PhantomImage], config: PhantomConfig, progress: Callable[[int], object]
) -> list[str]:
    """Draw the images into a gzipped tar, with no time, owner or file name in the headers of either; return the rows of
    the table of boxes.

    It is not compressed; compression would save a third.
    """
    located = []
    with path.open("wb") as raw, Gzip(raw) as packed:
        for image in images:
            pixels, found = draw_with_boxes(image, config.size, config.seed)
            for finding in image.findings:
                located += boxes.rows(image.image_id, finding, found[finding])
            content = png(pixels)
            # A new TarInfo has zero time and owner.
            member = tarfile.TarInfo(f"images/{image.image_id}")
            member.size, member.mode = len(content), 0o644
            fill = bytes(-len(content) % tarfile.BLOCKSIZE)
            packed.write(member.tobuf(tarfile.USTAR_FORMAT) + content + fill)
            progress(1)
        packed.write(bytes(2 * tarfile.BLOCKSIZE))
    return located
