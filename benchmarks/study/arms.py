"""The runs of the study as arms: which runs belong to which, with their metrics."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.study.groups import CHANGE
from benchmarks.study.inputs import read_logits
from benchmarks.study.statistics import Arm, Bootstrap, RunScores
from ral.errors import UserError

# Largest difference of a macro AP between runs.csv and its logits: a float16 copy moves it a little.
TOLERANCE = 5e-3

# Stages whose tables have F1 and Brier score, which need calibration.
CALIBRATED = ("rate", "main", "extra", "control", "epochs")


@dataclass(frozen=True)
class Rates:
    """The learning rates that were tried for an arm, on the first fold."""

    arm: str
    tried: dict[float, float]
    """Learning rate -> macro AP on the selection set."""

    @property
    def best(self) -> float:
        """The rate with the best macro AP on the selection set; the lowest of equal ones."""
        return max(sorted(self.tried), key=lambda rate: self.tried[rate])


@dataclass(frozen=True)
class Study:
    """All arms, in the order of runs.csv."""

    runs: pd.DataFrame
    """All rows of runs.csv, with the column settings."""
    settings: str
    """Those of most runs of the arms; all arms but `others` and `seeds` have them."""
    bootstrap: Bootstrap
    scales: dict[str, float]
    """Arm -> factor of its loss, for losses that are summed in their papers."""
    rates: list[Rates]
    main: dict[str, Arm]
    extra: dict[str, Arm]
    control: list[Arm]
    thin: dict[float, dict[str, Arm]]
    """Imbalance ratio -> arms."""
    second_phase: dict[str, Arm]
    """`ral+smote` and the like: the network of an arm with a refitted classifier."""
    epochs: dict[int, dict[str, Arm]]
    """Number of epochs of the stage epochs -> arms, which are in `main` with fewer."""
    seeds: dict[str, dict[str, Arm]]
    """Settings -> arms."""
    others: dict[str, dict[str, Arm]]
    """Other settings of the stages rate and main -> arms."""
    read: int
    """Number of logits files that were read."""
    copies: int
    """How many of them are float16 copies."""

    def part(self, stage: str) -> pd.DataFrame:
        """The runs of a stage with the settings of the arms."""
        return self.runs[(self.runs["stage"] == stage) & (self.runs["settings"] == self.settings)]

    def complete(self) -> dict[str, Arm]:
        """Arms and extras that ran on every fold."""
        folds = self.bootstrap.data.folds
        return {name: arm for name, arm in (self.main | self.extra).items() if arm.folds == folds}

    def best(self, without: Iterable[str] = ()) -> Arm | None:
        """Of the complete arms, the one with the best macro AP on the selection set; None without one."""
        arms = [arm for name, arm in self.complete().items() if name not in set(without)]
        return max(arms, key=lambda arm: arm.selection(arm.folds), default=None)


def assemble(
    runs: pd.DataFrame, state: Path, bootstrap: Bootstrap, scales: pd.DataFrame | None = None
) -> Study:
    """Score the runs and collect them by arm.

    Args:
        runs: see `inputs.read_runs`.
        state: folder with logits/.
        bootstrap: of the study's images.
        scales: see `inputs.read_scales`.

    Raises:
        UserError: see `inputs.read_logits`; or the logits of a run do not have the macro AP of its row.
    """
    runs = runs.assign(settings=settings_of(runs))
    arm_runs = runs[runs["stage"].isin(("rate", "main"))]
    settings = str((arm_runs if len(arm_runs) else runs)["settings"].value_counts().index[0])
    main = {str(name): results_of(part) for name, part in arm_runs.groupby("settings", sort=False)}
    same = runs[runs["settings"] == settings]
    stage = {name: same[same["stage"] == name] for name in ("extra", "control", "thin", "second_phase")}
    first = same.iloc[0]
    seeds = runs[runs["stage"] == "seeds"]
    but_epochs = settings_of(runs.assign(epochs=first["epochs"]))
    longer = runs[(runs["stage"] == "epochs") & (but_epochs == settings)]
    scores: dict[str, RunScores] = {}
    copies = 0
    for row in pd.concat([*main.values(), *stage.values(), longer, seeds]).to_dict("records"):
        values = {str(name): value for name, value in row.items()}
        scores[str(row["run"])], original = _score(values, state, bootstrap)
        copies += not original
    controls = _by_arm(stage["control"], scores).values()
    return Study(
        runs=runs,
        settings=settings,
        bootstrap=bootstrap,
        scales=_scales(scales, str(first["backbone"]), int(first["image_size"])),
        rates=tried_rates(same),
        main=_by_arm(main.pop(settings, runs.iloc[:0]), scores),
        extra=_by_arm(stage["extra"], scores),
        control=[replace(arm, name=f"{arm.name}{CHANGE}permuted labels") for arm in controls],
        thin={float(str(ratio)): _by_arm(part, scores) for ratio, part in stage["thin"].groupby("thin")},
        second_phase=_by_arm(stage["second_phase"], scores),
        epochs={int(str(count)): _by_arm(part, scores) for count, part in longer.groupby("epochs")},
        seeds={str(name): _by_arm(part, scores) for name, part in seeds.groupby("settings", sort=False)},
        others={name: _by_arm(part, scores) for name, part in main.items() if len(part)},
        read=len(scores),
        copies=copies,
    )


def settings_of(runs: pd.DataFrame) -> "pd.Series[str]":
    """What a run shares with those that it may be compared with, as text."""
    kind = runs["run"].str.rpartition("-")[2]
    text = (
        runs["backbone"]
        + ", "
        + runs["image_size"].astype(str)
        + " px, "
        + runs["epochs"].astype(str)
        + " epochs"
    )
    return text + ", batch " + runs["batch_size"].astype(str) + ", " + runs["precision"] + ", " + kind


def results_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the runs of the stages rate and main, those that are results of an arm.

    These are the stage main, and of the stage rate the run at the chosen rate, if all rates were tried and
    the stage main does not have that fold and seed.
    """
    rates = tried_rates(runs)
    left = waiting(rates)
    chosen = {one.arm: one.best for one in rates if one.arm not in left}
    key = list(zip(runs["arm"], runs["fold"], runs["seed"], strict=True))
    is_main = runs["stage"] == "main"
    stands = {one for one, flag in zip(key, is_main, strict=True) if flag}
    is_chosen = (runs["stage"] == "rate") & (runs["learning_rate"] == runs["arm"].map(chosen))
    return runs[is_main | (is_chosen & ~pd.Series([one in stands for one in key], index=runs.index))]


