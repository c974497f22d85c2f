"""Simulated test sets with known true values, for benchmarks.coverage."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from ral.config.evaluate import RULES
from ral.evaluation import resampled_metrics
from ral.evaluation.audit import group_metrics
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples
from ral.evaluation.metrics import cuts, f1
from ral.evaluation.resampled_metrics import Scored
from ral.evaluation.score import micro
from ral.evaluation.second_reading import agreements
from ral.evaluation.specs import MICRO_METRICS, THRESHOLD_METRICS

Array = NDArray[Any]


@dataclass(frozen=True)
class Prevalence:
    """Prevalence of a finding."""

    share: float
    """Of the images."""
    tier: Literal["head", "medium", "tail"]
    """As `evaluate.head` and `evaluate.tail` divide them."""


# The shares of NIH ChestX-ray14 (Wang et al., 2017).
SHARES = {
    "Infiltration": 0.1774, "Effusion": 0.1188, "Atelectasis": 0.1031, "Nodule": 0.0565, "Mass": 0.0516,
    "Pneumothorax": 0.0473, "Consolidation": 0.0416, "Pleural thickening": 0.0302, "Cardiomegaly": 0.0248,
    "Emphysema": 0.0224, "Edema": 0.0205, "Fibrosis": 0.0150, "Pneumonia": 0.0128, "Hernia": 0.0020,
}  # fmt: skip
FINDINGS = {
    name: Prevalence(share, "head" if share > 0.1 else "medium" if share > 0.01 else "tail")
    for name, share in SHARES.items()
}
MOST_IMAGES = 12
# Share of the variance of labels and scores common to a patient's images; half of it is common to all
# findings.
COMMON = 0.5
# Bins of the calibration error.
BINS = 15
# Distance between positive and negative scores of the two models, in standard deviations, and correlation of
# their noise.
DISTANCES, ALIKE = (1.7, 1.6), 0.7
# The models are slightly overconfident.
SLOPE, CONSTANT = 1.15, 0.1
# A second reading has some false negatives and false positives.
MISSED, ADDED = 0.15, 0.005


@dataclass(frozen=True)
class Sample:
    """A test set, scored by two models."""

    patients: Array
    """Ids, text [rows]."""
    half: Array
    """Whether the patient is in one half, bool [rows]."""
    first: dict[str, Scored]
    second: dict[str, Scored]
    readings: dict[str, Array]
    """A second reading, 1 or 0 [rows]."""


def sample(count: int, generator: np.random.Generator, thresholds: dict[str, float]) -> Sample:
    """Draw a test set of `count` patients.

    Args:
        count: number of patients.
        generator: random generator.
        thresholds: threshold of each finding on the calibrated scores, for all rules.
    """
    patient = np.repeat(np.arange(count), images_of(count, generator))
    common = generator.normal(size=(2, count))
    first, second, readings = {}, {}, {}
    for name, finding in FINDINGS.items():
        labels, logits, reading = _finding(finding.share, patient, common, generator)
        chosen = dict.fromkeys(RULES, thresholds.get(name, 1.0))
        first[name], second[name] = (Scored(labels, x, expit(x), chosen) for x in logits)
        readings[name] = reading
    ids = np.char.add("p", np.char.zfill(patient.astype(str), 6))
    return Sample(ids, patient % 2 == 0, first, second, readings)


def images_of(count: int, generator: np.random.Generator) -> Array:
    """Number of images per patient: 1 to 12, mostly few, 4 on average."""
    return 1 + (generator.geometric(0.25, size=count) - 1) % MOST_IMAGES


def _finding(
    share: float, patient: Array, common: Array, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Labels [rows], logits of two models [2, rows] and a second reading [rows] of one finding."""
    count, rows = common.shape[1], len(patient)

    def correlated(finding_common: Array) -> Array:
        """Unit variance; correlated between the images of a patient and between findings."""
        of_patient = np.sqrt(0.5) * finding_common + np.sqrt(0.5) * generator.normal(size=count)
        return np.asarray(
            np.sqrt(COMMON) * of_patient[patient] + np.sqrt(1 - COMMON) * generator.normal(size=rows)
        )

    labels = (correlated(common[0]) > -ndtri(share)).astype(np.float64)
    alike = correlated(common[1])
    logits = []
    for distance in DISTANCES:
        noise = np.sqrt(ALIKE) * alike + np.sqrt(1 - ALIKE) * generator.normal(size=rows)
        score = distance * labels + noise
        true = distance * score - distance**2 / 2 + np.log(share / (1 - share))
        logits.append(SLOPE * true + CONSTANT)
    chance = generator.random(rows)
    reading = np.where(labels == 1, chance >= MISSED, chance < ADDED).astype(np.float64)
    return labels, np.stack(logits), reading


