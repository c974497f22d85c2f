"""Subgroup audit: metrics of groups of images (sex, age, view, source and pairs of these) compared with all
other images.

A gap is flagged if it is significant after Holm's correction over all tested gaps. AUROC, sensitivity at the chosen
threshold and calibration are tested. AP is shown but not tested: it rises with the prevalence, so groups differ in AP
even for a fair model. The false negative rate is 1 − sensitivity and is not tested separately.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, owens_t

from ral.config.evaluate import AuditConfig, EvaluateConfig, Rule
from ral.evaluation import resampled_metrics
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support, holm
from ral.evaluation.metrics import divide
from ral.evaluation.resampled_metrics import Scored
from ral.evaluation.score import Evaluation
from ral.evaluation.specs import GROUP_METRICS, TESTED_METRICS
from ral.evaluation.table_rows import TIMES, AuditRow, to_frame
from ral.evaluation.tables import rounded

Array = NDArray[Any]

UNKNOWN = "unknown"

TEXT = ("attribute", "group", "finding", "metric", "flagged", "note")
COLUMNS = tuple(column.name for column in fields(AuditRow))


@dataclass(frozen=True)
class Group:
    """Images that have the same value of one or two attributes."""

    attributes: tuple[str, ...]
    """One or two of sex, age, view and source."""
    values: tuple[str, ...]
    """The group's value of each attribute."""
    rows: Array
    """Mask of the group's images, bool [rows]."""

    @property
    def attribute(self) -> str:
        """The attributes as text, as in the tables."""
        return TIMES.join(self.attributes)

    @property
    def name(self) -> str:
        """The values as text, as in the tables."""
        return ", ".join(self.values)


def audit(evaluation: Evaluation) -> pd.DataFrame:
    """audit.csv: a row per group, finding (and macro) and metric of `specs.GROUP_METRICS`, with the value for all
    other images.

    A row without a metric has the reason in `note`: too few patients, or an attribute that the data does not have.
    `difference` is group − others, computed on the same resamples. The macro of a group is the mean over the findings
    for which the metric is defined in the group and among the others.
    """
    config = evaluation.config.audit
    rows = [
        AuditRow(attribute=name, note="not in the data")
        for name in config.by
        if COLUMN[name] not in evaluation.rows.columns
    ]
    for group in groups(evaluation.rows, config):
        rows += group_rows(group, evaluation)
    return _corrected(to_frame(rows, COLUMNS), 1 - evaluation.config.confidence)


class Measured(Protocol):
    """What the metrics of a group need; `Evaluation` has it."""

    @property
    def config(self) -> EvaluateConfig:
        """The section evaluate."""

    @property
    def resamples(self) -> Resamples:
        """Of the patients of the images."""

    @property
    def scored(self) -> Mapping[str, Scored]:
        """Finding -> labels and scores of the images."""

    @property
    def estimable(self) -> Sequence[str]:
        """The findings to measure."""


def group_rows(group: Group, evaluation: Measured) -> list[AuditRow]:
    """The rows of a group: every estimable finding, then the means over the findings."""
    resamples, config = evaluation.resamples, evaluation.config
    inside, outside = resamples.rows(group.rows), resamples.rows(~group.rows)
    base = AuditRow(group.attribute, group.name, images=int(group.rows.sum()), patients=inside.patients)
    rows = []
    pairs: dict[str, list[tuple[BootstrapDistribution, BootstrapDistribution]]] = {
        name: [] for name in GROUP_METRICS
    }
    for name in evaluation.estimable:
        scored = evaluation.scored[name].rows(group.rows)
        row = replace(base, finding=name, positives=int((scored.labels == 1).sum()))
        in_group, note = _measured(scored, inside, config)
        if note:
            rows.append(replace(row, note=note))
            continue
        in_others, reason = _measured(evaluation.scored[name].rows(~group.rows), outside, config)
        row = replace(row, note=f"nothing to compare with: {reason}" if reason else "")
        for metric, value in in_group.items():
            other = in_others.get(metric)
            rows.append(_filled(row, metric, value, other, resamples))
            if other is not None:
                pairs[metric].append((value, other))
    return rows + _macro_rows(base, pairs, resamples)


