"""Streams the images to predict: files, folders (also as a PACS exports them), archives, standard input, prepared sets.

One image is in memory at a time. DICOM files are recognised by their content where their name says nothing.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from ral.data.dataset import open_dataset
from ral.data.images.archives import check_size, explain_damage, members
from ral.data.images.decode import dicom_start
from ral.data.images.file_names import ARCHIVE_ENDINGS, is_hidden, is_image, shown
from ral.errors import UserError

logger = logging.getLogger(__name__)

STDIN = "-"
# Leading bytes that show whether a file is DICOM, and whether a stream is a tar.
DICOM_HEAD_BYTES, TAR_HEAD_BYTES = 136, 512
# Images read at once from a prepared set.
PREPARED_BLOCK = 64


class InputImage(NamedTuple):
    """An image as it was read, before decoding; one of `content`, `pixels` and `error` is set."""

    name: str
    """As in the output: the path below the folder or inside the archive; printable, on one line."""
    content: bytes = b""
    """The file: PNG, JPEG or DICOM."""
    pixels: np.ndarray | None = None
    """uint8 [size, size] of a prepared set."""
    error: str = ""
    """Why it could not be read."""
    view: str = ""
    """PA, AP, LATERAL, …; "" if it is not known before decoding."""


def read_inputs(inputs: Sequence[str | Path], stdin: IO[bytes] | None = None) -> Iterator[InputImage]:
    """Yield the images of all inputs, in a fixed order.

    Args:
        inputs: files, folders, archives, prepared sets, or `-` for standard input: a tar (plain or gzipped), a single
            image, or one path per line.
        stdin: standard input; None for that of the process.

    Raises:
        UserError: an input does not exist, or an archive is damaged or unsafe.
    """
    for text in dict.fromkeys(map(str, inputs)):
        if text == STDIN:
            yield from _read_stdin(stdin or sys.stdin.buffer)
        else:
            yield from _read_input(Path(text), f"{text.rstrip('/')}/" if len(inputs) > 1 else "")


def count_inputs(inputs: Sequence[str | Path]) -> int | None:
    """Number of images that `read_inputs` will look at; None where only reading them tells (archives, stdin)."""
    total = 0
    for text in dict.fromkeys(map(str, inputs)):
        path = Path(text)
        if text == STDIN or not path.exists() or _is_archive(path):
            return None
        if is_prepared(path):
            total += len(open_dataset(path))
        elif path.is_dir():
            total += sum(1 for _ in _files(path, warn=False))
        else:
            total += 1
    return total


def is_prepared(path: Path) -> bool:
    """Whether a path is the output folder of the step preprocess."""
    return (path / "dataset.json").is_file() and (path / "shards").is_dir()


def png(image: "np.ndarray | Image.Image") -> bytes:
    """An image in memory as a PNG file, so that it is decoded as training decodes files; no pixel changes.

    Args:
        image: uint8 or uint16 gray values [height, width], uint8 RGB [height, width, 3], or an image of Pillow.

    Raises:
        UserError: it is of another type or shape.
    """
    options = {}
    if isinstance(image, np.ndarray):
        gray = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
        if not gray and not (image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8):
            raise UserError(
                f"An array of type {image.dtype} and shape {image.shape} is not an image. Pass uint8 or uint16 gray "
                "values [height, width], or uint8 RGB [height, width, 3]; scale other values to one of them."
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    elif exif := image.info.get("exif"):
        options["exif"] = exif  # has the orientation
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=0, **options)
    return stream.getvalue()


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_ENDINGS)


def _read_input(path: Path, prefix: str) -> Iterator[InputImage]:
    if not path.exists():
        raise UserError(f"{shown(path)} does not exist. Name an image, a folder or an archive.")
    if is_prepared(path):
        yield from _read_prepared(path, prefix)
    elif path.is_dir():
        for name in _files(path):
            image = _read_file(path / name, prefix + name, sniff=not is_image(name))
            if image is not None:
                yield image
    elif _is_archive(path):
        with path.open("rb") as stream, explain_damage(path):
            yield from _read_archive(path, stream, prefix)
    else:
        image = _read_file(path, str(path), sniff=False)
        assert image is not None
        yield image


def _read_archive(
    path: Path, stream: IO[bytes], prefix: str, kind: str | None = None
) -> Iterator[InputImage]:
    for member in members(path, stream, may_be_image=_may_be_image, kind=kind):
        content = member.stream.read(member.size)
        if is_image(member.name) or dicom_start(content) is not None:
            yield InputImage(shown(prefix + member.name), content)


def _read_prepared(folder: Path, prefix: str) -> Iterator[InputImage]:
    dataset = open_dataset(folder)
    ids = dataset.studies["image_id"].tolist()
    views = dataset.studies["view"].astype(str).tolist() if "view" in dataset.studies else [""] * len(ids)
    for start in range(0, len(ids), PREPARED_BLOCK):
        rows = np.arange(start, min(start + PREPARED_BLOCK, len(ids)))
        for row, pixels in zip(rows.tolist(), dataset.gather(rows), strict=True):
            yield InputImage(shown(prefix + ids[row]), pixels=pixels, view=views[row])


def _files(folder: Path, warn: bool = True) -> Iterator[str]:
    """Paths below a folder, with `/`, of files that may be images; sorted within each folder. Links to folders are
    not followed.
    """
    skipped = 0
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(current).relative_to(folder)
        for name in sorted(names):
            if _may_be_image(name):
                yield (below / name).as_posix()
            skipped += name.lower().endswith(ARCHIVE_ENDINGS)
    if skipped and warn:
        logger.warning(
            "%d archives in %s are not read. To read them, name them: ral predict %s/*.tar.gz",
            skipped,
            folder,
            folder,
        )


def _may_be_image(name: str) -> bool:
    """Whether a file can be an image, by its name: of a known type, or without a type as PACS export DICOM files
    (IM00001, or a UID such as 1.2.840.113619.2).
    """
    if is_image(name):
        return True
    base = name.rpartition("/")[2]
    suffix = base.rpartition(".")[2] if "." in base else ""
    return not is_hidden(name) and base.upper() != "DICOMDIR" and (not suffix or suffix.isdigit())


def _read_file(path: Path, name: str, sniff: bool) -> InputImage | None:
    """Read a file; None if `sniff` and it is not DICOM."""
    name = shown(name)
    try:
        check_size(f"Image {shown(path)}", path.stat().st_size)
        with path.open("rb") as stream:
            head = stream.read(DICOM_HEAD_BYTES)
            if sniff and dicom_start(head) is None:
                return None
            return InputImage(name, head + stream.read())
    except OSError as error:
        return InputImage(name, error=f"cannot be read ({os.strerror(error.errno or 0)})")
    except UserError as error:
        return InputImage(name, error=str(error))


def _read_stdin(stream: IO[bytes]) -> Iterator[InputImage]:
    reader = io.BufferedReader(stream, TAR_HEAD_BYTES * 4) if isinstance(stream, io.RawIOBase) else stream
    head = reader.peek(TAR_HEAD_BYTES)  # type: ignore[attr-defined]
    kind = "gzip" if head.startswith(b"\x1f\x8b") else "tar" if head[257:262] == b"ustar" else None
    if kind:
        source = Path("standard input")
        with explain_damage(source):
            yield from _read_archive(source, reader, "", kind)
    elif head.startswith((b"\x89PNG", b"\xff\xd8")) or head[128:132] == b"DICM":
        yield InputImage(STDIN, reader.read())
    else:
        for line in reader:
            path = Path(os.fsdecode(line.rstrip(b"\r\n")))
            if path.name:
                yield from _read_input(path, f"{path}/")
