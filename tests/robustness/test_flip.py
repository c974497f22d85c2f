"""The flip audit: 0 for a network that does not see the side, and the change of one that does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from robustness_inputs import Sums, make_subject
from scipy.stats import spearmanr

from ral.config.evaluate import EvaluateConfig
from ral.robustness.flip import audit_flip
from ral.robustness.pixels import Shift
from ral.robustness.shifts import audit_shifts
from ral.robustness.subject import Subject

FLIP = [Shift("flip")]


def test_a_network_that_does_not_see_the_side_changes_nothing(prepared: Path, config: EvaluateConfig) -> None:
    subject = make_subject(prepared, Sums(symmetric=True), config)
    _, logits = audit_shifts(subject, FLIP, seed=0)
    assert logits["flip"].tobytes() == logits[""].tobytes()
    flip = audit_flip(subject, logits[""], logits["flip"])
    assert (flip.changed_images, flip.low) == (0, 0)
    assert flip.high < 0.1
    for row in flip.rows:
        assert (row.logit, row.probability, row.changed_calls) == (0, 0, 0)
        assert row.rank_correlation == pytest.approx(1)


def test_changes_of_a_network_that_sees_the_side(subject: Subject) -> None:
    _, logits = audit_shifts(subject, FLIP, seed=0)
    # The left region becomes the right one: finding 0 gets the logit of finding 2, up to one column of pixels.
    flip = audit_flip(subject, logits[""], logits["flip"])
    before, after = (logits[name].astype(np.float64) for name in ("", "flip"))
    row = flip.row("finding", "Effusion")
    assert row.logit == pytest.approx(np.abs(after[:, 0] - before[:, 0]).mean(), abs=1e-6)
    assert row.logit > 0.1
    assert row.rank_correlation == pytest.approx(spearmanr(before[:, 0], after[:, 0]).statistic, abs=1e-6)
    maps = {name: subject.calibration.findings[name].map for name in subject.tiers}
    calls = {
        name: [maps[name].apply(values[:, column]) >= 0.4 for values in (before, after)]
        for column, name in enumerate(("Effusion", "Mass", "Hernia"))
    }
    changed = {name: first != second for name, (first, second) in calls.items()}
    assert 0 < changed["Effusion"].mean() < 1
    for name, rows in changed.items():
        assert flip.row("finding", name).changed_calls == pytest.approx(rows.mean(), abs=1e-6)
    assert row.low < row.changed_calls < row.high
    any_changed = np.logical_or.reduce(list(changed.values()))
    assert flip.changed_images == pytest.approx(any_changed.mean(), abs=1e-6)
    shares = [flip.row("finding", name).changed_calls for name in changed]
    assert flip.row("macro", "macro").changed_calls == pytest.approx(np.mean(shares), abs=1e-6)


def test_without_calls_nothing_is_said_of_them(subject: Subject) -> None:
    uncalibrated = dict.fromkeys(subject.calibration.findings)
    changed = replace(subject, calibration=subject.calibration.model_copy(update={"findings": uncalibrated}))
    _, logits = audit_shifts(changed, FLIP, seed=0)
    flip = audit_flip(changed, logits[""], logits["flip"])
    assert (flip.changed_images, flip.low, flip.high) == (None, None, None)
    assert flip.row("macro", "macro").changed_calls is None
    assert flip.row("macro", "macro").logit > 0