@dataclass(frozen=True)
class Population:
    """True values, from a large population."""

    thresholds: dict[str, float]
    """Of the highest F1, on the calibrated scores."""
    first: dict[str, dict[str, float]]
    """Finding -> figure -> value, of the first model."""
    second: dict[str, dict[str, float]]
    micro: dict[str, float]
    agreement: dict[str, dict[str, float]]
    calibration: dict[str, float]
    """Mean score − share of positives."""
    scores: dict[str, Array]
    """Of the first model, rising [rows]."""
    positives: dict[str, Array]
    """Positives below each of them, [rows + 1]."""

    def shares(self, name: str, edges: Array) -> Array:
        """Share of positives among the images with a score between each two edges; NaN where there is none."""
        ends = np.searchsorted(self.scores[name], edges)
        counts = np.diff(ends)
        return np.diff(self.positives[name][ends]) / np.where(counts > 0, counts, np.nan)

    def net_benefit(self, name: str, at: Array) -> Array:
        """Net benefit at threshold probabilities [thresholds]."""
        below = np.searchsorted(self.scores[name], at)
        true = self.positives[name][-1] - self.positives[name][below]
        false = len(self.scores[name]) - below - true
        benefit: Array = (true - false * at / (1 - at)) / len(self.scores[name])
        return benefit


def all_figures(scored: Scored, resamples: Resamples) -> dict[str, BootstrapDistribution]:
    """The metrics of a finding that the step evaluate reports."""
    at_threshold = resampled_metrics.metrics_at_threshold(scored, resamples)["max_f1"]
    return (
        resampled_metrics.ranking(scored, resamples)
        | {name: at_threshold[name] for name in THRESHOLD_METRICS}
        | {"f1_at_half": resampled_metrics.f1_at(scored, resamples, 0.5)}
        | resampled_metrics.calibration(scored, resamples, BINS)
    )


def population(count: int) -> Population:
    """Metrics of a population of `count` patients, by the code of the evaluation, without resampling."""
    generator = np.random.default_rng(20_26)
    images = sample(count, generator, {})
    once = Resamples(
        np.zeros(len(images.patients), np.int64), np.ones((1, 1), np.uint16), 0, 0.95, "percentile"
    )
    thresholds: dict[str, float] = {}
    values: dict[int, dict[str, dict[str, float]]] = {0: {}, 1: {}}
    agreement, calibration, scores, positives = {}, {}, {}, {}
    scored = {}
    for name in FINDINGS:
        for model, one in enumerate((images.first[name], images.second[name])):
            assert one.scores is not None
            if not model:
                cut = cuts(one.scores, one.labels)
                best = f1(
                    cut.true_positives,
                    cut.false_positives,
                    np.full(len(cut.thresholds), cut.true_positives[-1]),
                )
                thresholds[name] = float(cut.thresholds[np.argmax(best)])
            one = Scored(one.labels, one.logits, one.scores, dict.fromkeys(RULES, thresholds[name]))
            scored[name, model] = one
            values[model][name] = {
                key: float(value.values[0]) for key, value in all_figures(one, once).items()
            }
        first = scored[name, 0]
        assert first.scores is not None
        agreement_values = agreements(first.labels, images.readings[name], once)
        agreement[name] = {key: float(value.values[0]) for key, value in agreement_values.items()}
        calibration[name] = float(group_metrics(first, once, "max_f1")["calibration"].values[0])
        order = np.argsort(first.scores)
        scores[name], positives[name] = first.scores[order], np.append(0, np.cumsum(first.labels[order]))
    pooled = micro([scored[name, 0] for name in FINDINGS], once, "max_f1")
    pooled_values = {key: float(pooled[key].value or 0) for key in MICRO_METRICS}
    return Population(
        thresholds, values[0], values[1], pooled_values, agreement, calibration, scores, positives
    )
