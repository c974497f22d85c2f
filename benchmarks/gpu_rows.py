"""Shared by the checks of `benchmarks.gpu`: settings, table rows, device synchronisation."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import Row
from benchmarks.synthetic import write_dataset
from ral.data.dataset import Dataset
from ral.training.distributed import DistributedContext, init_process

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# Images per second have limits for these cards; on others they are only noted.
RATED = ("H100", "H200")
UNRATED = "there is a limit only for full shapes on an H100 or H200"


@dataclass(frozen=True)
class Setting:
    """How a check runs."""

    small: bool
    """Small shapes: for a CPU, or to be quick."""
    backbone: str | None
    """Overrides the check's own network."""
    folder: Path
    """Empty folder for the check's files."""

    @property
    def rated(self) -> bool:
        """Whether images per second are checked against a limit."""
        return not self.small and GPU and any(card in torch.cuda.get_device_name() for card in RATED)

    def shape(
        self, full: tuple[str, int, int], small: tuple[str, int, int] = ("test_resnet", 64, 32)
    ) -> tuple[str, int, int]:
        """Backbone, size in pixels and batch."""
        backbone, size, batch = small if self.small else full
        return self.backbone or backbone, size, batch


def row(what: str, expected: str, measured: Any, result: str, reason: str = "") -> Row:
    """A row of the table."""
    return {"what": what, "expected": expected, "measured": measured, "result": result, "reason": reason}


def at_most(what: str, measured: float, limit: float, reason: str = "") -> Row:
    """A row that passes if the measured value is at most `limit`; NaN fails."""
    return row(what, f"<= {limit:g}", measured, "ok" if measured <= limit else "failed", reason)


def at_least(what: str, measured: float, limit: float, judged: bool = True) -> Row:
    """A row that passes if the measured value is at least `limit`; only noted if not `judged`."""
    if not judged:
        return noted(what, measured, UNRATED)
    return row(what, f">= {limit:g}", measured, "ok" if measured >= limit else "failed")


def equal(what: str, measured: Any, expected: Any, reason: str = "") -> Row:
    """A row that passes if the measured value equals the expected one."""
    return row(what, str(expected), measured, "ok" if measured == expected else "failed", reason)


def noted(what: str, measured: Any, reason: str = "") -> Row:
    """A row that cannot fail."""
    return row(what, "-", measured, "noted", reason)


def not_applicable(what: str, reason: str) -> Row:
    """A row that does not apply here."""
    return row(what, "-", "-", "not applicable", reason)


def synchronize() -> None:
    """Wait for the device."""
    if GPU:
        torch.cuda.synchronize()


def free_memory() -> None:
    """Release unused GPU memory and reset the peak statistics."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def prepare(setting: Setting, size: int, images: int) -> tuple[DistributedContext, Dataset]:
    """Initialise a process group of one process, and write random images."""
    folder = setting.folder / "prepared"
    folder.mkdir()
    return join(), write_dataset(folder, images, size)


def join() -> DistributedContext:
    """The process group of this process alone, created once."""
    global _context
    if _context is None:
        _context = init_process()
    return _context


_context: DistributedContext | None = None


def milliseconds(step: Callable[[], None], steps: int = 10) -> float:
    """Mean time of a step, without synchronisation between steps."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - start) / steps * 1e3
