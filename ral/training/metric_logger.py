"""Training metrics in runs/<id>/: throughput, the loss of every step; optional files for TensorBoard and DVCLive."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ral.errors import UserError
from ral.extras import install_command
from ral.files import atomic_write
from ral.training.state import EpochRecord

LOSS = "train/loss"


class MetricSink(Protocol):
    """A library that metrics are logged with, besides the tables of `MetricLogger`."""

    def epoch(self, record: EpochRecord, losses: Sequence[float], step: int) -> None:
        """Log an epoch; arguments as for `MetricLogger.epoch`."""


class MetricLogger:
    """Writes speed.csv (a row per epoch) and steps.csv (a row per optimizer step that was not skipped).

    Args:
        folder: the run's folder.
        sinks: libraries that log the same metrics.
    """

    def __init__(self, folder: Path, sinks: Sequence[MetricSink] = ()) -> None:
        self.folder, self.sinks = folder, sinks

    def epoch(
        self, record: EpochRecord, images: int, seconds: float, losses: Sequence[float], step: int
    ) -> None:
        """Log an epoch. An epoch that a resumed run repeats replaces what was logged of it.

        Args:
            record: the epoch's row of history.csv.
            images: images trained on since this process started or resumed the epoch.
            seconds: time spent on these images.
            losses: loss of each step of the epoch.
            step: optimizer steps before the epoch.
        """
        number = record.epoch
        speed = [f"{number},{images},{seconds:.3f},{images / max(seconds, 1e-9):.1f}"]
        _replace(self.folder / "speed.csv", "epoch,images,seconds,images_per_second", number, speed)
        lines = [f"{number},{index},{loss!r}" for index, loss in enumerate(losses, 1)]
        _replace(self.folder / "steps.csv", "epoch,step,loss", number, lines)
        for sink in self.sinks:
            sink.epoch(record, losses, step)


class TensorBoard:
    """Writes files for TensorBoard.

    Args:
        folder: where to write them.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                f"training.tensorboard needs the tensorboard package: {install_command('tensorboard')}"
            ) from None
        self._board: Any = SummaryWriter(str(folder))  # torch has no type hints for it

    def epoch(self, record: EpochRecord, losses: Sequence[float], step: int) -> None:
        """Log an epoch; arguments as for `MetricLogger.epoch`."""
        for index, loss in enumerate(losses, 1):
            self._board.add_scalar(LOSS, loss, step + index)
        for name, value in _metrics(record):
            self._board.add_scalar(name, value, record.epoch)
        self._board.flush()


class DVCLive:
    """Writes DVCLive's files: metrics.json with the last values, and a table of each metric for `dvc plots`.

    Nothing is sent, and neither Git nor DVC's experiments are touched: `Live.end` would do that. A resumed run adds to
    the files of its folder.

    Args:
        folder: where to write them.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        os.environ.setdefault("DVC_STUDIO_OFFLINE", "1")  # DVCLive posts to DVC Studio where there is a token
        try:
            from dvclive import Live
        except ImportError:
            raise UserError(
                f"training.dvclive needs the dvclive package: {install_command('dvclive')}"
            ) from None
        self._resumed = (folder / "metrics.json").exists()
        self._live: Any = Live(dir=str(folder), resume=self._resumed, dvcyaml=None, save_dvc_exp=False)
        self._tables = folder / "plots" / "metrics"

    def epoch(self, record: EpochRecord, losses: Sequence[float], step: int) -> None:
        """Log an epoch; arguments as for `MetricLogger.epoch`."""
        if self._resumed:  # this epoch may have been logged before the interruption
            for table in sorted(self._tables.rglob("*.tsv")):
                _drop_after(table, step if table == self._tables / f"{LOSS}.tsv" else record.epoch - 1)
            self._resumed = False
        for index, loss in enumerate(losses, 1):
            self._live.step = step + index
            self._live.log_metric(LOSS, loss)
        self._live.step = record.epoch
        for name, value in _metrics(record):
            self._live.log_metric(name, value)
        self._live.make_summary()


def _metrics(record: EpochRecord) -> Iterator[tuple[str, float]]:
    """The metrics of an epoch, by the name under which they are logged."""
    for name, value in asdict(record).items():
        if isinstance(value, float):
            yield f"epoch/{name}", value


def _drop_after(path: Path, step: int) -> None:
    """Drop the rows of a table of DVCLive whose step is above `step`."""
    with path.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream, delimiter="\t")
    column = header.index("step")
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerows([header, *(row for row in rows if int(row[column]) <= step)])


def _replace(path: Path, header: str, epoch: int, lines: Sequence[str]) -> None:
    """Write an epoch's lines after those of earlier epochs, replacing any of the same epoch (a resumed run
    repeats it).
    """
    old_lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    earlier = [line for line in old_lines if int(line.split(",")[0]) < epoch]
    with atomic_write(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in [header, *earlier, *lines]), encoding="utf-8")
