"""The text of docs/RESULTS.md."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.study import phases, tables
from benchmarks.study.arms import Study, waiting
from benchmarks.study.audit import audit
from benchmarks.study.comparisons import HEADLINE, Comparisons, Statement
from benchmarks.study.groups import BCE, GROUPS, RAL, REFERENCE, Group, members
from benchmarks.study.inputs import SELECTION
from benchmarks.study.phases import NOT_RUN, verdict
from benchmarks.study.statistics import POWER, SELECTION_AP, Arm, Difference, RunScores
from benchmarks.study.tables import name_of
from ral.evaluation.results import Interval
from ral.labels import TIERS
from ral.wording import (
    difference,
    escape,
    known,
    notice_sentence,
    number,
    p_value,
    percent,
    pluralize,
    signed,
    signed_interval,
)

# What arms are compared by on the page: metric, level, title. differences.csv has all levels.
COMPARED = (
    ("ap", "macro", "macro AP"), ("ap", "tail", "tail AP"), ("auroc", "macro", "macro AUROC"),
)  # fmt: skip
PLOTTED = COMPARED[:2]
FINDINGS_PLOT, THIN_PLOT = "findings_ap.png", "thinning.png"


def page(study: Study, comparisons: Comparisons, results: Path) -> str:
    """The whole page.

    Args:
        study: the runs.
        comparisons: of its arms.
        results: folder of the tables that other commands write: see `audit`.
    """
    lines = [
        "# Results of the loss study",
        "",
        notice_sentence(phantom=False),
        "",
        "Written by `python -m benchmarks.study.results` from [runs.csv](results/runs.csv) and the logits of the "
        "runs; do not edit it by hand. All paired differences are in [differences.csv](results/differences.csv).",
        *section("In short", headline(study, comparisons)),
        *section("What was run", what_was_run(study)),
        *section("Method", method(study)),
    ]
    for group in GROUPS:
        lines += section(group.title, group_section(study, comparisons, group))
    lines += section("Findings", findings(study, comparisons))
    lines += section("Learning rates", learning_rates(study))
    lines += section("Changes to an arm", extras(study, comparisons))
    lines += section("Second phase", phases.second_phase(study, comparisons))
    lines += section("More epochs", phases.epochs(study, comparisons))
    lines += section("Thinned training sets", thinning(study, comparisons))
    lines += section("Backbones and seeds", settings(study, comparisons, study.seeds))
    lines += section("Other settings", settings(study, comparisons, study.others))
    lines += section("Time", time(study))
    lines += section("Changed images, shortcuts and attacks", audit(results))
    return "\n".join(lines) + "\n"


def section(title: str, lines: Iterable[str]) -> list[str]:
    """A section with its heading."""
    return ["", f"## {title}", "", *lines]


def headline(study: Study, comparisons: Comparisons) -> list[str]:
    """The three statements, the control, and the smallest difference that could be shown."""
    lines = []
    for one in comparisons.statements:
        lines += statement(one, study, comparisons)
    for arm in study.control:
        folds = arm.folds
        values = [tables.interval(study.bootstrap, arm, metric, "macro", folds) for metric in ("ap", "auroc")]
        expected = study.bootstrap.chance("macro", folds)[1]
        lines.append(
            f"- Negative control, {name_of(arm.name)}, which should be at chance: macro AP "
            f"{_against_chance(values[0], expected)}; macro AUROC {_against_chance(values[1], 0.5)}."
        )
    if not study.control:
        lines.append("- Negative control: not run.")
    lines += caveats(study)
    pairs = [(title, arm.name, baseline.name) for title, arm, baseline in comparisons.pairs()]
    small = tables.detectable(comparisons, HEADLINE, pairs)
    if small.rows:
        lines += [
            "",
            f"Smallest true difference that this sample shows with a power of {100 * POWER:.0f} % (two-sided level of "
            "5 %, without Holm's correction): 2.8 times the bootstrap standard error.",
            "",
            *small.markdown(),
        ]
    return lines


def statement(one: Statement, study: Study, comparisons: Comparisons) -> list[str]:
    """One of the three statements, whichever way it went."""
    if one.arm is None or one.baseline is None:
        return [f"- **{one.title}**: not run on every fold."]
    gaps = [
        comparisons.find(HEADLINE, one.arm.name, one.baseline.name, "ap", level)
        for level in ("macro", "tail")
    ]
    text = "; ".join(
        f"{level} AP {in_words(gap)}" if gap else f"{level} AP not estimable"
        for level, gap in zip(("macro", "tail"), gaps, strict=True)
    )
    lines = [f"- **{one.title}**: {text}."]
    if one is comparisons.statements[-1]:
        folds = one.arm.folds
        values = f"{number(one.arm.selection(folds))}, RAL {number(one.baseline.selection(folds))}"
        ahead = "" if study.best() is one.arm else " RAL itself has the best one of all."
        gap = comparisons.find(HEADLINE, one.arm.name, RAL, SELECTION_AP, "macro")
        chosen = f"; difference {difference(gap.value, gap.low, gap.high)}" if gap else ""
        lines[0] += (
            f" The best other recipe is {name_of(one.arm.name)}: of all that ran on every fold, it has the "
            f"best macro AP on the selection set ({values}{chosen}).{ahead}"
        )
        if one.arm.name == BCE:
            lines[0] += " So this is the comparison above with its sign turned."
    return lines


def caveats(study: Study) -> list[str]:
    """What the statements do not say."""
    data = study.bootstrap.data
    tail = [f"{escape(name)} {data.positives[name]:,}" for name in study.bootstrap.members["tail"]]
    lines = [
        '- "No difference shown" is not "equal": see the smallest difference below. Intervals contain the choice of '
        "patients, not the variation between trainings.",
        f"- Settings are {escape(study.settings)}: absolute values are far below those of larger pretrained networks, "
        "and the order of losses may be another there.",
        "- RAL is here the default loss in the recipe that all arms share, without the average of the weights (EMA) of "
        "params.yaml.",
    ]
    if tail:
        lines.append(
            f"- The tail has few positive images ({', '.join(tail)}): its AP depends on the ranks of these."
        )
    if REFERENCE in study.main:
        lines.append(
            "- The reference recipe differs from the default in optimizer, schedule and augmentation, not in its "
            "loss. Its learning rate is its authors', who start from a pretrained network; the other arms' were chosen."
        )
    return lines


def _against_chance(value: Interval, chance: float) -> str:
    """A value, and whether its interval includes that of a random order."""
    if not (known(value.low) and known(value.high)):
        return f"{value.text()}, a random order has {chance:.3f}"
    side = "includes" if value.low <= chance <= value.high else "does not include"
    return f"{value.text()}, which {side} the {chance:.3f} of a random order"


def in_words(gap: Difference) -> str:
    """A difference with its interval, p value and what it shows."""
    text = (
        f"{signed(gap.value)} ({signed_interval(gap.low, gap.high)}; Holm-corrected p {p_value(gap.p_holm)})"
    )
    return f"{text}, {verdict(gap)}"


def what_was_run(study: Study) -> list[str]:
    """Data, runs, hardware and versions."""
    runs, data = study.runs, study.bootstrap.data
    tested = data.fold != SELECTION
    patients = len(set(data.patients[tested]))
    lines = [
        f"{pluralize(len(runs), 'run', 'runs')}, {runs['seconds'].sum() / 3600:.1f} hours. {tested.sum():,} images of "
        f"{patients:,} patients are tested once, in {pluralize(len(data.folds), 'fold', 'folds')}; the "
        f"{(~tested).sum():,} images of all other patients are the selection set.",
        "",
        *tables.stages(runs).markdown(),
        "",
        f"- Settings of the arms: {escape(study.settings)}.",
        f"- All networks: {_values(runs, 'backbone')}; image size: {_values(runs, 'image_size')}; epochs: "
        f"{_values(runs, 'epochs')}; batch size: {_values(runs, 'batch_size')}; precision: "
        f"{_values(runs, 'precision')}.",
        f"- Commit: {_values(runs, 'commit')}; torch: {_values(runs, 'torch')}; data hash: {_values(runs, 'data')}.",
        f"- Logits of {study.read} runs were read: "
        + (
            f"{study.copies} are float16 copies with the macro AP of their row, the others"
            if study.copies
            else "they"
        )
        + " have the hash of their row.",
    ]
    for tier in TIERS:
        names = sorted(study.bootstrap.members[tier], key=lambda name: -data.positives[name])
        listed = ", ".join(f"{escape(name)} ({data.positives[name]:,})" for name in names) or "no finding"
        lines.append(f"- Tier {tier}, with positive images in all folds: {listed}.")
    return lines


def method(study: Study) -> list[str]:
    """How the numbers are made."""
    bootstrap = study.bootstrap
    config, resamples = bootstrap.config, bootstrap.resamples
    lines = [
        "- Metrics are computed within each fold and averaged over folds, then over findings. Logits of "
        "different trainings are never pooled.",
        f"- Intervals ({100 * config.confidence:g} %) are from {resamples.replicates:,} resamples of the patients "
        "within their fold, the same for all arms. They are of the mean over test folds of this size: AP is biased "
        "upwards with few positives, so the replicates are shifted to the value of the sample. p values are those of "
        "a t test with the spread of the resampled differences, Holm-corrected within a table, metric and level.",
        "- Learning rate, epoch, calibration, thresholds and the best recipe are chosen on the selection set only.",
        "- F1 and Brier score are of calibrated scores: calibration and the threshold with the best F1 are fitted "
        "to the run's logits of the selection set. Raw sigmoids are not probabilities and are not shown.",
        "- The negative control is trained on labels that are permuted among patients, and tested on the true ones. "
        "Its interval is of one network on other patients: the order of such a network may go along with a finding by "
        "chance.",
        "- Resamples of patients do not contain the variation between trainings; see Backbones and seeds.",
        "- Colour in the plots of differences marks intervals without 0, before Holm's correction.",
        f"- Tiers by prevalence in the folds: head above {percent(config.head)}, tail up to {percent(config.tail)}.",
    ]
    missing = [f"{escape(name)} in fold {fold}" for name, fold in bootstrap.left_out(bootstrap.data.folds)]
    if missing:
        lines.append(
            f"- Left out, because the fold has no positive or no negative image of it: {', '.join(missing)}."
        )
    used = {name for scores in _all_scores(study) for metric, name in scores if metric == "f1"}
    without = [escape(name) for name in bootstrap.data.findings if name not in used]
    if used and without:
        lines.append(
            f"- Without F1 and Brier score, because they could not be calibrated: {', '.join(without)}."
        )
    return lines


def group_section(study: Study, comparisons: Comparisons, group: Group) -> list[str]:
    """Metrics and paired differences of a group, a table for each set of folds; the first has the negative control."""
    names = members(group, study.main)
    if not names:
        return [NOT_RUN]
    control = {arm.name: arm for arm in study.control} if group is GROUPS[0] else {}
    arms = study.main | control
    lines: list[str] = []
    for folds, part in tables.fold_sets(arms, [*names, *control]).items():
        compared = [name for name in part if name not in control]
        rows = [arms[name] for name in tables.with_baselines(study.main, part, folds)]
        lines += [
            *_heading(study, folds, len(compared)),
            "",
            *tables.metrics(study.bootstrap, rows, folds).markdown(),
            "",
        ]
        for metric, level, title in COMPARED:
            if not tables.has_intervals(comparisons, group.name, compared, metric, level):
                continue
            gaps = tables.differences(comparisons, group.name, compared, metric, level)
            lines += [f"Paired differences of {title}, with Holm-corrected p:", "", *gaps.markdown(), ""]
    for metric, level, title in PLOTTED:
        if not tables.has_intervals(comparisons, group.name, names, metric, level):
            continue
        lines += [f"![Paired differences of {title}](results/{plot_of(group.name, metric, level)})", ""]
    return lines[:-1]


def _heading(study: Study, folds: Sequence[int], count: int) -> list[str]:
    """Heading of the tables of some folds, with the number of arms."""
    title = pluralize(count, "arm", "arms") if count else "negative control"
    if tuple(folds) == study.bootstrap.data.folds:
        return [f"### All folds: {title}"]
    listed = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    return [
        f"### Only {listed}: {title}",
        "",
        f"All numbers of this table are of {listed}, also those of arms that ran on more folds.",
    ]


def findings(study: Study, comparisons: Comparisons) -> list[str]:
    """Each finding with BCE and RAL."""
    if BCE not in study.main or RAL not in study.main:
        return [NOT_RUN]
    table = tables.findings(study, comparisons, GROUPS[0].name)
    plot = ["", f"![Paired differences of AP of each finding](results/{FINDINGS_PLOT})"]
    return [*table.markdown(), *(plot if comparisons.pairs() else [])]


def learning_rates(study: Study) -> list[str]:
    """Rates tried for each arm."""
    if not study.rates:
        return [NOT_RUN]
    left = [name_of(name) for name in waiting(study.rates)]
    tried = {one.arm for one in study.rates}
    fixed = [
        f"{name_of(str(name))}: {_values(part, 'learning_rate')}"
        for name, part in study.part("main").groupby("arm", sort=False)
        if name not in tried
    ]
    most = max(rate for one in study.rates for rate in one.tried)
    at_end = [name_of(one.arm) for one in study.rates if one.arm in study.main and one.best == most]
    return [
        "Macro AP on the selection set, first fold; the chosen rate is bold. The scale gives the gradient of a "
        "loss that its paper sums the norm that BCE's has at the start.",
        "",
        *tables.learning_rates(study).markdown(),
        *(["", f"Not all rates tried yet, so without results: {', '.join(left)}."] if left else []),
        *(
            ["", f"The largest rate is the best for {', '.join(at_end)}; larger ones were not tried."]
            if at_end
            else []
        ),
        *(["", f"Learning rate fixed, not chosen: {'; '.join(fixed)}."] if fixed else []),
    ]


def extras(study: Study, comparisons: Comparisons) -> list[str]:
    """Samplers, EMA, TTA and the like, on top of an arm."""
    if not study.extra:
        return [NOT_RUN]
    return [
        "Paired differences to the arm without the change, on the folds that both have. The column selection "
        "macro AP is the paired difference on the selection set, by which a change is kept or not. A training uses an "
        "EMA or a retrained classifier only if it is better on the selection set than its network: in a row of zeros "
        "it never was.",
        "",
        *tables.extras(study, comparisons).markdown(),
    ]


def thinning(study: Study, comparisons: Comparisons) -> list[str]:
    """Macro and tail AP against the imbalance of the training set."""
    if not study.thin:
        return [NOT_RUN]
    return [
        "Training positives are thinned to a geometric profile, whole patients at a time. The ratio is that "
        "of the most frequent to the rarest finding: at 1, all findings are about equally frequent. The profile is the "
        "largest that the rarest finding allows, so the number of positives changes with the ratio too. The test "
        "images are the same at every ratio, and so are the findings of the tail.",
        "",
        *tables.thinning(study, comparisons).markdown(),
        "",
        f"![AP against the imbalance ratio](results/{THIN_PLOT})",
    ]


def settings(study: Study, comparisons: Comparisons, arms: Mapping[str, Mapping[str, Arm]]) -> list[str]:
    """Arms with other settings."""
    if not arms:
        return [NOT_RUN]
    return [
        "Mean ± standard deviation over seeds.",
        "",
        *tables.settings(study, comparisons, arms).markdown(),
    ]


def time(study: Study) -> list[str]:
    """Cost of the arms."""
    names = tables.all_arms(study, GROUPS)
    return (
        [
            "Median over the runs of an arm. Runs shared the machine with other processes, some more than others: the "
            "times do not rank the arms.",
            "",
            *tables.speed(study, names).markdown(),
        ]
        if names
        else [NOT_RUN]
    )


def plot_of(group: str, metric: str, level: str) -> str:
    """File name of the forest plot of a group."""
    return f"{group}_{level}_{metric}.png"


def _all_scores(study: Study) -> Iterable[RunScores]:
    for arm in study.main.values():
        for several in arm.scores.values():
            yield from several


def _values(runs: pd.DataFrame, column: str) -> str:
    """Distinct values of a column, in order of appearance."""
    return ", ".join(escape(str(value)) for value in runs[column].unique())
