"""Audit: figures of groups of images (sex, age, view, source, and their pairs) beside those of all other images.

A gap is flagged if it exceeds chance after Holm's correction for all gaps that were tested. AUROC, sensitivity at the
chosen threshold and calibration are tested. AP is shown but not tested: it rises with the prevalence, so that groups
differ in it without any fault of the model; the false negative rate is 1 − sensitivity and not tested again.
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
# calibration: mean calibrated score − share of positives, so that 0 is best.
FIGURES = ("auroc", "ap", "sensitivity", "false_negative_rate", "calibration")
TESTED = ("auroc", "sensitivity", "calibration")

TEXT = ("attribute", "group", "finding", "metric", "flagged", "note")
COLUMNS = (
    "attribute", "group", "finding", "images", "patients", "positives", "metric", "value", "low", "high",
    "others", "difference", "difference_low", "difference_high", "p", "p_holm", "flagged", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Images that share an attribute, or two."""

    attribute: str
    """sex, age, view, source; a pair as `sex × age`."""
    name: str
    rows: Array
    """Which of the images, bool [rows]."""


def audit(evaluation: Evaluation) -> pd.DataFrame:
    """audit.csv: a row per group, finding (and macro) and figure of `FIGURES`, beside the same of the other images.

    A row without a metric says in `note` why there is none: too few patients, an attribute that the data does not
    have. `difference` is group − others, of the same resamples. The macro of a group goes over the findings that have
    the figure in the group and among the others.
    """
    config, resamples = evaluation.config.audit, evaluation.resamples
    rows: list[dict[str, Any]] = [
        {"attribute": name, "group": "", "finding": "", "flagged": "", "note": "not in the data"}
        for name in config.by
        if COLUMN[name] not in evaluation.rows.columns
    ]
    for group in groups(evaluation.rows, config):
        inside, outside = resamples.rows(group.rows), resamples.rows(~group.rows)
        facts = {
            "attribute": group.attribute,
            "group": group.name,
            "images": int(group.rows.sum()),
            "patients": inside.patients,
        }
        pairs: dict[str, list[tuple[BootstrapDistribution, BootstrapDistribution]]] = {
            name: [] for name in FIGURES
        }
        for name in evaluation.estimable:
            own, others = evaluation.scored[name].rows(group.rows), evaluation.scored[name].rows(~group.rows)
            row = facts | {"finding": name, "positives": int((own.labels == 1).sum())}
            note = _too_few(own, inside, config.min_positives)
            if note:
                rows.append(row | {"metric": "", "flagged": "", "note": note})
                continue
            found = figures(own, inside, evaluation.config.threshold.rule)
            lacking = _too_few(others, outside, config.min_positives)
            beside = {} if lacking else figures(others, outside, evaluation.config.threshold.rule)
            for figure, value in found.items():
                other = beside.get(figure)
                rows.append(
                    row | _row(figure, value, other, resamples)
                    | {"note": f"nothing to compare with: {lacking}" if lacking else ""}
                )  # fmt: skip
                if other is not None:
                    pairs[figure].append((value, other))
        for figure, several in pairs.items():
            if len(several) < 2:
                continue
            own_mean, other_mean = (resamples.mean([pair[side] for pair in several]) for side in (0, 1))
            row = facts | {"finding": "macro", "positives": None}
            rows.append(
                row | _row(figure, own_mean, other_mean, resamples)
                | {"note": f"mean of {len(several)} findings"}
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

    An attribute with one value only makes no pair. Images whose value is not known are a group of their own, but of
    no pair.
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
    several = [a for a in config.by if sum(g.attribute == a and g.name != UNKNOWN for g in single) > 1]
    pairs = [
        Group(f"{one} × {two}", f"{a.name}, {b.name}", a.rows & b.rows)
        for one, two in combinations(several, 2)
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
    place = np.searchsorted(first, np.nan_to_num(numbers), side="right")
    return np.where(np.isnan(numbers), UNKNOWN, names[place])


def _first_year(name: str) -> float:
    """So that age bands stand in their order; 0 for names of another kind."""
    digits = name.rstrip("+").split("–")[0]
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0


def _too_few(scored: Scored, resamples: Resamples, least: int) -> str:
    counts = [len(np.unique(resamples.patient[scored.labels == label])) for label in (1, 0)]
    return "; ".join(
        f"too few: {count} patients {kind} the finding, at least {least} needed"
        for count, kind in zip(counts, ("with", "without"), strict=True)
        if count < least
    )


def figures(scored: Scored, resamples: Resamples, rule: Rule) -> dict[str, BootstrapDistribution]:
    """The figures of `FIGURES` in every resample; without a map those of the ranking only."""
    found = resampled_metrics.ranking(scored, resamples, ("auroc", "ap"))
    if scored.scores is None or not scored.thresholds:
        return found
    support, known = found["auroc"].support, scored.known()
    positive = scored.labels == 1
    called = scored.scores >= scored.thresholds[rule]
    columns = [positive, positive & called, known, np.where(known, scored.scores, 0.0)]
    positives, hits, images, sums = resamples.totals(np.stack(columns, axis=1).astype(np.float64)).T
    hit = divide(hits, positives, positives > 0)
    of_positives = Support.of(resamples.counts(positive))
    return found | {
        "sensitivity": BootstrapDistribution(hit, of_positives, "share"),
        "false_negative_rate": BootstrapDistribution(1 - hit, of_positives, "share"),
        "calibration": BootstrapDistribution(divide(sums - positives, images, images > 0), support, "free"),
    }


def _row(
    figure: str, value: BootstrapDistribution, other: BootstrapDistribution | None, resamples: Resamples
) -> dict[str, Any]:
    """One figure of a group, and its difference to the others."""
    found = resamples.interval(value)
    row: dict[str, Any] = {
        "metric": figure,
        "value": found.value,
        "low": found.low,
        "high": found.high,
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
    if figure in TESTED:
        least = (
            sum(LEAST_VARIANCE[figure](side) for side in (value, other)) if figure in LEAST_VARIANCE else 0.0
        )
        row["p"] = resamples.p_value(paired, least)
    return row


def _share_variance(share: BootstrapDistribution) -> float:
    """Variance of a share of n patients with two hits and two misses added (Agresti and Coull, 1998).

    Of few patients all may be found, and all of every resample then are.
    """
    n = share.support.effective
    near = (float(share.values[0]) * n + 2) / (n + 4)
    return near * (1 - near) / (n + 4)


def _auroc_variance(area: BootstrapDistribution) -> float:
    """What n patients of the smaller class add to the variance of the AUROC of normally distributed scores.

    Of an AUROC a little nearer to one half than it is: where few patients are ranked nearly perfectly, resamples
    hardly vary, though other patients may.
    """
    n = area.support.effective
    near = (float(area.values[0]) * n + 1) / (n + 2)
    # The chance that a positive is above two negatives is near − 2 T(z, 1/√3), with Owen's T.
    both = near - 2 * owens_t(ndtri(near), 1 / np.sqrt(3))
    return float(both - near**2) / n


LEAST_VARIANCE = {"auroc": _auroc_variance, "sensitivity": _share_variance}
