"""Calibration maps: known solutions, few positives, application of saved maps."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ral.config.base import load
from ral.config.evaluate import CalibrationConfig, EvaluateParams
from ral.errors import UserError
from ral.evaluation import calibration_io
from ral.evaluation.calibration import (
    KINDS,
    MIN_SCORE,
    PRIOR_DEVIATION,
    Map,
    calibrate,
    fit,
    log_losses,
    shared_slopes,
)
from ral.evaluation.score import evaluate
from ral.evaluation.tables import to_calibration

ROOT = Path(__file__).parent.parent.parent
CONFIG = CalibrationConfig(own=20, isotonic=100, bins=15)
FREE = (1.0, 1.0)

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def sample(seed: int, rows: int, slope: float, constant: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true probability is σ(slope · logit + constant)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-0.3, 0.7, size=rows)  # as of RAL: near 0, however rare the finding
    return logits, (generator.random(rows) < expit(slope * logits + constant)).astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_give_the_true_probabilities(kind: str) -> None:
    slope, constant = (2.5, 0.0) if kind == "temperature" else (2.5, -2.0)
    logits, labels = sample(1, 40_000, slope, constant)
    fitted = fit(kind, logits, labels, (2.5, 2.5))
    grid = np.linspace(-1.5, 1.2, 50)
    np.testing.assert_allclose(fitted.apply(grid), expit(slope * grid + constant), atol=0.06)
    assert (np.diff(fitted.apply(np.linspace(-50, 50, 999))) >= 0).all()


def test_platt_is_logistic_regression() -> None:
    logits, labels = sample(2, 50_000, 1.7, -1.0)
    ours = fit("platt", logits, labels, FREE)
    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(logits[:, None], labels)
    assert ours.numbers[0] == ours.numbers[1] == pytest.approx(theirs.coef_[0, 0], rel=0.01)
    assert ours.numbers[2] == pytest.approx(theirs.intercept_[0], rel=0.01)


def test_few_rows_are_drawn_towards_the_shared_slope_as_the_prior_says() -> None:
    logits, labels = sample(6, 80, 1.0, -1.0)

    def objective(values: np.ndarray) -> float:
        score = np.exp(values[0]) * logits + values[1]
        loss = np.sum(np.logaddexp(0, score) - labels * score)
        return loss + (values[0] - np.log(4.0)) ** 2 / (2 * PRIOR_DEVIATION**2)

    best = minimize(objective, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    fitted = fit("platt", logits, labels, (4.0, 4.0))
    assert fitted.numbers[0] == pytest.approx(np.exp(best[0]), rel=1e-5)
    assert fitted.numbers[2] == pytest.approx(best[1], rel=1e-5)
    free = fit("platt", logits, labels, FREE)
    assert free.numbers[0] < fitted.numbers[0] < 4.0


def test_isotonic_has_the_steps_of_sklearn() -> None:
    logits, labels = sample(3, 5000, 2.0, -1.0)
    logits = np.round(logits, 1)  # ties
    fitted = fit("isotonic", logits, labels, FREE).apply(logits)
    theirs = IsotonicRegression().fit(logits, labels).predict(logits)
    np.testing.assert_allclose(fitted, theirs, atol=0.03)
    for step in np.unique(np.round(theirs, 9)):
        assert len(np.unique(fitted[np.isclose(theirs, step, atol=1e-8)])) == 1


def test_the_shared_slope_is_that_of_the_findings_together() -> None:
    parts = [sample(seed, 4000, 2.0, constant) for seed, constant in enumerate((0.0, -2.0, -4.0))]
    logits, labels = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    labels[::5, 0] = np.nan
    assert shared_slopes(logits, labels)[0] == pytest.approx(2.0, abs=0.1)
    nothing = np.column_stack([labels, np.zeros(4000)])
    with_nothing = shared_slopes(np.column_stack([logits, logits[:, 0]]), nothing)
    assert with_nothing == pytest.approx(shared_slopes(logits, labels), abs=1e-6)
    assert shared_slopes(logits[:, :1], 0 * labels[:, :1]) == (1.0, 1.0)


def patients(rows: int) -> np.ndarray:
    return np.char.add("p", (np.arange(rows) // 2).astype(str))


@pytest.mark.long
def test_five_positives_keep_the_shared_slope_and_get_their_own_level() -> None:
    """Drawn often: the map of five positives is far nearer the truth than one that fits them freely."""
    ours, free = [], []
    for seed in range(30):
        rich = [sample(1000 * seed + number, 3000, 2.0, -1.0) for number in range(3)]
        logits, labels = sample(seed, 3000, 2.0, -6.0)
        few = np.flatnonzero(labels == 1)[:5]
        labels[np.setdiff1d(np.flatnonzero(labels == 1), few)] = 0
        if len(few) < 5:
            continue
        x = np.column_stack([*(part[0] for part in rich), logits])
        y = np.column_stack([*(part[1] for part in rich), labels])
        fitted = calibrate(x, y, patients(3000), CONFIG, seed=0)[3]
        assert fitted is not None
        assert fitted.kind == "shared"
        assert fitted.apply(logits).mean() == pytest.approx(5 / 3000, rel=1e-3)
        alone = LogisticRegression(C=1e9).fit(logits[:, None], labels)
        ours.append(fitted.numbers[0])
        free.append(alone.coef_[0, 0])
    assert len(ours) > 15
    assert np.std(ours) < 0.15 < np.std(free)


@pytest.mark.parametrize("positives", [1, 2, 5, 19])
def test_a_map_of_few_positives_is_finite_and_rises(positives: int) -> None:
    logits = np.random.default_rng(positives).normal(size=500)
    labels = np.zeros(500)
    labels[np.argsort(logits)[-positives:]] = 1  # perfectly separated
    fitted = calibrate(logits[:, None], labels[:, None], patients(500), CONFIG, seed=0)[0]
    assert fitted is not None
    scores = fitted.apply(np.array([-1e4, -50.0, 0.0, 50.0, 1e4]))
    assert np.isfinite(fitted.numbers).all()
    assert (np.diff(scores) >= 0).all()
    assert scores[0] >= MIN_SCORE
    assert scores[-1] <= 1 - MIN_SCORE


def test_without_a_positive_or_a_negative_there_is_no_map() -> None:
    logits = np.random.default_rng(0).normal(size=(60, 3))
    labels = np.column_stack([np.zeros(60), np.ones(60), np.full(60, np.nan)])
    assert calibrate(logits, labels, patients(60), CONFIG, seed=0) == [None, None, None]


def test_the_simplest_map_that_does_as_well_is_chosen() -> None:
    cases = {
        "shared": sample(0, 6000, 2.0, -1.0),
        "temperature": sample(1, 6000, 2.0, 0.0),
        "platt": sample(2, 6000, 6.0, -3.0),
    }
    logits, _ = sample(3, 12_000, 1.0, 0.0)
    steps = (np.random.default_rng(4).random(6000) < np.where(logits[:6000] > 0.2, 0.9, 0.1)).astype(float)
    x = np.column_stack([*(part[0] for part in cases.values()), logits[:6000]])
    y = np.column_stack([*(part[1] for part in cases.values()), steps])
    kinds = [fitted.kind for fitted in calibrate(x, y, patients(6000), CONFIG, seed=0) if fitted]
    assert kinds[2] == "platt"
    assert kinds[3] == "isotonic"
    # Not enough positive patients for more.
    strict = CalibrationConfig(own=100_000, isotonic=100_000, bins=15)
    assert {fitted.kind for fitted in calibrate(x, y, patients(6000), strict, seed=0) if fitted} == {"shared"}


def test_calibrating_does_not_depend_on_unknown_rows() -> None:
    logits, labels = sample(5, 2000, 2.0, -1.0)
    more_logits, more_labels = np.append(logits, [9.0, -9.0]), np.append(labels, [np.nan, np.nan])
    ids = patients(2000)
    first = calibrate(logits[:, None], labels[:, None], ids, CONFIG, 0)[0]
    second = calibrate(more_logits[:, None], more_labels[:, None], np.append(ids, ["p0", "p1"]), CONFIG, 0)[0]
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.numbers, second.numbers, rtol=1e-5)


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert np.isfinite(log_losses(np.array([0.0, 1.0]), np.array([1.0, 0.0]))).all()


def test_saved_maps_give_the_same_scores_and_calls(tables: Tables) -> None:
    config = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 100})
    evaluation = evaluate(*tables, config)
    content = json.loads(json.dumps(to_calibration(evaluation).to_json()))
    assert content["format"] == 1
    assert len(content["version"]) == 12
    assert content == to_calibration(evaluate(*tables, config)).to_json()
    logits = tables[2].set_index("image_id").loc[evaluation.rows["image_id"]].reset_index()
    scores, calls = calibration_io.apply(content, logits)
    for name, scored in evaluation.scored.items():
        np.testing.assert_allclose(scores[name], scored.scores, rtol=1e-6)
        np.testing.assert_array_equal(calls[name], scored.scores >= scored.thresholds["max_f1"])
    # The threshold is the score of a validation image, which must stay called though digits were cut off.
    val_calls = calibration_io.apply(content, tables[1])[1]
    for finding in evaluation.findings:
        assert finding.map is not None
        own = finding.map.apply(tables[1][finding.name].to_numpy(dtype=float))
        np.testing.assert_array_equal(val_calls[finding.name], own >= finding.thresholds["max_f1"])
    other = calibration_io.apply(content, logits, "sensitivity")[1]
    assert (other["Mass"] != calls["Mass"]).any()
    moved = tables[1].assign(Mass=tables[1]["Mass"] + 1)
    assert to_calibration(evaluate(tables[0], moved, tables[2], config)).version != content["version"]


def test_a_finding_without_a_map_stays_without_scores(tables: Tables) -> None:
    tables[0].loc[tables[0]["split"] == "val", "Hernia"] = 0.0
    config = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 100})
    content = to_calibration(evaluate(*tables, config)).to_json()
    assert content["findings"]["Hernia"] is None
    scores, calls = calibration_io.apply(content, tables[2])
    assert scores["Hernia"].isna().all()
    assert calls["Hernia"].isna().all()


def test_logits_that_do_not_fit_the_saved_file_are_refused(tables: Tables) -> None:
    content = {
        "format": 1,
        "rule": "max_f1",
        "findings": {"Mass": None},
        "data": "images",
        "version": "0" * 12,
    }
    with pytest.raises(UserError, match="no column Mass"):
        calibration_io.apply(content, tables[2].drop(columns="Mass"))
    with pytest.raises(UserError, match=r"Mass is NaN or infinite for 600 image"):
        calibration_io.apply(content, tables[2].assign(Mass=np.nan))
    with pytest.raises(UserError, match="format 2"):
        calibration_io.apply(content | {"format": 2}, tables[2])
    with pytest.raises(UserError, match=r"damaged \(rule: Input should be"):
        calibration_io.apply(content | {"rule": "f2"}, tables[2])


def test_a_map_of_a_kind_is_what_it_says() -> None:
    logits = np.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(Map("platt", (2.0, 2.0, -1.0)).apply(logits), expit(2 * logits - 1))
    rising, falling = np.log(expit(logits)), -np.log(1 - expit(logits))
    np.testing.assert_allclose(
        Map("beta", (0.5, 3.0, 0.2)).apply(logits), expit(0.5 * rising + 3 * falling + 0.2)
    )