def _measured(
    scored: Scored, resamples: Resamples, config: EvaluateConfig
) -> tuple[dict[str, BootstrapDistribution], str]:
    """The metrics of a finding on a group, or on all other images; or none, and why."""
    reason = _too_few(scored, resamples, config.audit.min_positives)
    return ({} if reason else group_metrics(scored, resamples, config.threshold.rule)), reason


def _macro_rows(
    base: AuditRow,
    pairs: Mapping[str, Sequence[tuple[BootstrapDistribution, BootstrapDistribution]]],
    resamples: Resamples,
) -> list[AuditRow]:
    """The means over the findings that have a metric in the group and among the others; at least two."""
    rows = []
    for metric, metric_pairs in pairs.items():
        if len(metric_pairs) < 2:
            continue
        row = replace(base, finding="macro", note=f"mean of {len(metric_pairs)} findings")
        group_mean, others_mean = (resamples.mean(side) for side in zip(*metric_pairs, strict=True))
        rows.append(_filled(row, metric, group_mean, others_mean, resamples))
    return rows


def _corrected(table: pd.DataFrame, limit: float) -> pd.DataFrame:
    """The table with corrected p values and flags of the tested gaps, rounded."""
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(dtype=np.float64))
    table.loc[tested, "flagged"] = np.where(table.loc[tested, "p_holm"] <= limit, "yes", "no")
    counts = dict.fromkeys(("images", "patients", "positives"), "Int64")
    return rounded(table.astype(counts), text=TEXT)


# Attribute -> column of the studies.
COLUMN = {"sex": "sex", "age": "age_years", "view": "view", "source": "source"}


def groups(images: pd.DataFrame, config: AuditConfig) -> list[Group]:
    """The groups of each attribute that the images have, then those of each pair of attributes.

    Attributes with a single value are not paired. Images with an unknown value form a group, but are in no pair.
    """
    single: list[Group] = []
    for attribute in config.by:
        if COLUMN[attribute] not in images.columns:
            continue
        values = values_of(images, attribute, config.age_bands)
        single += [Group((attribute,), (name,), values == name) for name in in_order(values)]
    known = [group for group in single if UNKNOWN not in group.values]
    paired = [name for name in config.by if sum(group.attributes == (name,) for group in known) > 1]
    pairs = [
        Group((one, two), a.values + b.values, a.rows & b.rows)
        for one, two in combinations(paired, 2)
        for a in known
        for b in known
        if (a.attributes, b.attributes) == ((one,), (two,))
    ]
    return [group for group in single + pairs if group.rows.any()]


def values_of(images: pd.DataFrame, attribute: str, age_bands: list[float]) -> Array:
    """The value of an attribute of each image, `UNKNOWN` where there is none; for the age, its band."""
    if attribute == "age":
        return _bands(images[COLUMN[attribute]], age_bands)
    return _values(images[attribute])


def in_order(values: Array) -> list[str]:
    """The different values of an attribute, in the order in which they are shown."""
    return sorted(set(values), key=lambda name: (name == UNKNOWN, _first_year(name), name))


def _values(column: "pd.Series[Any]") -> Array:
    known = column.notna() & (column.astype(str).str.strip() != "")
    return column.astype(str).str.strip().where(known, UNKNOWN).to_numpy(dtype=object)


def _bands(years: "pd.Series[Any]", first: list[float]) -> Array:
    """Names of the age bands: 0–17, 18–39, …, 80+."""
    starts = [0.0, *first]
    ends = [f"{start:g}–{end - 1:g}" for start, end in zip(starts, first, strict=False)]
    names = np.array([*ends, f"{starts[-1]:g}+"], dtype=object)
    numbers = years.to_numpy(dtype=np.float64, na_value=np.nan)
    band_index = np.searchsorted(first, np.nan_to_num(numbers), side="right")
    return np.where(np.isnan(numbers), UNKNOWN, names[band_index])


