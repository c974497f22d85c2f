"""Subgroup audit: metrics of groups of images (sex, age, view, source and pairs of these) compared with all
other images.

A gap is flagged if it is significant after Holm's correction over all tested gaps. AUROC, sensitivity at the chosen
threshold and calibration are tested. AP is shown but not tested: it rises with the prevalence, so groups differ in AP
even for a fair model. The false negative rate is 1 − sensitivity and is not tested separately.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, owens_t

from ral.config.evaluate import AuditConfig, Rule
from ral.evaluation import resampled_metrics
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support, holm
from ral.evaluation.metrics import divide
from ral.evaluation.resampled_metrics import Scored
from ral.evaluation.score import Evaluation
from ral.evaluation.tables import rounded

Array = NDArray[Any]

UNKNOWN = "unknown"
# calibration: mean calibrated score − share of positives; 0 is best.
GROUP_METRICS = ("auroc", "ap", "sensitivity", "false_negative_rate", "calibration")
TESTED_METRICS = ("auroc", "sensitivity", "calibration")

TEXT = ("attribute", "group", "finding", "metric", "flagged", "note")
COLUMNS = (
    "attribute", "group", "finding", "images", "patients", "positives", "metric", "value", "low", "high",
    "others", "difference", "difference_low", "difference_high", "p", "p_holm", "flagged", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Images that have the same value of one or two attributes."""

    attribute: str
    """sex, age, view or source; a pair is written `sex × age`."""
    name: str
    rows: Array
    """Mask of the group's images, bool [rows]."""


def audit(evaluation: Evaluation) -> pd.DataFrame:
    """audit.csv: a row per group, finding (and macro) and metric of `GROUP_METRICS`, with the value for all
    other images.

    A row without a metric has the reason in `note`: too few patients, or an attribute that the data does not have.
    `difference` is group − others, computed on the same resamples. The macro of a group is the mean over the findings
    for which the metric is defined in the group and among the others.
    """
    config, resamples = evaluation.config.audit, evaluation.resamples
    rows: list[dict[str, Any]] = [
        {"attribute": name, "group": "", "finding": "", "flagged": "", "note": "not in the data"}
        for name in config.by
        if COLUMN[name] not in evaluation.rows.columns
    ]
    for group in groups(evaluation.rows, config):
        inside, outside = resamples.rows(group.rows), resamples.rows(~group.rows)
        group_columns = {
            "attribute": group.attribute,
            "group": group.name,
            "images": int(group.rows.sum()),
            "patients": inside.patients,
        }
        pairs: dict[str, list[tuple[BootstrapDistribution, BootstrapDistribution]]] = {
            name: [] for name in GROUP_METRICS
        }
        for name in evaluation.estimable:
            scored = evaluation.scored[name]
            scored_group, scored_others = scored.rows(group.rows), scored.rows(~group.rows)
            row = group_columns | {"finding": name, "positives": int((scored_group.labels == 1).sum())}
            note = _too_few(scored_group, inside, config.min_positives)
            if note:
                rows.append(row | {"metric": "", "flagged": "", "note": note})
                continue
            rule = evaluation.config.threshold.rule
            in_group = group_metrics(scored_group, inside, rule)
            reason = _too_few(scored_others, outside, config.min_positives)
            in_others = {} if reason else group_metrics(scored_others, outside, rule)
            for metric, value in in_group.items():
                other = in_others.get(metric)
                rows.append(
                    row | _row(metric, value, other, resamples)
                    | {"note": f"nothing to compare with: {reason}" if reason else ""}
                )  # fmt: skip
                if other is not None:
                    pairs[metric].append((value, other))
        for metric, metric_pairs in pairs.items():
            if len(metric_pairs) < 2:
                continue
            group_mean, others_mean = (
                resamples.mean([pair[side] for pair in metric_pairs]) for side in (0, 1)
            )
            row = group_columns | {"finding": "macro", "positives": None}
            rows.append(
                row | _row(metric, group_mean, others_mean, resamples)
                | {"note": f"mean of {len(metric_pairs)} findings"}
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(dtype=np.float64))
    limit = 1 - evaluation.config.confidence
    table.loc[tested, "flagged"] = np.where(table.loc[tested, "p_holm"] <= limit, "yes", "no")
    table["metric"] = table["metric"].fillna("")
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
        values = (
            _bands(images[COLUMN[attribute]], config.age_bands)
            if attribute == "age"
            else _values(images[attribute])
        )
        names = sorted(set(values), key=lambda name: (name == UNKNOWN, _first_year(name), name))
        single += [Group(attribute, name, values == name) for name in names]
    paired = [a for a in config.by if sum(g.attribute == a and g.name != UNKNOWN for g in single) > 1]
    pairs = [
        Group(f"{one} × {two}", f"{a.name}, {b.name}", a.rows & b.rows)
        for one, two in combinations(paired, 2)
        for a in single
        for b in single
        if (a.attribute, b.attribute) == (one, two) and UNKNOWN not in (a.name, b.name)
    ]
    return [group for group in single + pairs if group.rows.any()]


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
    """The metrics `GROUP_METRICS` in every resample; without a calibration map only AUROC and AP."""
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


def _row(
    metric: str, value: BootstrapDistribution, other: BootstrapDistribution | None, resamples: Resamples
) -> dict[str, Any]:
    """One metric of a group, and its difference to all other images."""
    interval = resamples.interval(value)
    row: dict[str, Any] = {
        "metric": metric,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "flagged": "",
    }
    if other is None:
        return row
    paired = resamples.difference(value, other)
    gap = resamples.interval(paired)
    row |= {
        "others": resamples.interval(other).value,
        "difference": gap.value,
        "difference_low": gap.low,
        "difference_high": gap.high,
    }
    if metric in TESTED_METRICS:
        minimum = (
            sum(MINIMUM_VARIANCE[metric](side) for side in (value, other))
            if metric in MINIMUM_VARIANCE
            else 0.0
        )
        row["p"] = resamples.p_value(paired, minimum)
    return row


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
