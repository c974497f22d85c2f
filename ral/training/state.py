"""Where a training stands, as plain values: what a checkpoint holds beside the engine's tensors."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ral.processes import on_request_to_end

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
    """The best epoch so far of one kind of weights."""

    ap: float = -1.0
    """Validation macro AP."""
    epoch: int = 0
    """Row of the history, counted from 1."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """On the CPU; kept apart from the other facts in a checkpoint."""


@dataclass
class TrainState:
    """Everything a training needs to go on, but for the engine's weights and moments."""

    phase: int = 0
    """Which phase is trained, from 0."""
    epoch: int = 0
    """Epoch within the phase, from 0."""
    step: int = 0
    """Steps of this epoch that are done, those passed over included."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step of this epoch that was not passed over."""
    skipped_steps: int = 0
    """Steps of this epoch that were passed over."""
    consecutive_skipped_steps: int = 0
    """Steps passed over since the last good one."""
    adam_steps: int = 0
    """Steps that AdamW took in this phase."""
    ema_steps: int = 0
    """Steps of the moving average in this phase."""
    total_steps: int = 0
    """Optimizer steps since the start of the first phase; names checkpoints."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row of `HISTORY` per epoch."""
    best: dict[str, BestCheckpoint] = field(
        default_factory=lambda: {"last": BestCheckpoint(), "ema": BestCheckpoint()}
    )
    """The best epoch of the weights as trained ("last") and of their moving average."""
    epochs_without_improvement: int = 0
    """Epochs of this phase since the best one."""

    def facts(self) -> dict[str, Any]:
        """As JSON, without tensors."""
        values = asdict(self)
        for best in values["best"].values():
            del best["weights"]
        return values

    @classmethod
    def of(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> "TrainState":
        """From `facts` and the tensors `best_<kind>/<weight>`."""
        kinds = {
            kind: BestCheckpoint(**best, weights=select_prefix(tensors, f"best_{kind}"))
            for kind, best in facts["best"].items()
        }
        return cls(**{**facts, "best": kinds})


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors called `prefix/<name>`, by name."""
    return {
        name.removeprefix(prefix + "/"): value
        for name, value in tensors.items()
        if name.startswith(prefix + "/")
    }


class PreemptionFlag:
    """SIGTERM (SLURM's warning, a cancel) or SIGHUP as a flag that training looks at between two steps."""

    def __init__(self) -> None:
        self.requested = False
        self.exit_immediately = False
        """Whether the next of them ends the process there and then: nothing of worth would be lost."""
        on_request_to_end(self._ask)

    def _ask(self, *_: object) -> None:
        self.requested = True
        if self.exit_immediately:
            raise SystemExit(143)
