"""From the bytes of a film to a square grayscale image of fixed size, and shards of such images."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from ral.errors import UserError

# A film is never near this (a 4k × 4k one has 16.8 M). Pillow would only warn, so its own limit is off.
MOST_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None

# Pillow's modes of 8 bits and less.
EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")


def decode(content: bytes, size: int, name: str) -> np.ndarray:
    """Decode one film to uint8 [size, size], grayscale, stretched to the square by area averaging.

    Args:
        content: the film file, PNG or JPEG.
        size: height and width wanted.
        name: where the film comes from, for the error.

    Raises:
        UserError: the content is no image, is cut short, or is far too large to be a film.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(
                    f"{name} is too large to be a film: {image.width} x {image.height} pixels. {_REMEDY}"
                )
            if image.mode not in EIGHT_BIT:  # Pillow would cut a 16-bit film off at 255 and say nothing
                raise UserError(f"{name} has pixels of mode {image.mode}. Convert it to 8 bits per channel.")
            gray = image.convert("L")
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image ({len(content)} bytes). {_REMEDY}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be decoded ({error}). {_REMEDY}") from None
    if gray.size != (size, size):
        gray = gray.resize((size, size), Image.Resampling.BOX)
    return np.asarray(gray)


_REMEDY = "Replace the film, or take its row out of the label table."


def write_shard(path: Path, image_ids: list[str], images: np.ndarray) -> None:
    """Write a shard: one Arrow IPC record batch with image_id and the row's pixels.

    Args:
        path: file to write.
        image_ids: one per row.
        images: uint8 [rows, size, size].
    """
    rows, height, width = images.shape
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(height * width), rows, [None, pa.py_buffer(np.ascontiguousarray(images))]
    )
    batch = pa.record_batch([pa.array(image_ids, pa.string()), pixels], names=["image_id", "pixels"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def open_shard(path: Path, size: int) -> tuple[list[str], np.ndarray]:
    """Memory-map a shard.

    Returns:
        The image ids, and a read-only uint8 view [rows, size, size] of the file; nothing is copied.
    """
    batch = pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
    pixels = np.frombuffer(batch.column("pixels").buffers()[1], np.uint8)
    return batch.column("image_id").to_pylist(), pixels.reshape(batch.num_rows, size, size)
