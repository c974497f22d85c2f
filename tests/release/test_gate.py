"""The gate on simulated models of known skill, and what it says about everything it excludes."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_release import (
    PASSED,
    PREPARED,
    TRAIN,
    evaluate_config,
    gate_config,
    gate_inputs,
    images,
    model,
    reference_model,
    rule,
)  # fmt: skip

from ral.data.validation.result import Check
from ral.release.gate import evaluate_gate, widened
from ral.release.paired import Difference, differences, pair

CONFIG, GATE = evaluate_config(), gate_config()

DRIFTED = Check(
    kind="drift", check="no column or label drifted", column="accepted profile", severity="warning", passed=False,
    unexpected=2, samples=[], observed="view 0.31, sex 0.2", remedy="Accept it. Or not.",
)  # fmt: skip


@pytest.fixture(scope="module")
def studies() -> pd.DataFrame:
    return images()


@pytest.mark.parametrize(
    ("skill", "expected"), [(2.0, "PROMOTE"), (1.5, "HOLD"), (1.0, "REJECT")], ids=["better", "equal", "worse"]
)  # fmt: skip
def test_better_equal_and_worse_challengers(studies: pd.DataFrame, skill: float, expected: str) -> None:
    champion = reference_model(model(studies, "test", 1.5, own=5))
    decision = evaluate_gate(
        gate_inputs(studies, model(studies, "test", skill, own=6), champion), CONFIG, GATE
    )
    assert decision.decision == expected
    assert decision.champion == "v0.1.0"
    gain = rule(decision, "gain")
    assert gain.result == {"PROMOTE": "passes", "HOLD": "holds", "REJECT": "rejects"}[expected]
    assert gain.low < gain.estimate < gain.high
    assert gain.sentence in decision.sentence


def test_a_verdict_is_pure_and_json(studies: pd.DataFrame) -> None:
    one, two = (
        evaluate_gate(
            gate_inputs(studies, model(studies, "test", 2.0), reference_model(model(studies, "test"))),
            CONFIG,
            GATE,
        )
        for _ in range(2)
    )
    assert json.dumps(one.to_json(), allow_nan=False) == json.dumps(two.to_json(), allow_nan=False)
    assert one.notice == "Research software, not a medical device"
    phantom = images(name="phantom")
    champion = reference_model(model(phantom, "test"))
    assert (
        "PHANTOM"
        in evaluate_gate(gate_inputs(phantom, model(phantom, "test"), champion), CONFIG, GATE).notice
    )


def test_the_same_model_is_held(studies: pd.DataFrame) -> None:
    logits = model(studies, "test")
    decision = evaluate_gate(gate_inputs(studies, logits, reference_model(logits)), CONFIG, GATE)
    assert decision.decision == "HOLD"
    gain = rule(decision, "gain")
    assert (gain.estimate, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.long
def test_false_promotions_under_the_null_are_as_rare_as_the_interval_says() -> None:
    config = evaluate_config(confidence=0.8, replicates=150, interval="percentile")
    promoted = rejected = 0
    trials = 150
    for trial in range(trials):
        studies = images(seed=trial, patients=450)
        champion, challenger = (
            model(studies, "test", seed=1000 + trial, own=side + trial) for side in (5000, 9000)
        )
        difference = differences(pair(studies, challenger, reference_model(champion), PREPARED), config).macro
        promoted += difference.low > 0
        rejected += difference.high < 0
    # Half of 1 − confidence is 0.1: 15 of 150, with a standard deviation of 3.7.
    assert 4 <= promoted <= 27
    assert 4 <= rejected <= 27


def test_a_tail_that_is_sacrificed_for_the_head_is_rejected(studies: pd.DataFrame) -> None:
    champion = reference_model(model(studies, "test", 1.5, own=5))
    challenger = model(studies, "test", 2.4, own=6, Hernia=0.5)
    decision = evaluate_gate(gate_inputs(studies, challenger, champion), CONFIG, gate_config(tail_floor=0.05))
    assert rule(decision, "gain").result == "passes"
    assert rule(decision, "tail").result == "rejects"
    assert decision.decision == "REJECT"
    assert "tail tier" in decision.sentence
    # The same loss is tolerated by a wider floor, and holds with a floor in between.
    for floor, result in ((0.6, "passes"), (-rule(decision, "tail").estimate, "holds")):
        again = evaluate_gate(
            gate_inputs(studies, challenger, champion), CONFIG, gate_config(tail_floor=floor)
        )
        assert rule(again, "tail").result == result


def test_without_a_tail_finding_there_is_nothing_to_protect(studies: pd.DataFrame) -> None:
    some = studies.drop(columns="Hernia")
    logits = model(studies, "test", 2.0).drop(columns="Hernia")
    inputs = gate_inputs(some, logits, reference_model(model(studies, "test")), val=model(studies, "val").drop(columns="Hernia"))  # fmt: skip
    decision = evaluate_gate(inputs, CONFIG, GATE)
    assert rule(decision, "tail").result == "passes"
    assert decision.findings.only_champion == ["Hernia"]
    assert "no longer scored: Hernia" in rule(decision, "comparable").sentence


def test_a_harmed_subgroup_rejects_and_the_unharmed_do_not(studies: pd.DataFrame) -> None:
    champion = reference_model(model(studies, "test", 1.5, own=5))
    better, worse = (model(studies, "test", skill, own=6) for skill in (2.6, 0.4))
    women = studies.loc[studies["split"] == "test", "sex"].to_numpy() == "F"
    challenger = better.where(np.repeat(~women[:, None], better.shape[1], axis=1), worse)
    config = evaluate_config(by=["sex", "age"])
    decision = evaluate_gate(
        gate_inputs(studies, challenger, champion), config, gate_config(subgroup_floor=0.05)
    )
    assert rule(decision, "gain").result == "passes"
    assert rule(decision, "subgroup: sex F").result == "rejects"
    assert rule(decision, "subgroup: sex M").result == "passes"
    assert decision.decision == "REJECT"
    assert not any("×" in one.rule for one in decision.rules)


def test_a_subgroup_with_too_few_images_is_listed_and_changes_nothing(studies: pd.DataFrame) -> None:
    few = studies.assign(sex=np.where(np.arange(len(studies)) >= len(studies) - 4, "F", "M"))
    one = studies.assign(sex=np.where(np.arange(len(studies)) >= len(studies) - 2, "F", "M"))
    for table in (few, one):
        champion = reference_model(model(table, "test", 1.5))
        inputs = gate_inputs(table, model(table, "test", 2.2), champion)
        decision = evaluate_gate(inputs, evaluate_config(by=["sex"]), GATE)
        assert rule(decision, "subgroup: sex F").result == "listed"
        assert rule(decision, "subgroup: sex F").estimate is None
        assert decision.decision == "PROMOTE"


@pytest.mark.parametrize(("cap", "expected"), [(0.2, "PROMOTE"), (0.01, "HOLD")])
def test_bad_calibration_holds(studies: pd.DataFrame, cap: float, expected: str) -> None:
    # Validation images are scored two logits higher than test images: the calibration is off by that.
    val = model(studies, "val").assign(**{name: model(studies, "val")[name] + 1 for name in TRAIN})
    inputs = gate_inputs(
        studies, model(studies, "test", 2.2), reference_model(model(studies, "test")), val=val
    )
    decision = evaluate_gate(inputs, CONFIG, gate_config(calibration_cap=cap))
    assert decision.decision == expected
    assert 0.01 < rule(decision, "calibration").estimate < 0.2


@pytest.mark.parametrize(
    ("data", "hold", "expected"),
    [
        ({"passed": False}, True, "REJECT"),
        ({"checks": [DRIFTED]}, True, "HOLD"),
        ({"checks": [DRIFTED]}, False, "PROMOTE"),
        ({"checks": [DRIFTED.model_copy(update={"passed": True})]}, True, "PROMOTE"),
        ({"checks": [DRIFTED.model_copy(update={"kind": "table"})]}, True, "PROMOTE"),
    ],
    ids=["refused", "drifted", "drift allowed", "no drift", "another warning"],
)
def test_data_that_drifted_or_did_not_pass(
    studies: pd.DataFrame, data: dict[str, Any], hold: bool, expected: str
) -> None:
    validation = PASSED.model_copy(update=data)
    inputs = gate_inputs(
        studies, model(studies, "test", 2.2), reference_model(model(studies, "test")), data=validation
    )
    decision = evaluate_gate(inputs, CONFIG, gate_config(hold_on_drift=hold))
    assert decision.decision == expected
    drifted = any(check.kind == "drift" and not check.passed for check in validation.checks)
    sentence = rule(decision, "drift").sentence
    assert ("failed: no column or label drifted (view 0.31, sex 0.2)" in sentence) == drifted
    assert "Accept" not in sentence


def test_seeds_widen_the_interval_by_two_trainings(studies: pd.DataFrame) -> None:
    wider = widened(Difference(0.1, 0.07, 0.14), 0.95, 0.02)
    seeds = 1.959964 * np.sqrt(2) * 0.02
    assert wider.low == pytest.approx(0.1 - np.hypot(0.03, seeds))
    assert wider.high == pytest.approx(0.1 + np.hypot(0.04, seeds))
    assert widened(wider, 0.95, 0.0) == wider
    inputs = gate_inputs(studies, model(studies, "test", 1.8), reference_model(model(studies, "test")))
    assert evaluate_gate(inputs, CONFIG, GATE).decision == "PROMOTE"
    assert evaluate_gate(inputs, CONFIG, gate_config(seed_deviation=0.1)).decision == "HOLD"


def test_a_slow_decline_ends_at_the_anchor() -> None:
    """Each challenger is a little worse than the champion before; measured against that, all would pass."""
    studies, config = images(patients=2400), evaluate_config(replicates=150)
    gate = gate_config(margin=0.05, anchor="v0.1.0")
    champion = anchor = reference_model(model(studies, "test", 1.5, own=11))
    decisions, to_champion = [], []
    for night in range(1, 7):
        logits = model(studies, "test", 1.5 - 0.03 * night, own=night + 1)
        decision = evaluate_gate(gate_inputs(studies, logits, champion, anchor=anchor), config, gate)
        decisions.append(decision.decision)
        to_champion.append(rule(decision, "gain").low)
        if decision.decision == "PROMOTE":
            assert "not inferior to the anchor" in decision.sentence
            assert rule(decision, "non-inferiority").low >= -0.05
            champion = reference_model(logits, f"v0.{night + 1}.0")
    assert decisions[0] == "PROMOTE"
    assert "PROMOTE" not in decisions[-2:]
    stopped = len(decisions) - decisions[::-1].index("PROMOTE")
    assert to_champion[stopped] >= -0.05
    # Without the margin none of them is promoted.
    assert evaluate_gate(gate_inputs(studies, logits, anchor), config, GATE).decision != "PROMOTE"


def test_a_model_shown_to_be_worse_is_not_saved_by_the_margin(studies: pd.DataFrame) -> None:
    champion, anchor = (
        reference_model(model(studies, "test", 2.0)),
        reference_model(model(studies, "test", 1.2), "v0.0.1"),
    )
    decision = evaluate_gate(
        gate_inputs(studies, model(studies, "test", 1.7), champion, anchor=anchor),
        CONFIG,
        gate_config(margin=0.2, anchor="v0.0.1"),
    )
    assert rule(decision, "non-inferiority").low > 0
    assert decision.decision == "REJECT"


def test_other_findings_are_scored_on_the_common_ones(studies: pd.DataFrame) -> None:
    old = model(studies, "test").drop(columns="Edema").assign(Nodule=0.0)
    decision = evaluate_gate(
        gate_inputs(studies, model(studies, "test", 2.2), reference_model(old)), CONFIG, GATE
    )
    assert decision.findings.to_json() == {
        "scored": ["Effusion", "Mass", "Hernia"], "only_challenger": ["Edema"], "only_champion": ["Nodule"],
    }  # fmt: skip
    assert decision.decision == "PROMOTE"
    nothing = reference_model(model(studies, "test")[["image_id"]].assign(Nodule=0.0))
    decision = evaluate_gate(gate_inputs(studies, model(studies, "test", 2.2), nothing), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert "no finding in common" in decision.sentence


def test_patients_the_champion_learned_from_are_left_out(studies: pd.DataFrame) -> None:
    """The champion knows its training patients by heart; scored on them it would look better than it is."""
    test = studies[studies["split"] == "test"]
    known = sorted(test["patient_id"].unique())[::2]
    honest, leaked = model(studies, "test", 1.2, own=5), model(studies, "test", 6.0)
    by_heart = test["patient_id"].isin(known).to_numpy()
    old = leaked.where(np.repeat(by_heart[:, None], leaked.shape[1], axis=1), honest)
    challenger = model(studies, "test", 2.0, own=6)
    blind = evaluate_gate(gate_inputs(studies, challenger, reference_model(old)), CONFIG, GATE)
    decision = evaluate_gate(
        gate_inputs(studies, challenger, reference_model(old, seen=frozenset(known))), CONFIG, GATE
    )
    assert blind.decision != "PROMOTE"
    assert decision.decision == "PROMOTE"
    assert decision.set.left_out_patients == len(known)
    assert f"{len(known)} patients are excluded" in rule(decision, "comparable").sentence
    everyone = reference_model(old, seen=frozenset(test["patient_id"]))
    decision = evaluate_gate(gate_inputs(studies, challenger, everyone), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert "too few" in decision.sentence


@pytest.mark.parametrize("changed", [{"size": 224}, {"fit": "pad"}, {"range": "percentile"}])
def test_other_pixels_are_held_with_what_to_do(studies: pd.DataFrame, changed: dict[str, Any]) -> None:
    old = reference_model(model(studies, "test"), preparation=PREPARED.model_copy(update=changed))
    decision = evaluate_gate(gate_inputs(studies, model(studies, "test", 2.2), old), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert f"preprocess.{next(iter(changed))}" in decision.sentence
    assert "promote" in decision.sentence


def test_what_is_not_estimable_holds_or_is_listed(studies: pd.DataFrame) -> None:
    test = studies["split"] == "test"
    champion = reference_model(model(studies, "test"))
    without = studies.assign(Mass=studies["Mass"].where(~test, 0.0))
    decision = evaluate_gate(gate_inputs(without, model(studies, "test", 2.2), champion), CONFIG, GATE)
    assert decision.decision == "PROMOTE"
    assert "Mass" in rule(decision, "findings").sentence
    no_tail = studies.assign(Hernia=studies["Hernia"].where(~test, 0.0))
    decision = evaluate_gate(gate_inputs(no_tail, model(studies, "test", 2.2), champion), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert rule(decision, "tail").estimate is None
    nothing = studies.assign(**{name: studies[name].where(~test, 0.0) for name in TRAIN})
    decision = evaluate_gate(gate_inputs(nothing, model(studies, "test", 2.2), champion), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert rule(decision, "gain").sentence.endswith("not estimable: no estimable finding.")


@pytest.mark.parametrize(
    ("floor", "expected"), [(0.7, "PROMOTE"), (0.88, "HOLD"), (0.95, "REJECT")]
)  # fmt: skip
def test_a_first_model_has_its_own_floor(studies: pd.DataFrame, floor: float, expected: str) -> None:
    decision = evaluate_gate(
        gate_inputs(studies, model(studies, "test"), None), CONFIG, gate_config(first_auroc=floor)
    )
    assert decision.decision == expected
    assert decision.champion is None
    assert "first model" in decision.sentence


def test_gate_sets_take_turns_and_sealed_patients_are_never_in_one(studies: pd.DataFrame) -> None:
    config, gate = evaluate_config(sealed=0.3), gate_config(sets=2)
    logits = model(studies, "test", 2.2)
    champion = reference_model(model(studies, "test"))
    sets = [
        evaluate_gate(gate_inputs(studies, logits, champion, decision_index=index), config, gate).set
        for index in range(4)
    ]
    assert [one.number for one in sets] == [1, 2, 1, 2]
    assert sets[0].images == sets[2].images
    total = studies.loc[studies["split"] == "test", "patient_id"].nunique()
    assert sets[0].patients + sets[1].patients + sets[0].sealed_patients == total
    assert 0.2 * total < sets[0].sealed_patients < 0.4 * total
    assert 0.35 < sets[0].patients / (sets[0].patients + sets[1].patients) < 0.65


def test_a_gate_set_without_images_holds(studies: pd.DataFrame) -> None:
    test = studies["split"] == "test"
    one = studies[~test | (studies["patient_id"] == studies.loc[test, "patient_id"].iloc[0])]
    champion = reference_model(model(studies, "test"))
    decision = evaluate_gate(gate_inputs(one, model(one, "test"), champion), CONFIG, GATE)
    assert decision.decision == "HOLD"
    assert "too few" in decision.sentence