def _first_year(name: str) -> float:
    """Sort key that orders age bands; 0 for other names."""
    digits = name.rstrip("+").split("–")[0]
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0


def _too_few(scored: Scored, resamples: Resamples, minimum: int) -> str:
    counts = [len(np.unique(resamples.patient[scored.labels == label])) for label in (1, 0)]
    return "; ".join(
        f"too few: {count} patients {kind} the finding, at least {minimum} needed"
        for count, kind in zip(counts, ("with", "without"), strict=True)
        if count < minimum
    )


def group_metrics(scored: Scored, resamples: Resamples, rule: Rule) -> dict[str, BootstrapDistribution]:
    """The metrics `specs.GROUP_METRICS` in every resample; without a calibration map only AUROC and AP."""
    metrics = resampled_metrics.ranking(scored, resamples, ("auroc", "ap"))
    if scored.scores is None or not scored.thresholds:
        return metrics
    support, known = metrics["auroc"].support, scored.known()
    positive = scored.labels == 1
    predicted = scored.scores >= scored.thresholds[rule]
    columns = [positive, positive & predicted, known, np.where(known, scored.scores, 0.0)]
    positives, hits, images, sums = resamples.totals(np.stack(columns, axis=1).astype(np.float64)).T
    hit = divide(hits, positives, positives > 0)
    of_positives = Support.of(resamples.counts(positive))
    return metrics | {
        "sensitivity": BootstrapDistribution(hit, of_positives, "share"),
        "false_negative_rate": BootstrapDistribution(1 - hit, of_positives, "share"),
        "calibration": BootstrapDistribution(divide(sums - positives, images, images > 0), support, "free"),
    }


def _filled(
    row: AuditRow,
    metric: str,
    value: BootstrapDistribution,
    other: BootstrapDistribution | None,
    resamples: Resamples,
) -> AuditRow:
    """A row with a metric of the group, and its difference to all other images."""
    interval = resamples.interval(value)
    row = replace(row, metric=metric, value=interval.value, low=interval.low, high=interval.high)
    if other is None:
        return row
    paired = resamples.difference(value, other)
    gap = resamples.interval(paired)
    row = replace(
        row,
        others=resamples.interval(other).value,
        difference=gap.value,
        difference_low=gap.low,
        difference_high=gap.high,
    )
    if metric not in TESTED_METRICS:
        return row
    minimum = MINIMUM_VARIANCE.get(metric)
    return replace(row, p=resamples.p_value(paired, minimum(value) + minimum(other) if minimum else 0.0))


def _share_variance(share: BootstrapDistribution) -> float:
    """Variance of a share of n patients with two hits and two misses added (Agresti and Coull, 1998).

    With few patients a share may be 1 (or 0) in the sample and then in every resample.
    """
    n = share.support.effective
    shrunk = (float(share.values[0]) * n + 2) / (n + 4)
    return shrunk * (1 - shrunk) / (n + 4)


def _auroc_variance(area: BootstrapDistribution) -> float:
    """Contribution of n patients of the smaller class to the variance of the AUROC, for normally distributed scores.

    Computed for an AUROC shrunk slightly towards one half: if few patients are ranked almost perfectly, resamples
    hardly vary although other patients might.
    """
    n = area.support.effective
    shrunk = (float(area.values[0]) * n + 1) / (n + 2)
    # The probability that a positive ranks above two negatives is A − 2 T(z, 1/√3), with Owen's T.
    both = shrunk - 2 * owens_t(ndtri(shrunk), 1 / np.sqrt(3))
    return float(both - shrunk**2) / n


MINIMUM_VARIANCE = {"auroc": _auroc_variance, "sensitivity": _share_variance}
