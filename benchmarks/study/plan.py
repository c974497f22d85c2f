"""Which runs the study has, in the order in which they tell most, given the runs that are finished."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias, get_args

from benchmarks.study.folds import FOLDS
from benchmarks.study.recipes import ARMS, STEPS, arm, base
from ral.training.refit import METHODS

Stage = Literal["rate", "main", "control", "second_phase", "epochs", "extra", "thin", "seeds"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# A row of runs.csv.
Row: TypeAlias = Mapping[str, str]

RATIOS = (1.0, 10.0, 100.0)
THINNED = ("bce", "asl", "ral")
CONTROLS = ("ral", "bce")
SEEDED, SEEDS = ("bce", "ral", "asl", "reference"), (0, 1, 2)
# Backbones of the stage seeds. On a CPU, resnet50 takes 13 minutes for 6 epochs of 10,000 images of 64 pixels.
BIG: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": ("resnet50",)}
# Networks whose classifier is refitted. The first method of a network makes its features, the others read them.
REFITTED = ("ral", "bce")
# What is also trained for `LONG` epochs, the most informative arms first, and on which folds.
LONG, LONGER, LONGER_FOLDS = 12, (("ral", "bce"), ("reference",), ("comp_sum",)), (0, 1)
# Epochs and batch size that the name of a run does not mention.
EPOCHS, BATCH_SIZE = 12, 128
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
# Seconds that a run is expected to take before one has been measured.
EXPECTED = {"cpu": 150.0, "cuda": 30.0}
# The same of a second phase whose features are there.
EXPECTED_REFIT = 20.0


@dataclass(frozen=True)
class Settings:
    """What all runs of a start have in common."""

    device: Literal["cpu", "cuda"] = "cpu"
    backbone: str = "resnet18"
    epochs: int = EPOCHS
    batch_size: int = BATCH_SIZE
    precision: str = "float32"


@dataclass(frozen=True)
class Run:
    """One training. The fields are columns of runs.csv, except `device`."""

    stage: Stage
    arm: str
    fold: int
    seed: int
    learning_rate: float
    backbone: str
    epochs: int
    batch_size: int
    precision: str
    device: str
    """cpu or cuda."""
    thin: float = 1.0
    """Imbalance ratio; used by the stage thin only."""

    @property
    def name(self) -> str:
        """Unique and readable: the column run."""
        parts = [
            self.stage,
            self.arm,
            f"f{self.fold}",
            f"s{self.seed}",
            f"lr{self.learning_rate:g}",
            self.backbone,
        ]
        if self.stage == "thin":
            parts.append(f"x{self.thin:g}")
        if self.epochs != EPOCHS:
            parts.append(f"e{self.epochs}")
        if self.batch_size != BATCH_SIZE:
            parts.append(f"b{self.batch_size}")
        if self.precision != PRECISION[self.device]:
            parts.append(self.precision)
        return "-".join([*parts, self.device])


def run_of(row: Row) -> Run:
    """The run of a row of runs.csv."""
    values: dict[str, object] = {
        field.name: row[field.name] for field in fields(Run) if field.name != "device"
    }
    for name in ("fold", "seed", "epochs", "batch_size"):
        values[name] = int(row[name])
    for name in ("learning_rate", "thin"):
        values[name] = float(row[name])
    return Run(**values, device=row["run"].rpartition("-")[2])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """The runs of a study.

    Attributes:
        settings: of all runs.
        stages: to run.
        arms: to run, by their base.
        folds: to run.
        big: backbones of the stage seeds.
    """

    settings: Settings
    stages: Collection[str] = STAGES
    arms: Collection[str] = tuple(ARMS)
    folds: Collection[int] = tuple(range(FOLDS))
    big: Sequence[str] = ()

    def ready(self, rows: Sequence[Row], over: Collection[str] = ()) -> list[Run]:
        """The runs that can start, most informative first.

        Args:
            rows: of runs.csv.
            over: names of runs that failed: they are not waited for, and not run.
        """
        state = Progress(self.settings, rows, frozenset(over))
        wanted = [
            run
            for run in self._all(state)
            if run.stage in self.stages and base(run.arm) in self.arms and run.fold in self.folds
        ]
        return [run for run in dict.fromkeys(wanted) if run.name not in state.finished]

    def _all(self, state: "Progress") -> Iterator[Run]:
        first = [name for name, one in ARMS.items() if one.every_fold]
        late = [name for name, one in ARMS.items() if one.late]
        others = [name for name, one in ARMS.items() if not one.every_fold and not one.late]
        yield from state.rates(first)
        yield from state.main(first, range(FOLDS))
        yield from state.each("control", CONTROLS)
        yield from state.second_phase(REFITTED, 0)
        yield from state.longer()
        yield from state.rates(late)
        yield from state.main(late, range(1))
        for fold in range(1, FOLDS):
            yield from state.second_phase(REFITTED, fold)
        yield from state.main(late, range(1, 2))
        yield from state.rates(others)
        yield from state.main(others, range(1))
        pair = state.extended([name for name in first if name in self.arms], self.folds)
        steps = [f"{name}+{step}" for step in STEPS for name in pair]
        yield from state.each("extra", steps)
        thinned = [replace(run, thin=ratio) for run in state.each("thin", THINNED) for ratio in RATIOS]
        yield from thinned
        for seed in SEEDS:
            for backbone in self.big:
                for run in state.each("seeds", SEEDED, seed=seed):
                    yield replace(run, backbone=backbone)
        yield from state.main([*others, *late], range(1, FOLDS))
        for fold in range(1, FOLDS):
            yield from state.each("extra", steps, fold)
        for fold in range(1, FOLDS):
            yield from (replace(run, fold=fold) for run in thinned)


class Progress:
    """What the finished runs say: the learning rate of each arm, and the arms to build on.

    Args:
        settings: rows of other settings are ignored.
        rows: of runs.csv.
        over: names of runs that failed.
    """

    def __init__(self, settings: Settings, rows: Sequence[Row], over: frozenset[str]) -> None:
        self.settings = settings
        self.over = over
        self.scores = {row["run"]: float(row["selection_macro_ap"]) for row in rows}
        self.finished = self.scores.keys() | over

    def run(self, stage: Stage, name: str, rate: float, fold: int = 0, seed: int = 0) -> Run:
        """A run with the settings."""
        given = self.settings
        return Run(
            stage, name, fold, seed, rate, given.backbone, given.epochs, given.batch_size, given.precision,
            given.device,
        )  # fmt: skip

    def rates(self, names: Sequence[str]) -> Iterator[Run]:
        """Every learning rate of each arm, on fold 0; nothing for arms with only one."""
        for name in names:
            if len(arm(name).rates) > 1:
                yield from (self.run("rate", name, rate) for rate in arm(name).rates)

    def rate(self, name: str) -> float | None:
        """The rate with the best macro AP on the selection set, the lowest of equal ones; None until all were tried."""
        tried = arm(base(name)).rates
        if len(tried) == 1:
            return tried[0]
        runs = [self.run("rate", base(name), rate) for rate in tried]
        if not self._tried(name):
            return None
        scored = [run for run in runs if run.name in self.scores]
        if not scored:
            return None
        best = max(self.scores[run.name] for run in scored)
        return min(run.learning_rate for run in scored if self.scores[run.name] == best)

    def _tried(self, name: str) -> bool:
        """Whether all learning rates of an arm are finished or failed."""
        return all(run.name in self.finished for run in self.rates([base(name)]))

    def each(self, stage: Stage, names: Sequence[str], fold: int = 0, seed: int = 0) -> Iterator[Run]:
        """A run of each arm whose learning rate is known."""
        for name in names:
            rate = self.rate(name)
            if rate is not None:
                yield self.run(stage, name, rate, fold, seed)

    def main(self, names: Sequence[str], folds: Sequence[int]) -> Iterator[Run]:
        """The stage main, fold by fold; what the stage rate has run on fold 0 is not run again."""
        for fold in folds:
            for run in self.each("main", names, fold):
                if fold > 0 or replace(run, stage="rate").name not in self.scores:
                    yield run

    def second_phase(self, names: Sequence[str], fold: int) -> Iterator[Run]:
        """Every method on the networks of some arms, which have finished; the first method of a network comes alone,
        since it trains the network again for its features.
        """
        networks = [run for run in self.each("main", names, fold) if self._score(run) is not None]
        for number, method in enumerate(METHODS):
            for network in networks:
                run, first = (
                    replace(network, stage="second_phase", arm=f"{network.arm}+{one}")
                    for one in (method, METHODS[0])
                )
                if number == 0 or first.name in self.scores:
                    yield run

    def longer(self) -> Iterator[Run]:
        """The stage epochs: arms at their learning rate for `LONG` epochs; nothing if all runs have as many."""
        if self.settings.epochs < LONG:
            for names in LONGER:
                for fold in LONGER_FOLDS:
                    for run in self.each("epochs", names, fold):
                        yield replace(run, epochs=LONG)

    def extended(self, names: Sequence[str], folds: Collection[int]) -> list[str]:
        """RAL and the best other of some arms on the selection set, over `folds`; empty until all are finished."""
        means: dict[str, float] = {}
        for name in names:
            if self.rate(name) is None and not self._tried(name):
                return []
            runs = [run for fold in sorted(folds) for run in self.each("main", [name], fold)]
            scores = [self._score(run) for run in runs]
            if any(
                score is None and run.name not in self.over for run, score in zip(runs, scores, strict=True)
            ):
                return []
            known = [score for score in scores if score is not None]
            if known and len(known) == len(runs):
                means[name] = sum(known) / len(known)
        others = [name for name in means if name not in ("ral", "reference")]
        return ["ral", *sorted(others, key=lambda name: -means[name])[:1]]

    def _score(self, run: Run) -> float | None:
        """Macro AP on the selection set; a run of the stage rate stands for that of the stage main."""
        return self.scores.get(run.name, self.scores.get(replace(run, stage="rate").name))


def seconds(run: Run, rows: Sequence[Row]) -> float:
    """How long a run is expected to take: the median of finished ones with its backbone, by number of epochs. The
    first second phase of a network is as long as a training.
    """
    refit = run.stage == "second_phase" and not run.arm.endswith(f"+{METHODS[0]}")
    like = sorted(
        float(row["seconds"]) / int(row["epochs"])
        for row in rows
        if row["backbone"] == run.backbone
        and (row["stage"] == "second_phase") == refit
        and row["run"].endswith(f"-{run.device}")
    )
    if like:
        return like[len(like) // 2] * run.epochs
    return EXPECTED_REFIT if refit else EXPECTED[run.device] * run.epochs / EPOCHS
