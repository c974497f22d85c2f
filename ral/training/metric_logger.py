"""Training metrics in runs/<id>/: throughput, the loss of every step, and optional TensorBoard files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.extras import install_command
from ral.files import atomic_write
from ral.training.state import EpochRecord


class MetricLogger:
    """Writes speed.csv (a row per epoch) and steps.csv (a row per optimizer step that was not skipped).

    Args:
        folder: the run's folder.
        tensorboard: whether to write `folder`/tensorboard as well.

    Raises:
        UserError: TensorBoard is enabled but not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder = folder
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    f"training.tensorboard needs the tensorboard package: {install_command('tensorboard')}"
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def epoch(
        self, record: EpochRecord, images: int, seconds: float, losses: Sequence[float], step: int
    ) -> None:
        """Log an epoch.

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
        if self._board is not None:
            for index, loss in enumerate(losses, 1):
                self._board.add_scalar("train/loss", loss, step + index)
            for name, value in asdict(record).items():
                if isinstance(value, float):
                    self._board.add_scalar(f"epoch/{name}", value, number)
            self._board.flush()


def _replace(path: Path, header: str, epoch: int, lines: Sequence[str]) -> None:
    """Write an epoch's lines after those of earlier epochs, replacing any of the same epoch (a resumed run
    repeats it).
    """
    old_lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    earlier = [line for line in old_lines if int(line.split(",")[0]) < epoch]
    with atomic_write(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in [header, *earlier, *lines]), encoding="utf-8")
