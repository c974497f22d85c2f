"""What the checks of `benchmarks.gpu` share: their setting, the rows of the table, and waiting for the device."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import write_dataset
from ral.data.dataset import Dataset
from ral.training.engine import init_process
from ral.training.loop import DistributedContext

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# Images per second are stated for these cards; on others they are noted.
RATED = ("H100", "H200")
UNRATED = "a value is stated only for full shapes on an H100 or H200"


@dataclass(frozen=True)
class Setting:
    """How a check runs."""

    small: bool
    """Small shapes: for a CPU, or to be quick."""
    backbone: str | None
    """Network in place of the check's own."""
    folder: Path
    """Empty folder for the check's files."""

    @property
    def rated(self) -> bool:
        """Whether images per second are judged."""
        return not self.small and GPU and any(card in torch.cuda.get_device_name() for card in RATED)

    def shape(
        self, full: tuple[str, int, int], small: tuple[str, int, int] = ("test_resnet", 64, 32)
    ) -> tuple[str, int, int]:
        """Backbone, size in pixels and batch."""
        backbone, size, batch = small if self.small else full
        return self.backbone or backbone, size, batch


def row(what: str, expected: str, measured: Any, result: str, reason: str = "") -> dict[str, Any]:
    """A row of the table."""
    return {"what": what, "expected": expected, "measured": measured, "result": result, "reason": reason}


def at_most(what: str, measured: float, limit: float, reason: str = "") -> dict[str, Any]:
    """A row that is well if the measured value is at most `limit`; NaN is not."""
    return row(what, f"<= {limit:g}", measured, "ok" if measured <= limit else "failed", reason)


def at_least(what: str, measured: float, limit: float, judged: bool = True) -> dict[str, Any]:
    """A row that is well if the measured value is at least `limit`; noted only, if it is not to be judged."""
    if not judged:
        return noted(what, measured, UNRATED)
    return row(what, f">= {limit:g}", measured, "ok" if measured >= limit else "failed")


def equal(what: str, measured: Any, expected: Any, reason: str = "") -> dict[str, Any]:
    """A row that is well if the measured value is the expected one."""
    return row(what, str(expected), measured, "ok" if measured == expected else "failed", reason)


def noted(what: str, measured: Any, reason: str = "") -> dict[str, Any]:
    """A row that is not judged."""
    return row(what, "-", measured, "noted", reason)


def not_applicable(what: str, reason: str) -> dict[str, Any]:
    """A row that means nothing here."""
    return row(what, "-", "-", "not applicable", reason)


def synchronize() -> None:
    """Wait for the device."""
    if GPU:
        torch.cuda.synchronize()


def free_memory() -> None:
    """Give back the memory of what was deleted, and count peaks anew."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def prepare(setting: Setting, size: int, images: int) -> tuple[DistributedContext, Dataset]:
    """Join the process group of this one process, and write random images."""
    folder = setting.folder / "prepared"
    folder.mkdir()
    return DistributedContext(*init_process()), write_dataset(folder, images, size)


def milliseconds(step: Callable[[], None], steps: int = 10) -> float:
    """Time of a step, steps queued one after the other."""
    synchronize()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - begun) / steps * 1e3
