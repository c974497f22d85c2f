"""The state of a training run as plain values: the part of a checkpoint that is not the engine's tensors."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ral.processes import on_termination_signal

# Columns of history.csv: a row per epoch, of all phases.
HISTORY = (
    "epoch",
    "phase",
    "learning_rate",
    "train_loss",
    "skipped_steps",
    "val_macro_ap",
    "val_macro_auroc",
    "ema_val_macro_ap",
    "ema_val_macro_auroc",
)


@dataclass
class BestCheckpoint:
    """The best epoch so far for one kind of weights."""

    ap: float = -1.0
    """Validation macro AP."""
    epoch: int = 0
    """Row of the history, counted from 1."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """On the CPU; a checkpoint stores them with the tensors, not in state.json."""


@dataclass
class TrainState:
    """Everything needed to resume training, except the engine's weights and optimizer state."""

    phase: int = 0
    """Index of the current phase, from 0."""
    epoch: int = 0
    """Epoch within the phase, from 0."""
    step: int = 0
    """Completed steps of this epoch, including skipped ones."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step of this epoch that was not skipped."""
    skipped_steps: int = 0
    """Skipped steps of this epoch."""
    consecutive_skipped_steps: int = 0
    """Steps skipped in a row, up to now."""
    adam_steps: int = 0
    """AdamW steps taken in this phase."""
    ema_steps: int = 0
    """EMA updates in this phase."""
    total_steps: int = 0
    """Optimizer steps since the start of the first phase; names checkpoints."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row of `HISTORY` per epoch."""
    best: dict[str, BestCheckpoint] = field(
        default_factory=lambda: {"last": BestCheckpoint(), "ema": BestCheckpoint()}
    )
    """The best epoch of the weights as trained ("last") and of their moving average ("ema")."""
    epochs_without_improvement: int = 0
    """Epochs of this phase since the best one."""

    def to_dict(self) -> dict[str, Any]:
        """The content of state.json: everything but tensors."""
        values = asdict(self)
        for best in values["best"].values():
            del best["weights"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], tensors: dict[str, Tensor]) -> "TrainState":
        """The state from `to_dict` and the tensors `best_<kind>/<weight>`."""
        best_checkpoints = {
            kind: BestCheckpoint(**best, weights=select_prefix(tensors, f"best_{kind}"))
            for kind, best in values["best"].items()
        }
        return cls(**{**values, "best": best_checkpoints})


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix/<name>`, without the prefix."""
    return {
        name.removeprefix(prefix + "/"): value
        for name, value in tensors.items()
        if name.startswith(prefix + "/")
    }


class PreemptionFlag:
    """A flag set by SIGTERM (SLURM's preemption warning, a cancellation) or SIGHUP; training polls it between steps."""

    def __init__(self) -> None:
        self.requested = False
        self.exit_immediately = False
        """Whether a signal ends the process at once, because no unsaved work would be lost."""
        on_termination_signal(self._request)

    def _request(self, *_: object) -> None:
        self.requested = True
        if self.exit_immediately:
            raise SystemExit(143)
