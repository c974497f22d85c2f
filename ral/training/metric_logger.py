"""What a training leaves in runs/<id>/: rates and the loss of every step, and TensorBoard's files if asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.files import atomic_write


class MetricLogger:
    """Writes speed.csv (a row per epoch) and steps.csv (a row per optimizer step that was not passed over).

    Args:
        folder: of the run.
        tensorboard: whether to write `folder`/tensorboard as well.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder = folder
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "training.tensorboard needs the package: pip install -c constraints.txt -e '.[tensorboard]'"
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def epoch(
        self, row: Mapping[str, Any], images: int, seconds: float, losses: Sequence[float], step: int
    ) -> None:
        """Note an epoch.

        Args:
            row: of the history.
            images: trained on since this process began the epoch.
            seconds: that took.
            losses: of the epoch's steps.
            step: optimizer steps before the epoch.
        """
        number = row["epoch"]
        speed = [f"{number},{images},{seconds:.3f},{images / max(seconds, 1e-9):.1f}"]
        _replace(self.folder / "speed.csv", "epoch,images,seconds,images_per_second", number, speed)
        lines = [f"{number},{place},{loss!r}" for place, loss in enumerate(losses, 1)]
        _replace(self.folder / "steps.csv", "epoch,step,loss", number, lines)
        if self._board is not None:
            for place, loss in enumerate(losses, 1):
                self._board.add_scalar("train/loss", loss, step + place)
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"epoch/{name}", value, number)
            self._board.flush()


def _replace(path: Path, header: str, epoch: int, lines: Sequence[str]) -> None:
    """Write an epoch's lines after those of earlier ones; a resumed training repeats an epoch."""
    old = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    kept = [line for line in old if int(line.split(",")[0]) < epoch]
    with atomic_write(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in [header, *kept, *lines]), encoding="utf-8")
