"""The test images under attack: closed form on a linear network, the gap of head and tail, the sample."""

from dataclasses import replace

import numpy as np
import pytest
from robustness_inputs import SIZE
from sklearn.metrics import average_precision_score

from ral.config.robustness import AttacksConfig
from ral.robustness.attacks import attacked_logits, audit_attacks, sample
from ral.robustness.contents import AttackInfo
from ral.robustness.subject import Subject

EPS = 2.0


def test_each_score_moves_by_eps_times_the_weights(subject: Subject) -> None:
    infos = [AttackInfo(name="finding_2", target="finding", eps=EPS)]
    logits = attacked_logits(subject, infos, steps=3)
    assert logits[""].tobytes() == subject.score(None).tobytes()
    # `Sums` is linear: each pixel of a region of 5 or 6 columns counts 1 / SIZE.
    reach = np.array([5, 6, 5]) * EPS / subject.info.pixel_deviation
    positive = subject.test[list(subject.info.findings)].to_numpy() == 1
    expected = logits[""] + np.where(positive, -reach, reach)
    np.testing.assert_allclose(logits["finding_2"], expected, rtol=0, atol=1e-5)
    assert SIZE == 16


def test_metrics_under_attack_are_those_of_scikit_learn(subject: Subject) -> None:
    config = AttacksConfig(eps=[8.0, 10.0], steps=3)
    result = audit_attacks(subject, config, seed=0)
    assert [info.name for info in result.attacks] == ["finding_8", "finding_10", "all_8", "all_10"]
    logits = attacked_logits(subject, result.attacks, steps=3)
    labels = subject.test["Mass"].to_numpy()
    for name in ("finding_8", "finding_10", "all_8", "all_10"):
        row = result.row(name, "finding", "Mass", "ap")
        assert row.clean == pytest.approx(average_precision_score(labels, logits[""][:, 1]), abs=1e-6)
        assert row.value == pytest.approx(average_precision_score(labels, logits[name][:, 1]), abs=1e-6)
        assert row.low < row.difference < 0
        assert row.p is row.p_holm is None
    values = [result.row(f"finding_{eps}", "macro", "macro", "ap").value for eps in (8, 10)]
    assert values[1] < values[0]
    # The regions of the findings share no pixel, so that one change of the image is the worst for all.
    assert result.row("all_10", "macro", "macro", "ap").value == pytest.approx(values[1], abs=1e-6)
    assert (result.images, result.steps, result.not_estimable.keys()) == (80, 3, {"Hernia"})


def test_the_gap_is_that_of_the_means_of_the_tiers(subject: Subject) -> None:
    config = AttacksConfig(eps=[EPS], steps=3)
    tiered = replace(subject, tiers={"Effusion": "head", "Mass": "tail", "Hernia": "tail"})
    result = audit_attacks(tiered, config, seed=0)
    (each, _) = result.gaps
    head, tail = (result.row("finding_2", "tier", name, "ap") for name in ("head", "tail"))
    assert each.clean == pytest.approx(head.clean - tail.clean, abs=2e-6)
    assert each.value == pytest.approx(head.value - tail.value, abs=2e-6)
    assert each.difference == pytest.approx(each.value - each.clean, abs=2e-6)
    assert each.low < each.difference < each.high
    assert each.clean_low < each.clean < each.clean_high
    assert not audit_attacks(replace(subject, tiers=dict.fromkeys(tiered.tiers, "head")), config, 0).gaps


def test_the_sample_is_drawn_by_the_seed_and_keeps_rows_together(subject: Subject) -> None:
    assert sample(subject, None, 0) is subject
    assert sample(subject, 80, 0) is subject
    part = sample(subject, 30, 0)
    assert len(part.test) == len(part.rows) == len(part.resamples.patient) == 30
    assert part.resamples.patients == part.test["patient_id"].nunique()
    ids = subject.dataset.studies["image_id"].iloc[part.rows].tolist()
    assert ids == part.test["image_id"].tolist() == sorted(ids)
    assert sample(subject, 30, 0).test.equals(part.test)
    assert not sample(subject, 30, 1).test.equals(part.test)
    everything = attacked_logits(subject, [], steps=1)[""]
    some = attacked_logits(part, [], steps=1)[""]
    np.testing.assert_array_equal(some, everything[subject.test["image_id"].isin(ids)])