def tried_rates(runs: pd.DataFrame) -> list[Rates]:
    """The learning rates of each arm, from the runs of the stage rate."""
    return [
        Rates(str(arm), dict(zip(part["learning_rate"], part["selection_macro_ap"], strict=True)))
        for arm, part in runs[runs["stage"] == "rate"].groupby("arm", sort=False)
    ]


def waiting(rates: Sequence[Rates]) -> list[str]:
    """Arms whose learning rates are not all tried yet."""
    most = max((len(one.tried) for one in rates), default=0)
    return [one.arm for one in rates if len(one.tried) < most]


def _scales(scales: pd.DataFrame | None, backbone: str, size: int) -> dict[str, float]:
    """Arm -> scale, of a backbone and image size."""
    if scales is None:
        return {}
    part = scales[(scales["backbone"] == backbone) & (scales["image_size"] == size)]
    return dict(zip(part["arm"], part["scale"], strict=True))


def _score(row: dict[str, object], state: Path, bootstrap: Bootstrap) -> tuple[RunScores, bool]:
    """Metrics of a run, and whether its logits are the original file."""
    path, fold = state / "logits" / f"{row['run']}.npz", int(str(row["fold"]))
    logits = read_logits(path, fold, bootstrap.data, str(row["logits"]))
    scores = bootstrap.score(logits, fold, calibrated=row["stage"] in CALIBRATED)
    ap = np.mean([one.values[0] for (metric, _), one in scores.items() if metric == "ap"])
    recorded = float(str(row["test_macro_ap"]))
    if not abs(ap - recorded) <= TOLERANCE:
        raise UserError(
            f"{path} has a test macro AP of {ap:.4f}; runs.csv says {recorded:.4f}. The logits are of another run or "
            "of other data: restore them, or delete the row and repeat the run."
        )
    return scores, logits.original


def _by_arm(runs: pd.DataFrame, scores: dict[str, RunScores]) -> dict[str, Arm]:
    """The arms of some runs."""
    arms = {}
    for name, part in runs.groupby("arm", sort=False):
        by_fold: dict[int, list[RunScores]] = {}
        for run, fold in zip(part["run"], part["fold"], strict=True):
            by_fold.setdefault(int(fold), []).append(scores[run])
        selection = part.groupby("fold")["selection_macro_ap"].mean()
        arms[str(name)] = Arm(str(name), by_fold, {int(str(f)): float(v) for f, v in selection.items()})
    return arms
