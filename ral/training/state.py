"""The state of a training run as plain values: the part of a checkpoint that is not the engine's tensors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from ral.errors import UserError
from ral.labels import marked
from ral.processes import on_termination_signal

# Of the floats of history.csv.
DECIMALS = 8

WeightsKind = Literal["last", "ema"]
"""The weights as trained, or their exponential moving average."""


@dataclass
class EpochRecord:
    """An epoch, as a row of history.csv; floats are rounded to 8 decimals."""

    epoch: int
    """From 1, over all phases."""
    phase: str
    learning_rate: float
    """Of the last step."""
    train_loss: float | None
    """Mean over the steps; None if all were skipped."""
    skipped_steps: int
    val_macro_ap: float | None = None
    """None if a logit was not finite."""
    val_macro_auroc: float | None = None
    ema_val_macro_ap: float | None = None
    """None without a moving average too."""
    ema_val_macro_auroc: float | None = None

    def __post_init__(self) -> None:
        self.learning_rate = round(self.learning_rate, DECIMALS)
        self.train_loss = None if self.train_loss is None else round(self.train_loss, DECIMALS)

    def set_scores(self, kind: WeightsKind, ap: float, auroc: float) -> None:
        """Record the validation metrics of one kind of weights."""
        ap, auroc = round(ap, DECIMALS), round(auroc, DECIMALS)
        if kind == "ema":
            self.ema_val_macro_ap, self.ema_val_macro_auroc = ap, auroc
        else:
            self.val_macro_ap, self.val_macro_auroc = ap, auroc

    def scores(self, kind: WeightsKind) -> dict[str, float | None]:
        """The validation metrics of one kind of weights: ap and auroc."""
        if kind == "ema":
            return {"ap": self.ema_val_macro_ap, "auroc": self.ema_val_macro_auroc}
        return {"ap": self.val_macro_ap, "auroc": self.val_macro_auroc}

    def log_line(self, epochs: int, phantom: bool) -> str:
        """The epoch as a line of the log.

        Args:
            epochs: of the first phase.
            phantom: whether the images are phantom images.
        """
        of = f" of {epochs}" if self.phase == "network" else f" ({self.phase})"
        loss = "loss not finite" if self.train_loss is None else f"loss {self.train_loss:.5f}"
        ap, auroc = (_metric(value) for value in self.scores("last").values())
        text = f"epoch {self.epoch:3d}{of}: {loss}, validation macro AP {ap}, AUROC {auroc}"
        if self.ema_val_macro_ap is not None:
            ap, auroc = (_metric(value) for value in self.scores("ema").values())
            text += f"; EMA AP {ap}, AUROC {auroc}"
        if self.skipped_steps:
            text += f"; {self.skipped_steps} steps skipped: non-finite loss or gradient"
        return marked(text, phantom, ", ")


def _metric(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


# Columns of history.csv: a row per epoch, of all phases.
HISTORY = tuple(column.name for column in fields(EpochRecord))


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
    history: list[EpochRecord] = field(default_factory=list)
    """All epochs so far, of all phases."""
    best: dict[WeightsKind, BestCheckpoint] = field(
        default_factory=lambda: {"last": BestCheckpoint(), "ema": BestCheckpoint()}
    )
    """The best epoch of the weights as trained ("last") and of their moving average ("ema")."""
    epochs_without_improvement: int = 0
    """Epochs of this phase since the best one."""

    def end_epoch(self, record: EpochRecord, improved: bool) -> None:
        """Add an epoch to the history, and begin the next one."""
        self.history.append(record)
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        self.epoch, self.step, self.losses, self.skipped_steps = self.epoch + 1, 0, [], 0

    def end_phase(self) -> None:
        """Begin the next phase."""
        self.phase += 1
        self.epoch = self.epochs_without_improvement = self.adam_steps = self.ema_steps = 0

    def best_kind(self) -> WeightsKind:
        """The kind of weights with the best validation macro AP; "last" if both are equal.

        Raises:
            UserError: no epoch gave finite logits.
        """
        if not any(checkpoint.weights for checkpoint in self.best.values()):
            raise UserError(
                "No epoch gave finite validation logits. Lower train.learning_rate.", kind="not_finite"
            )
        return "ema" if self.best["ema"].ap > self.best["last"].ap else "last"

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of `best_kind`, on the CPU.

        Raises:
            UserError: no epoch gave finite logits.
        """
        return self.best[self.best_kind()].weights

    def to_dict(self) -> dict[str, Any]:
        """The content of state.json: everything but tensors."""
        values = asdict(self)
        for best in values["best"].values():
            del best["weights"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "TrainState":
        """The state from `to_dict` and the tensors `best_<kind>/<weight>`."""
        best_checkpoints = {
            kind: BestCheckpoint(**best, weights=select_prefix(tensors, f"best_{kind}"))
            for kind, best in values["best"].items()
        }
        history = [EpochRecord(**row) for row in values.get("history", ())]
        return cls(**{**values, "best": best_checkpoints, "history": history})


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix/<name>`, without the prefix."""
    return {
        name.removeprefix(prefix + "/"): value
        for name, value in tensors.items()
        if name.startswith(prefix + "/")
    }


# Exit code of a training that a signal stopped between two steps.
STOPPED = 143


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
            raise SystemExit(STOPPED)
