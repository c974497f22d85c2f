"""Micro-batches ahead of time: a thread gathers pixels from the shards while the device works on earlier ones."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ral.data.dataset import Dataset

Item = TypeVar("Item")

# Micro-batches gathered ahead; each waits in memory.
PREFETCH_DEPTH = 3


class MicroBatch(NamedTuple):
    """One forward and backward pass of one process."""

    step: int
    """Optimizer step within the epoch, from 0."""
    last: bool
    """Whether the optimizer step is taken after it."""
    images: Tensor
    """uint8 [images, size, size]."""
    targets: Tensor
    """float32 [images, findings]; NaN where unknown."""
    maps: Tensor
    """float32 [images, 2, 3]: the augmentation's affine maps."""
    labels: float
    """What the loss of the whole global batch is divided by."""
    share: float
    """This micro-batch's images as a share of the global batch."""
    seed: int
    """For dropout and stochastic depth."""


def gather(dataset: Dataset, rows: np.ndarray, pin: bool) -> Tensor:
    """Pixels of arbitrary rows, uint8 [rows, size, size]; in pinned memory if asked, from where copies can overlap."""
    if not pin:
        return torch.from_numpy(dataset.gather(rows))
    size = dataset.metadata["size"]
    images = torch.empty((len(rows), size, size), dtype=torch.uint8, pin_memory=True)
    dataset.gather(rows, images.numpy())
    return images


def to_device(batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Copy micro-batches to the device, on CUDA each while the one before it is computed."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[MicroBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = {name: getattr(batch, name).to(device, non_blocking=True) for name in _TENSORS}
            arrived = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = batch._replace(**copies), arrived
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: MicroBatch, event: torch.cuda.Event) -> MicroBatch:
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for name in _TENSORS:
        getattr(batch, name).record_stream(current)
    return batch


_TENSORS = ("images", "targets", "maps")


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread, a few items ahead; use it as a context manager, which ends the thread.

    Args:
        source: makes the iterator; called in the thread.
    """

    def __init__(self, source: Callable[[], Iterator[Item]]) -> None:
        self._source = source
        self._items: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(PREFETCH_DEPTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)

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
        except BaseException as error:  # noqa: BLE001 - it is raised again where the items are taken
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
