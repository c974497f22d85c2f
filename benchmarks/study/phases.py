"""Two sections of RESULTS.md: refitted classifiers, and the order of arms with more epochs."""

from collections.abc import Mapping, Sequence

from benchmarks.study.arms import Study
from benchmarks.study.comparisons import (
    CRT,
    EPOCHS,
    LONGER,
    SECOND_PHASE,
    Comparisons,
    on_folds,
    ordered,
    with_epochs,
)
from benchmarks.study.groups import CHANGE, base_of, label
from benchmarks.study.statistics import SELECTION_AP, Arm, Difference
from benchmarks.study.tables import NONE, Table, interval, name_of, with_p
from ral.wording import escape, known

NOT_RUN = "Not run."
# A difference is called better or worse if its Holm-corrected p value is below this.
SIGNIFICANT = 0.05
BETTER, WORSE, OPEN = "better", "worse", "no difference shown"
LEVELS = ("macro", "tail")
# Columns of the table of more epochs.
LONGER_COLUMNS = ((SELECTION_AP, "macro"), ("ap", "macro"), ("ap", "tail"))
OWN = "own classifier"


def verdict(gap: Difference) -> str:
    """What a difference shows."""
    if not known(gap.p_holm) or gap.p_holm >= SIGNIFICANT:
        return OPEN
    return BETTER if gap.value > 0 else WORSE


def second_phase(study: Study, comparisons: Comparisons) -> list[str]:
    """Methods of the second phase against the network's own classifier and cRT, and in words what they show."""
    if not study.second_phase:
        return [NOT_RUN]
    lines = [
        "The classifier of a trained network is refitted on its features of the training images, by methods with "
        "their default options: nothing is chosen here. Paired differences are to the same networks with their own "
        "classifier and with cRT, with Holm-corrected p. Seconds are the median of the method alone, without the "
        "features. `presto` needs labels that a reader called uncertain, which these data do not have.",
        "",
        *_second_phase_table(study, comparisons).markdown(),
        "",
    ]
    for network in dict.fromkeys(map(base_of, study.second_phase)):
        for baseline, title in ((network, f"its {OWN}"), (f"{network}{CHANGE}{CRT}", "cRT")):
            for level in LEVELS:
                lines.append(_shown(comparisons, study, network, (baseline, title), level))
    return lines


def _second_phase_table(study: Study, comparisons: Comparisons) -> Table:
    """A row for each network with its own classifier and for each method on it."""
    seconds = study.part(SECOND_PHASE).groupby("arm")["seconds"].median()
    rows = []
    for network in dict.fromkeys(map(base_of, study.second_phase)):
        methods = {name: arm for name, arm in study.second_phase.items() if base_of(name) == network}
        folds = sorted({fold for arm in methods.values() for fold in arm.folds})
        plain = {network: on_folds(study.main[network], folds)} if network in study.main else {}
        for name, arm in (plain | methods).items():
            values = [interval(study.bootstrap, arm, "ap", level, arm.folds).text() for level in LEVELS]
            gaps = [
                comparisons.find(SECOND_PHASE, name, baseline, "ap", level)
                for baseline in (network, f"{network}{CHANGE}{CRT}")
                for level in LEVELS
            ]
            rows.append([
                name_of(network), escape(_method(name)), _folds(arm), *values, *map(with_p, gaps),
                NONE if name == network else f"{seconds[name]:.1f}",
            ])  # fmt: skip
    compared = [f"{level} AP − {title}" for title in (OWN, "cRT") for level in LEVELS]
    return Table(["network", "method", "folds", "macro AP", "tail AP", *compared, "seconds"], rows)


def _shown(
    comparisons: Comparisons, study: Study, network: str, baseline: tuple[str, str], level: str
) -> str:
    """One line: which methods are better than a baseline, which worse, and which are not shown to differ."""
    by_verdict: dict[str, list[str]] = {BETTER: [], WORSE: [], OPEN: []}
    for name in study.second_phase:
        gap = comparisons.find(SECOND_PHASE, name, baseline[0], "ap", level)
        if base_of(name) == network and gap:
            by_verdict[verdict(gap)].append(escape(_method(name)))
    parts = [f"{one}: {', '.join(names) or 'none'}" for one, names in by_verdict.items()]
    return f"- {label(network)}, {level} AP against {baseline[1]}: {'; '.join(parts)}."


def _method(name: str) -> str:
    return name.partition(CHANGE)[2] or OWN


def epochs(study: Study, comparisons: Comparisons) -> list[str]:
    """Whether the order of arms changes with more epochs."""
    if not study.epochs:
        return [NOT_RUN]
    shorter = int(study.runs.loc[study.runs["settings"] == study.settings, "epochs"].iloc[0])
    lines = [
        "Some arms trained for more epochs, at the learning rates that were chosen with fewer; paired differences on "
        "the folds that ran, with Holm-corrected p. The column selection macro AP is the difference on the selection "
        "set, by which more epochs are kept or not.",
        "",
        *_epochs_table(study, comparisons, shorter).markdown(),
        "",
    ]
    for count, arms in study.epochs.items():
        lines += [_order(study, arms, (shorter, count), level) for level in LEVELS]
    return lines


def _epochs_table(study: Study, comparisons: Comparisons, shorter: int) -> Table:
    """Pairs of arms with few and with many epochs, and each arm with many against itself with few."""
    rows = []
    for count, arms in study.epochs.items():
        for name, baseline in ordered(arms):
            folds = [fold for fold in arms[name].folds if fold in arms[baseline].folds]
            title = f"{label(name)} − {label(baseline)}"
            for number, pair in (
                (shorter, (name, baseline)),
                (count, (with_epochs(name, count), with_epochs(baseline, count))),
            ):
                gaps = _longer_gaps(comparisons, *pair)
                rows.append([title, str(number), ", ".join(map(str, folds)), *map(with_p, gaps)])
        for name, arm in arms.items():
            gaps = _longer_gaps(comparisons, with_epochs(name, count), name)
            title = f"{label(name)}: {count} − {shorter} epochs"
            rows.append([title, NONE, _folds(arm), *map(with_p, gaps)])
    return Table(["comparison", "epochs", "folds", "selection macro AP", "macro AP", "tail AP"], rows)


def _longer_gaps(comparisons: Comparisons, arm: str, baseline: str) -> list[Difference | None]:
    return [comparisons.find(EPOCHS, arm, baseline, metric, level) for metric, level in LONGER_COLUMNS]


def _order(study: Study, arms: Mapping[str, Arm], counts: tuple[int, int], level: str) -> str:
    """The arms by AP with few and with many epochs, on the folds that all have."""
    names = [name for name in LONGER if name in arms and name in study.main]
    runs = [*(arms[name] for name in names), *(study.main[name] for name in names)]
    folds = [fold for fold in study.bootstrap.data.folds if all(fold in arm.folds for arm in runs)]
    few, many = (
        sorted(names, key=lambda name: -_value(study, of[name], level, folds)) for of in (study.main, arms)
    )
    title = f"- Arms by {level} AP on folds {', '.join(map(str, folds))}, the best first: with {counts[0]} epochs "
    listed = [", ".join(map(label, order)) for order in (few, many)]
    return title + listed[0] + f"; with {counts[1]} {'the same' if few == many else listed[1]}."


def _value(study: Study, arm: Arm, level: str, folds: Sequence[int]) -> float:
    """AP of an arm on some folds."""
    value = interval(study.bootstrap, arm, "ap", level, folds).value
    return value if known(value) else float("-inf")


def _folds(arm: Arm) -> str:
    return ", ".join(map(str, arm.folds))
