"""Floors for shifts: shown in the decision, and held where the step robustness says nothing."""

import pandas as pd
import pytest
from simulated_release import evaluate_config, gate_config, gate_inputs, images, model, reference_model, rule

from ral.config.gate import GateConfig
from ral.release.gate import evaluate_gate
from ral.robustness.contents import Audited, Robustness, ShiftInfo, ShiftRow, Shifts

AUDITED = Audited(images=10, patients=5, findings=(), replicates=300, confidence=0.95)


def result(difference: float | None = -0.03, not_available: str | None = None) -> Robustness:
    """The result of an audit with one shift, whose macro AP is known to ± 0.01."""
    info = ShiftInfo(
        name="jpeg_50", kind="jpeg", strength=50, label="JPEG, quality 50", not_available=not_available
    )
    row = ShiftRow(shift="jpeg_50", level="macro", name="macro", metric="ap", findings=0)
    if difference is not None:
        numbers = {"difference": difference, "low": difference - 0.01, "high": difference + 0.01}
        row = row.model_copy(update={"findings": 1, **numbers})
    return Robustness(
        notice="Research", data="images", audited=AUDITED, shifts=Shifts(shifts=(info,), rows=(row,))
    )


@pytest.fixture(scope="module")
def studies() -> pd.DataFrame:
    return images()


@pytest.mark.parametrize(
    ("floor", "expected", "words"),
    [
        (0.05, "passes", "does not lose more than 0.05"),
        (0.03, "holds", "may lose more than 0.03"),
        (0.01, "rejects", "loses more than 0.01"),
    ],
)
def test_a_floor_decides_on_the_interval(
    studies: pd.DataFrame, floor: float, expected: str, words: str
) -> None:
    inputs = gate_inputs(
        studies, model(studies, "test", 2.6, own=6), reference_model(model(studies, "test", 1.5, own=5)), robustness=result()
    )  # fmt: skip
    decision = evaluate_gate(inputs, evaluate_config(), gate_config(robustness={"jpeg_50": floor}))
    entry = rule(decision, "robustness: jpeg_50")
    assert (entry.result, entry.estimate, entry.floor) == (expected, -0.03, -floor)
    assert entry.sentence.startswith("JPEG, quality 50: macro AP differs")
    assert words in entry.sentence
    assert decision.decision == {"passes": "PROMOTE", "holds": "HOLD", "rejects": "REJECT"}[expected]
    assert decision.gate.robustness == {"jpeg_50": floor}


@pytest.mark.parametrize(
    ("robustness", "name", "words"),
    [
        (None, "jpeg_50", "the step robustness is off. Set robustness.enabled: true"),
        (Robustness(notice="Research", data="images"), "jpeg_50", "the step robustness is off"),
        (result(), "jpeg_60", "step robustness: jpeg_50. Add it to robustness.shifts and run `dvc repro`"),
        (result(None), "jpeg_50", "not estimable"),
        (
            result(None, "no aspect"),
            "jpeg_50",
            "not available, no aspect. Remove jpeg_50 from gate.robustness.",
        ),
    ],
)
def test_without_a_result_the_challenger_is_held(
    studies: pd.DataFrame, robustness: Robustness | None, name: str, words: str
) -> None:
    inputs = gate_inputs(studies, model(studies, "test"), None, robustness=robustness)
    decision = evaluate_gate(inputs, evaluate_config(), gate_config(robustness={name: 0.05}))
    entry = rule(decision, f"robustness: {name}")
    assert entry.result == "holds"
    assert words in entry.sentence
    assert words in decision.sentence
    assert decision.decision == "HOLD"


def test_without_floors_the_result_decides_nothing(studies: pd.DataFrame) -> None:
    inputs = gate_inputs(studies, model(studies, "test"), None, robustness=result(-0.9))
    decision = evaluate_gate(inputs, evaluate_config(), gate_config())
    assert not any(entry.rule.startswith("robustness") for entry in decision.rules)
    assert GateConfig.model_validate({"robustness": None}).robustness == {}
