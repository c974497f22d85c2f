"""Pixel shards: Arrow files of fixed-size images with their image ids, memory-mapped when they are read."""

from pathlib import Path

import numpy as np
import pyarrow as pa


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
