"""Every metric of one finding on some rows, in every resample: what whole evaluation and audit have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ral.config.evaluate import RULES, Rule
from ral.evaluation.bootstrap import Resamples, Sampled
from ral.evaluation.metrics import RANKED, divide, f1, rank, ranked
from ral.evaluation.reliability import ERRORS, errors

Array = NDArray[Any]

COUNTS = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True)
class Scored:
    """One finding on the rows that are scored."""

    labels: Array
    """1, 0 or NaN [rows]."""
    logits: Array
    """Raw [rows]."""
    scores: Array | None
    """Calibrated [rows]; None if the finding could not be calibrated."""
    thresholds: Mapping[Rule, float]
    """Of each rule, on the calibrated scores; empty if there are none."""

    def rows(self, chosen: Array) -> "Scored":
        """The same finding on some of the rows."""
        scores = None if self.scores is None else self.scores[chosen]
        return replace(self, labels=self.labels[chosen], logits=self.logits[chosen], scores=scores)

    def known(self) -> Array:
        """Which rows have a label, bool [rows]."""
        return ~np.isnan(self.labels)


def ranking(scored: Scored, resamples: Resamples, names: tuple[str, ...] = RANKED) -> dict[str, Sampled]:
    """AUROC, AP and the two operating points, from the raw logits."""
    patients = resamples.effective(scored.labels)
    found = ranked(
        rank(scored.logits, scored.labels, resamples.patient, resamples.patients), resamples.weights, names
    )
    return {name: Sampled(values, patients) for name, values in found.items()}


def calls(scored: Scored, resamples: Resamples) -> dict[Rule, dict[str, Sampled]]:
    """The figures of `COUNTS` at the threshold of each rule, with `tp`, `fp`, `fn`, `tn`; empty without thresholds.

    Each is NaN where there is nothing to divide by, F1 without a positive.
    """
    return pooled_calls([scored], resamples, resamples.effective(scored.labels)) if scored.thresholds else {}


def pooled_calls(
    several: Sequence[Scored], resamples: Resamples, patients: float
) -> dict[Rule, dict[str, Sampled]]:
    """The same of the calls of several findings together, each at its own thresholds.

    Args:
        several: findings with thresholds, on the same rows.
        resamples: of those rows.
        patients: effective number of patients behind the calls.
    """
    sums = np.zeros((2 + 2 * len(RULES), resamples.weights.shape[1]))
    for scored in several:
        assert scored.scores is not None
        positive, negative = scored.labels == 1, scored.labels == 0
        columns = [positive, negative]
        for rule in RULES:
            called = scored.scores >= scored.thresholds[rule]
            columns += [called & positive, called & negative]
        sums += resamples.totals(np.stack(columns, axis=1)).T
    found = {}
    for place, rule in enumerate(RULES):
        tp, fp = sums[2 + 2 * place : 4 + 2 * place]
        fn, tn = sums[0] - tp, sums[1] - fp
        values = {
            "tp": tp, "fp": fp, "fn": fn, "tn": tn,
            "sensitivity": divide(tp, tp + fn, tp + fn > 0),
            "specificity": divide(tn, tn + fp, tn + fp > 0),
            "ppv": divide(tp, tp + fp, tp + fp > 0),
            "npv": divide(tn, tn + fn, tn + fn > 0),
            "f1": f1(tp, fp, tp + fn),
        }  # fmt: skip
        found[rule] = {name: Sampled(value, patients) for name, value in values.items()}
    return found


def f1_at(scored: Scored, resamples: Resamples, threshold: float) -> Sampled:
    """F1 at a threshold of the calibrated scores that is given, not chosen."""
    assert scored.scores is not None
    called, positive = scored.scores >= threshold, scored.labels == 1
    sums = resamples.totals(np.stack([called & positive, called & (scored.labels == 0), positive], axis=1))
    return Sampled(f1(*sums.T), resamples.effective(scored.labels))


def calibration(scored: Scored, resamples: Resamples, bins: int, raw: bool = False) -> dict[str, Sampled]:
    """The figures of `reliability.ERRORS` of the calibrated scores; empty if there are none.

    With `raw`, of the sigmoid of the raw logits, to show what calibration changes: that is no probability.
    """
    if scored.scores is None:
        return {}
    known = scored.known()
    scores = sigmoid(scored.logits) if raw else scored.scores
    patients = resamples.effective(scored.labels)
    found = errors(scores[known], scored.labels[known], resamples.rows(known), bins)
    return {name: Sampled(found[name], patients, share=False) for name in ERRORS}


def too_few(scored: Scored, least: int, split: str = "test") -> str | None:
    """Why a finding is not estimable on these rows; None if it is."""
    reasons = []
    for label, kind in ((1, "positive"), (0, "negative")):
        count = int((scored.labels == label).sum())
        if count < least:
            reasons.append(f"{count} {kind} {split} films, at least {least} needed")
    return "; ".join(reasons) or None


def sigmoid(logits: Array) -> Array:
    """Raw logits squeezed into (0, 1): no probabilities, for a loss such as RAL least of all."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
