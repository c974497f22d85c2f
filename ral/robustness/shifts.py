"""Metrics and decisions on changed images, compared with those on the unchanged images by the paired bootstrap."""

import itertools
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support, holm
from ral.evaluation.exact import clopper_pearson
from ral.evaluation.reliability import errors
from ral.evaluation.resampled_metrics import Scored, ranking
from ral.evaluation.results import Level, rounded_number
from ral.evaluation.score import means_to_take
from ral.evaluation.specs import RANKED_BY
from ral.progress import Progress
from ral.robustness.contents import METRICS, Metric, ShiftInfo, ShiftRow, Shifts
from ral.robustness.pixels import Shift
from ral.robustness.subject import Change, Subject

# Metric -> its distribution over the resamples, of one finding.
Metrics = Mapping[str, BootstrapDistribution]
# Finding -> whether each image is called positive, bool [images].
Calls = Mapping[str, NDArray[np.bool_]]


def audit_shifts(
    subject: Subject,
    shifts: Sequence[Shift],
    seed: int,
    others: Sequence[tuple[ShiftInfo, Change | None]] = (),
) -> tuple[Shifts, dict[str, NDArray[np.float32]]]:
    """Score the test images under each shift, and compare.

    Args:
        subject: the model and the images.
        shifts: the changes of the packed pixels.
        seed: of the noise.
        others: further shifts; None for one that is not available.

    Returns:
        The results, and the raw logits [images, findings] by name of the shift; "" are those of the unchanged images.
    """
    ids = [str(name) for name in subject.test["image_id"]]
    changes = [(_info(shift), _change(shift, ids, seed)) for shift in shifts]
    scored = {info.name: change for info, change in [*changes, *others] if change is not None}
    with Progress("scoring changed images", (1 + len(scored)) * len(ids), "images") as progress:
        logits = {"": subject.score(None, progress)}
        for name, change in scored.items():
            logits[name] = subject.score(change, progress)
    clean, calls = finding_metrics(subject, logits[""]), positive_calls(subject, logits[""])
    rows: list[ShiftRow] = []
    with Progress("comparing with the unchanged images", len(scored), "shifts") as progress:
        for name in scored:
            changed = finding_metrics(subject, logits[name])
            rows += compare(subject, name, clean, changed, (calls, positive_calls(subject, logits[name])))
            progress.add()
    infos = tuple(info for info, _ in [*changes, *others])
    return Shifts(shifts=infos, rows=corrected(rows)), logits


def _info(shift: Shift) -> ShiftInfo:
    return ShiftInfo(name=shift.name, kind=shift.kind, strength=shift.strength, label=shift.label)


def _change(shift: Shift, ids: Sequence[str], seed: int) -> Change:
    """The shift as a function of pixels and of the row numbers of the test images."""
    return lambda pixels, rows: shift.apply(pixels, [ids[row] for row in rows], seed)


def finding_metrics(subject: Subject, logits: NDArray[np.float32]) -> dict[str, Metrics]:
    """The metrics of every estimable finding in all resamples.

    Args:
        subject: the model and the images.
        logits: raw logits of the test images [images, findings].
    """
    return {
        name: _metrics(scored, subject)
        for name, scored in subject.scored(logits).items()
        if name not in subject.not_estimable
    }


def positive_calls(subject: Subject, logits: NDArray[np.float32]) -> Calls:
    """Whether each image is called positive, by finding with a threshold; arguments as of `finding_metrics`."""
    rule = subject.calibration.rule
    return {
        name: scored.scores >= scored.thresholds[rule]
        for name, scored in subject.scored(logits).items()
        if scored.scores is not None
    }


def _metrics(scored: Scored, subject: Subject) -> Metrics:
    resamples = subject.resamples
    values = dict(ranking(scored, resamples, RANKED_BY))
    if scored.scores is not None:
        calibration = errors(scored.scores, scored.labels, resamples, subject.config.calibration.bins)
        positive = scored.scores >= scored.thresholds[subject.calibration.rule]
        values |= {"brier": calibration["brier"], "ece": calibration["ece"]}
        values["calls"] = BootstrapDistribution(
            resamples.totals(positive[:, None])[:, 0], Support.of(np.bincount(resamples.patient)), "free"
        )
    return values


def compare(
    subject: Subject,
    shift: str,
    clean: Mapping[str, Metrics],
    changed: Mapping[str, Metrics],
    calls: tuple[Calls, Calls],
) -> list[ShiftRow]:
    """The rows of a shift, without Holm's correction.

    Args:
        subject: the model and the images.
        shift: name of the shift.
        clean: finding -> metrics on the unchanged images.
        changed: the same on the changed images.
        calls: on the unchanged and on the changed images (`positive_calls`).
    """
    rows = []
    for metric, (level, name, members) in itertools.product(METRICS, means_to_take(subject.tiers)):
        usable = [member for member in members if metric in clean.get(member, {})]
        row = ShiftRow(shift=shift, level=level, name=name, metric=metric, findings=len(usable))
        if usable:
            before, after = (
                _combined(metric, [values[member][metric] for member in usable], subject.resamples)
                for values in (clean, changed)
            )
            own = _calls_difference(calls, usable, subject.resamples) if metric == "calls" else None
            found = subject.resamples.paired(after, before, own)
            numbers = found._asdict() | {"value": found.first, "clean": found.second}
            names = ("clean", "value", "difference", "low", "high", "p")
            row = row.model_copy(update={name: rounded_number(numbers[name]) for name in names})
        rows.append(row)
    return rows


def corrected(rows: Sequence[ShiftRow]) -> tuple[ShiftRow, ...]:
    """The rows with Holm's correction over those of the same metric and level."""
    adjusted: dict[int, float] = {}
    for metric, level in itertools.product(METRICS, get_args(Level)):
        family = [index for index, row in enumerate(rows) if (row.metric, row.level) == (metric, level)]
        p_values = holm(np.array([rows[index].p for index in family], dtype=np.float64))
        adjusted |= dict(zip(family, p_values.tolist(), strict=True))
    return tuple(
        row.model_copy(update={"p_holm": rounded_number(adjusted[index])}) if row.p is not None else row
        for index, row in enumerate(rows)
    )


def _combined(
    metric: Metric, parts: Sequence[BootstrapDistribution], resamples: Resamples
) -> BootstrapDistribution:
    """Sum of calls, or mean of another metric, over findings."""
    if metric == "calls":
        total = np.sum([part.values for part in parts], axis=0)
        return BootstrapDistribution(total, parts[0].support, "free")
    return parts[0] if len(parts) == 1 else resamples.mean(parts)


def _calls_difference(
    calls: tuple[Calls, Calls], findings: Sequence[str], resamples: Resamples
) -> BootstrapDistribution:
    """The change of the number of calls. Its sample are the patients with a changed call; if there is none, resamples
    show no uncertainty, and that of a share of 0 is used.
    """
    before, after = (np.stack([side[name] for name in findings], axis=1).astype(np.int64) for side in calls)
    values = resamples.totals((after - before).sum(axis=1)[:, None])[:, 0]
    changed = (after != before).sum(axis=1)
    if changed.any():
        counts = np.bincount(resamples.patient, changed, resamples.patients)
        return BootstrapDistribution(values, Support.of(counts), "difference")
    everyone = Support.of(np.bincount(resamples.patient))
    reach = before.size * clopper_pearson(0.0, everyone.effective, resamples.confidence)[1]
    return BootstrapDistribution(values, everyone, "difference", (reach, reach))
