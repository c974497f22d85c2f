"""Prefetching: a thread gathers pixels from the shards while the device computes earlier micro-batches."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ral.data.dataset import Dataset

Item = TypeVar("Item")

# Micro-batches held in memory ahead of the consumer.
PREFETCH_DEPTH = 3


class MicroBatch(NamedTuple):
    """The input of one forward and backward pass on one rank."""

    step: int
    """Optimizer step within the epoch, from 0."""
    images: Tensor
    """uint8 [images, size, size]."""
    targets: Tensor
    """float32 [images, findings]; NaN where unknown."""
    maps: Tensor
    """float32 [images, 2, 3]: affine maps of the augmentation."""
    labels: float
    """Divisor of the loss, from the whole global batch."""
    first: int
    """Position of its first image in the global batch."""
    total: int
    """Images of the global batch."""
    seed: int
    """For dropout and stochastic depth."""
    mixup: float | None = None
    """Share of the first half of images, targets and maps in their mixture with the second half; None: no mixture."""


def gather(dataset: Dataset, rows: np.ndarray, pin: bool) -> Tensor:
    """Pixels of arbitrary rows, uint8 [rows, size, size]; `pin` puts them in pinned memory for asynchronous copies."""
    if not pin:
        return torch.from_numpy(dataset.gather(rows))
    size = dataset.info.size
    images = torch.empty((len(rows), size, size), dtype=torch.uint8, pin_memory=True)
    dataset.gather(rows, images.numpy())
    return images


def pinned(tensor: Tensor, pin: bool) -> Tensor:
    """The tensor, or a copy of it in pinned memory if `pin`."""
    return tensor.pin_memory() if pin else tensor


def to_device(batches: Iterable[MicroBatch], stream: "torch.cuda.Stream | None") -> Iterator[MicroBatch]:
    """Copy micro-batches to the stream's GPU, each while the previous one is computed; None leaves them on the CPU."""
    if stream is None:
        yield from batches
        return
    device = stream.device
    pending: tuple[MicroBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = {name: getattr(batch, name).to(device, non_blocking=True) for name in _TENSORS}
            copied = stream.record_event()
        if pending is not None:
            yield _wait_for_copy(*pending)
        pending = batch._replace(**copies), copied
    if pending is not None:
        yield _wait_for_copy(*pending)


def _wait_for_copy(batch: MicroBatch, event: torch.cuda.Event) -> MicroBatch:
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for name in _TENSORS:
        getattr(batch, name).record_stream(current)
    return batch


_TENSORS = ("images", "targets", "maps")


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread, up to PREFETCH_DEPTH items ahead. A context manager; leaving it ends the
    thread.

    Args:
        source: returns the iterator; called in the thread.
    """

    def __init__(self, source: Callable[[], Iterator[Item]]) -> None:
        self._source = source
        self._items: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(PREFETCH_DEPTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._drain()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _drain(self) -> Iterator[Item]:
        while True:
            item, error = self._items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def _fill(self) -> None:
        try:
            for item in self._source():
                if not self._put((item, None)):
                    return
            self._put((None, None))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
