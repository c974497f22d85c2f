"""Shortcut probes: what else than findings the features tell, and what findings are worth without it.

A linear probe that tells the source of an image from the features shows that a classifier on them can use it; not that
it does. Whether it does shows among images of the same source: there it is no help, and the AUROC of a finding falls.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ral.config.evaluate import EvaluateConfig
from ral.config.robustness import ProbesConfig
from ral.evaluation.audit import COLUMN, UNKNOWN, Group, group_rows, in_order, values_of
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, holm
from ral.evaluation.metrics import divide
from ral.evaluation.resampled_metrics import Scored, ranking
from ral.evaluation.results import rounded_number
from ral.explain.features import NoMapError
from ral.inference.bank import feature_batches
from ral.progress import Progress
from ral.robustness.contents import ProbeRow, Probes, StratumRow, WithinRow
from ral.robustness.subject import Subject

Array = NDArray[Any]


@dataclass(frozen=True)
class Stratified:
    """What the metrics of a group of images need (`audit.Measured`)."""

    config: EvaluateConfig
    resamples: Resamples
    scored: Mapping[str, Scored]
    estimable: Sequence[str]


def audit_probes(subject: Subject, logits: NDArray[np.float32], config: ProbesConfig, seed: int) -> Probes:
    """Probe the features of the test images for each attribute, and measure the findings within its values.

    Args:
        subject: the model and the images.
        logits: raw logits of the test images [images, findings].
        config: the section robustness.probes.
        seed: of the folds.
    """
    values, left_out = attribute_values(subject, config.attributes)
    result = Probes(folds=config.folds, left_out=left_out)
    if not values:
        return result
    measured = Stratified(
        subject.config,
        subject.resamples,
        subject.scored(logits),
        [name for name in subject.tiers if name not in subject.not_estimable],
    )
    strata = [row for name, column in values.items() for row in stratum_rows(measured, name, column)]
    within = [row for name, column in values.items() for row in within_rows(measured, name, column)]
    result = result.model_copy(update={"strata": tuple(strata), "within": corrected(within)})
    try:
        network = subject.network
        parts = list(feature_batches(network, subject.info, subject.dataset, subject.rows))
    except NoMapError as error:
        return result.model_copy(update={"not_available": str(error)})
    features = np.concatenate(parts).astype(np.float64)
    rows: list[ProbeRow] = []
    with Progress("probing the features", len(values), "attributes") as progress:
        for name, column in values.items():
            rows += probe_rows(features, name, column, subject.resamples, config, seed)
            progress.add()
    return result.model_copy(update={"probes": tuple(rows)})


def attribute_values(subject: Subject, attributes: Sequence[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """The value of every test image [images] by attribute, and why other attributes are left out."""
    studies = subject.dataset.studies.iloc[subject.rows].reset_index(drop=True)
    if "member" in studies.columns:
        studies["file_type"] = file_types(studies)
    values, left_out = {}, {}
    for name in attributes:
        if COLUMN.get(name, name) not in studies.columns:
            left_out[name] = "not in the data"
            continue
        column = values_of(studies, name, subject.config.audit.age_bands)
        known = [value for value in in_order(column) if value != UNKNOWN]
        if len(known) < 2:
            left_out[name] = f"one value: {known[0]}" if known else "no known value"
            continue
        values[name] = column
    return values, left_out


def file_types(studies: pd.DataFrame) -> list[str]:
    """Kind of each image's file by the end of its name, in capitals; files without one are unknown.

    Args:
        studies: with the columns path and member (empty: the path is that of the image).
    """
    names = studies["member"].where(studies["member"].fillna("") != "", studies["path"]).astype(str)
    kinds = [PurePosixPath(name).suffix.removeprefix(".").upper() for name in names]
    return ["JPEG" if kind == "JPG" else kind for kind in kinds]


def probe_rows(
    features: Array, attribute: str, values: Array, resamples: Resamples, config: ProbesConfig, seed: int
) -> Iterator[ProbeRow]:
    """The rows of an attribute: each value against the others; of two values, the first against the second.

    Args:
        features: of the images, float64 [images, width].
        attribute: its name.
        values: of the images.
        resamples: of the patients of the images.
        config: the section robustness.probes.
        seed: of the folds.
    """
    known = values != UNKNOWN
    names = [name for name in in_order(values) if name != UNKNOWN]
    own = resamples.rows(known)
    for name in names[:1] if len(names) == 2 else names:
        target = (values[known] == name).astype(np.int64)
        patients = [len(np.unique(own.patient[target == side])) for side in (1, 0)]
        row = ProbeRow(
            attribute=attribute,
            value=name,
            others=names[1] if len(names) == 2 else "",
            images=int(target.sum()),
            patients=patients[0],
            share=round(float(target.mean()), 6),
        )
        if min(patients) < 2 * config.folds:
            yield row.model_copy(
                update={"note": f"fewer than {2 * config.folds} patients with or without it"}
            )
            continue
        try:
            scores = out_of_fold(features[known], target, own.patient, config, seed)
        except ConvergenceWarning:
            yield row.model_copy(update={"note": "did not converge: raise robustness.probes.l2"})
            continue
        scored = Scored(target.astype(np.float64), scores, None, {})
        area = own.interval(ranking(scored, own, ("auroc",))["auroc"])
        numbers = {"auroc": area.value, "low": area.low, "high": area.high}
        yield row.model_copy(update={name: rounded_number(number) for name, number in numbers.items()})


def out_of_fold(
    features: Array, target: Array, patients: Array, config: ProbesConfig, seed: int
) -> NDArray[np.float64]:
    """Log-odds of the target of each image, by a logistic regression on the other patients' images.

    Args:
        features: float64 [images, width].
        target: 0 or 1 [images].
        patients: number of the patient of each image.
        config: the section robustness.probes.
        seed: of the folds, which have about the same share of positives: otherwise a fold with more of them would be
            scored by a model that expects fewer.

    Raises:
        ConvergenceWarning: a regression did not converge.
    """
    scores = np.zeros(len(target))
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=seed)
    for train, test in folds.split(features, target, patients):
        inverse = 1 / (config.l2 * len(train))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse, max_iter=1000))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(features[train], target[train])
        scores[test] = model.decision_function(features[test])
    return scores


def stratum_rows(measured: Stratified, attribute: str, values: Array) -> Iterator[StratumRow]:
    """AP of the findings among the images with each value, and among the others, as the subgroup audit has them."""
    for name in in_order(values):
        for row in group_rows(Group((attribute,), (name,), values == name), measured):
            if row.metric not in ("ap", ""):
                continue
            numbers = {
                "ap": row.value, "low": row.low, "high": row.high, "others": row.others,
                "difference": row.difference, "difference_low": row.difference_low,
                "difference_high": row.difference_high,
            }  # fmt: skip
            yield StratumRow(
                attribute=attribute,
                value=name,
                finding=row.finding,
                images=row.images,
                positives=row.positives,
                note=row.note,
                **{key: rounded_number(number) for key, number in numbers.items()},
            )


def within_rows(measured: Stratified, attribute: str, values: Array) -> Iterator[WithinRow]:
    """AUROC of the findings among all images with a known value, and among pairs of images with the same value."""
    known = values != UNKNOWN
    resamples, values = measured.resamples.rows(known), values[known]
    pairs = []
    for name in measured.estimable:
        scored = measured.scored[name].rows(known)
        within = within_auroc(scored, values, resamples)
        if within is None:
            continue
        pairs.append((ranking(scored, resamples, ("auroc",))["auroc"], within))
        yield _within_row(attribute, name, *pairs[-1], resamples)
    if len(pairs) > 1:
        over_all, over_pairs = (resamples.mean(side) for side in zip(*pairs, strict=True))
        yield _within_row(attribute, "macro", over_all, over_pairs, resamples)


def within_auroc(scored: Scored, values: Array, resamples: Resamples) -> BootstrapDistribution | None:
    """The probability that a positive is ranked above a negative with the same value of an attribute, in every
    resample; None if fewer than half of the positives have such a negative.
    """
    wins = total = np.zeros(resamples.weights.shape[1])
    compared = np.zeros(len(values), bool)
    for name in in_order(values):
        rows = values == name
        inside = scored.rows(rows)
        if not ((inside.labels == 1).any() and (inside.labels == 0).any()):
            continue
        own = resamples.rows(rows)
        area = ranking(inside, own, ("auroc",))["auroc"].values
        sides = np.stack([inside.labels == 1, inside.labels == 0], axis=1).astype(np.float64)
        number = own.totals(sides).prod(axis=1)
        wins, total = wins + np.where(number > 0, np.nan_to_num(area) * number, 0), total + number
        compared |= rows
    positive = scored.labels == 1
    if (compared & positive).sum() * 2 < max(positive.sum(), 1):
        return None
    support = resamples.support(np.where(compared, scored.labels, np.nan))
    return BootstrapDistribution(divide(wins, total, total > 0), support, "auroc")


def _within_row(
    attribute: str,
    finding: str,
    over_all: BootstrapDistribution,
    within: BootstrapDistribution,
    resamples: Resamples,
) -> WithinRow:
    found = resamples.paired(within, over_all)
    return WithinRow(
        attribute=attribute,
        finding=finding,
        auroc=rounded_number(found.second),
        within=rounded_number(found.first),
        difference=rounded_number(found.difference),
        low=rounded_number(found.low),
        high=rounded_number(found.high),
        p=rounded_number(found.p),
    )


def corrected(rows: Sequence[WithinRow]) -> tuple[WithinRow, ...]:
    """The rows with Holm's correction: over those of findings, and over those of means."""
    adjusted: dict[int, float] = {}
    for means in (False, True):
        family = [index for index, row in enumerate(rows) if (row.finding == "macro") == means]
        p_values = holm(np.array([rows[index].p for index in family], dtype=np.float64))
        adjusted |= dict(zip(family, p_values.tolist(), strict=True))
    return tuple(
        row.model_copy(update={"p_holm": rounded_number(adjusted[index])}) for index, row in enumerate(rows)
    )
