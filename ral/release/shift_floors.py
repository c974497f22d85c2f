"""The gate's rules about changed images: macro AP under a shift of the step robustness may fall only so far."""

from collections.abc import Mapping

from ral import wording
from ral.release.decision import Rule, RuleResult
from ral.robustness.contents import Robustness, ShiftInfo

REMEDY = "Set robustness.enabled: true and run `dvc repro`, or remove it from gate.robustness."


def floor_rules(result: Robustness | None, floors: Mapping[str, float]) -> list[Rule]:
    """A rule per shift that gate.robustness names.

    A rule passes if the lower confidence limit of the difference is not below the floor, rejects if the upper limit is
    below it, and holds otherwise, also without a result.

    Args:
        result: content of the run's robustness.json; None if there is none.
        floors: name of the shift -> tolerated loss of macro AP.
    """
    return [_rule(result, name, -floor) for name, floor in floors.items()]


def _rule(result: Robustness | None, name: str, floor: float) -> Rule:
    if result is None or result.shifts is None:
        return _held(name, floor, f"gate.robustness names {name}, but the step robustness is off. {REMEDY}")
    shift = next((info for info in result.shifts.shifts if info.name == name), None)
    if shift is None:
        scored = ", ".join(info.name for info in result.shifts.shifts) or "none"
        sentence = (
            f"gate.robustness names {name}, which is none of the shifts of the step robustness: {scored}. Add it to "
            "robustness.shifts and run `dvc repro`, or remove it from gate.robustness."
        )
        return _held(name, floor, sentence)
    if shift.not_available is not None:
        return _held(
            name,
            floor,
            f"{shift.label}: not available, {shift.not_available}. Remove {name} from gate.robustness.",
        )
    return _compared(result, shift, floor)


def _compared(result: Robustness, shift: ShiftInfo, floor: float) -> Rule:
    assert result.shifts is not None
    row = result.shifts.row(shift.name, "macro", "macro", "ap")
    if row is None or row.difference is None or row.low is None or row.high is None:
        return _held(shift.name, floor, f"{shift.label}: the change of macro AP is not estimable.")
    verdict: RuleResult = "passes" if row.low >= floor else "rejects" if row.high < floor else "holds"
    verb = {"passes": "does not lose", "holds": "may lose", "rejects": "loses"}[verdict]
    change = wording.difference(row.difference, row.low, row.high)
    sentence = (
        f"{shift.label}: macro AP differs from that of the unchanged images by {change}: it {verb} more than "
        f"{-floor:g}."
    )
    return Rule(
        rule=f"robustness: {shift.name}", result=verdict, sentence=sentence, estimate=row.difference, low=row.low,
        high=row.high, floor=floor,
    )  # fmt: skip


def _held(name: str, floor: float, sentence: str) -> Rule:
    return Rule(rule=f"robustness: {name}", result="holds", sentence=sentence, floor=floor)
