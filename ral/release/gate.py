"""The gate: whether a new model (the challenger) may take the place of the one in use (the champion).

A pure function of the evidence: no clock, no file. The decision holds every rule with its figures and a sentence, so that
the decision can be checked by hand. docs/release.md has the rules as a table.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri
from threadpoolctl import threadpool_limits

from ral.config.evaluate import EvaluateConfig
from ral.config.gate import GateConfig
from ral.data.splits.holdout import gate_set, sealed_patients, unsealed
from ral.evaluation.score import Estimate, data_of, evaluate
from ral.release.paired import NO_FINDING, Difference, ReferenceModel, differences, pair
from ral.wording import PHANTOM_SHORT, RESEARCH, signed, signed_interval

Result = Literal["passes", "holds", "rejects", "listed"]

# How the step validate names, in the place of a column, what the checks of drift are about.
DRIFT = "accepted profile"


@dataclass(frozen=True)
class GateInputs:
    """All that the gate looks at."""

    studies: pd.DataFrame
    """As `rows.read_studies` gives it: every split."""
    val: pd.DataFrame
    """The challenger's raw logits of all validation images: image_id and a column per finding."""
    test: pd.DataFrame
    """The same of all test images."""
    champion: ReferenceModel | None
    """None if this is the first model."""
    anchor: ReferenceModel | None
    """The release that non-inferiority is measured against, if the parameters ask for it."""
    data: dict[str, Any]
    """The decision of the step validate."""
    preparation: dict[str, Any]
    """How tonight's images became pixels (`bundle.preparation`)."""
    turn: int
    """Decisions that were taken before: it is the turn of the next gate set."""


def judge(evidence: GateInputs, config: EvaluateConfig, gate: GateConfig) -> dict[str, Any]:
    """Decide on a challenger.

    The decision is REJECT if a rule rejects, else HOLD if one holds, else PROMOTE. A rule that is listed informs and
    changes nothing.

    Args:
        evidence: see `GateInputs`.
        config: tiers, least positives, the bootstrap, audit groups, the sealed share.
        gate: the floors.

    Returns:
        What JSON can hold: decision, sentence, notice, champion, anchor, set (the images that were scored), findings,
        rules (each with rule, result, estimate, low, high, floor, sentence) and the parameters.

    Raises:
        UserError: studies and logits do not belong together, see `rows.align`.
    """
    studies, test = unsealed(evidence.studies, config.sealed, evidence.test)
    of_set = (
        gate_set(studies["patient_id"], gate.sets, evidence.turn) | (studies["split"] != "test").to_numpy()
    )
    studies = studies[of_set]
    inside = studies[studies["split"] == "test"]
    test = test[test["image_id"].isin(inside["image_id"])]
    rules = [_data(evidence.data), _drift(evidence.data, gate)]
    findings: dict[str, list[str]] = {}
    left_out = 0
    if inside["patient_id"].nunique() < 2:
        rules.append(_rule("gate set", "holds", f"The gate set has {len(inside)} images: too few to judge by. Wait for more data, or lower gate.sets or evaluate.sealed."))  # fmt: skip
    else:
        with threadpool_limits(1):
            own = evaluate(studies, evidence.val, test, config)
            rules.append(_calibration(own.macro["ece_debiased"], gate))
            if evidence.champion is None:
                rules.append(_first(own.macro["auroc"], gate))
            else:
                paired = pair(studies, test, evidence.champion, evidence.preparation)
                findings, left_out = paired.findings, paired.left_out
                rules.append(_rule("comparable", "passes" if paired.comparable else "holds", paired.sentence))
                if paired.comparable:
                    found = differences(paired, config, subgroups=True)
                    against = _non_inferiority(evidence, studies, test, config, gate)
                    rules += [_gain(found["macro"], against, config, gate), _tail(found["tail"], gate)]
                    rules += [_subgroup(name, found[name], gate) for name in found if name not in FIRST]
                    rules += [against] if against else []
                    rules += [_unscored(found["findings"])] if found["findings"].note else []
    decision = _decision(rules)
    return {
        "decision": decision,
        "sentence": _summary(decision, rules, evidence.champion),
        "notice": PHANTOM_SHORT if data_of(evidence.studies) == "phantom" else RESEARCH,
        "champion": evidence.champion.version if evidence.champion else None,
        "anchor": evidence.anchor.version if evidence.anchor else None,
        "set": {
            "turn": evidence.turn,
            "number": evidence.turn % gate.sets + 1,
            "sets": gate.sets,
            "images": len(inside),
            "patients": int(inside["patient_id"].nunique()),
            "left_out_patients": left_out,
            "sealed_patients": sealed_patients(evidence.studies, config.sealed),
        },
        "findings": findings,
        "rules": rules,
        "confidence": config.confidence,
        "replicates": config.replicates,
        "gate": gate.model_dump(mode="json"),
    }


# What `differences` gives besides subgroups.
FIRST = ("macro", "tail", "findings")


def _decision(rules: list[dict[str, Any]]) -> str:
    results = {rule["result"] for rule in rules}
    return "REJECT" if "rejects" in results else "HOLD" if "holds" in results else "PROMOTE"


def _summary(decision: str, rules: list[dict[str, Any]], champion: ReferenceModel | None) -> str:
    """The decision and its reasons in one line."""
    wanted = {"REJECT": "rejects", "HOLD": "holds"}.get(decision)
    why = [rule["sentence"] for rule in rules if rule["result"] == wanted]
    if decision == "PROMOTE":
        why = [rule["sentence"] for rule in rules if rule["rule"] in ("gain", "first model")]
    against = f"against {champion.version}" if champion else "first model"
    return f"{decision} ({against}): {' '.join(why)}"


def _rule(
    name: str,
    result: Result,
    sentence: str,
    found: Difference | Estimate | None = None,
    floor: float | None = None,
) -> dict[str, Any]:
    ends = (found.value, found.low, found.high) if found else (None, None, None)
    estimate, low, high = (None if end is None or np.isnan(end) else round(end, 6) for end in ends)
    return {"rule": name, "result": result, "estimate": estimate, "low": low, "high": high, "floor": floor, "sentence": sentence}  # fmt: skip


def _data(data: dict[str, Any]) -> dict[str, Any]:
    if data["passed"]:
        return _rule("data", "passes", "The data passed validation.")
    return _rule("data", "rejects", "The data did not pass validation; nothing trained on it is released.")


def _drift(data: dict[str, Any], gate: GateConfig) -> dict[str, Any]:
    """Warnings of drift from the accepted profile; other warnings of the data are for the report."""
    warned = [check for check in data["checks"] if check["column"] == DRIFT and not check["passed"]]
    if not warned:
        return _rule("drift", "passes", "No drift from the accepted profile was found.")
    what = "; ".join(f"not so: {check['check']} ({check['remedy'].split('. ')[0]})" for check in warned)
    if not gate.hold_on_drift:
        return _rule("drift", "listed", f"The data drifted: {what}. gate.hold_on_drift is off.")
    return _rule(
        "drift", "holds", f"The data drifted: {what}. Look at it, and promote by hand if all is well."
    )


def _calibration(error: Estimate, gate: GateConfig) -> dict[str, Any]:
    cap = gate.calibration_cap
    if error.value is None:
        return _rule("calibration", "holds", "The calibration error is not estimable.", floor=cap)
    result: Result = "passes" if error.value <= cap else "holds"
    sentence = (
        f"The calibration error of the calibrated scores is {error.value:.3f}; at most {cap:g} is allowed."
    )
    return _rule("calibration", result, sentence, error, cap)


def _first(auroc: Estimate, gate: GateConfig) -> dict[str, Any]:
    floor = gate.first_auroc
    if auroc.value is None or auroc.low is None or auroc.high is None:
        return _rule("first model", "holds", "The macro AUROC is not estimable: too few test images with findings.", floor=floor)  # fmt: skip
    result: Result = "passes" if auroc.low >= floor else "rejects" if auroc.high < floor else "holds"
    verb = {"passes": "reaches", "holds": "is not shown to reach", "rejects": "is below"}[result]
    sentence = f"Macro AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f}) {verb} {floor:g}, which a first model needs."
    return _rule("first model", result, sentence, auroc, floor)


def widened(found: Difference, confidence: float, deviation: float) -> Difference:
    """A difference whose interval also holds what two trainings differ in by their seeds, added in quadrature.

    Args:
        found: with an interval.
        confidence: coverage.
        deviation: standard deviation between trainings that differ in nothing but the seed.
    """
    seeds = float(ndtri(0.5 + confidence / 2)) * np.sqrt(2) * deviation
    low = found.value - np.hypot(found.value - found.low, seeds)
    high = found.value + np.hypot(found.high - found.value, seeds)
    return Difference(found.value, float(low), float(high), found.note)


def _gain(
    found: Difference, against: dict[str, Any] | None, config: EvaluateConfig, gate: GateConfig
) -> dict[str, Any]:
    """The macro AP against the champion's; a loss within the margin to the anchor passes where that is asked for."""
    if found.note:
        return _rule("gain", "holds", f"The difference in macro AP is {found.note}.", floor=0.0)
    found = widened(found, config.confidence, gate.seed_deviation)
    text = f"Macro AP differs from the champion's by {_signed(found)}"
    if found.low > 0:
        return _rule("gain", "passes", f"{text}: it is better.", found, 0.0)
    if found.high < 0:
        return _rule("gain", "rejects", f"{text}: it is worse.", found, 0.0)
    if against and against["low"] is not None and against["low"] >= against["floor"]:
        return _rule("gain", "passes", f"{text}: neither better nor worse, and not inferior to the anchor.", found, 0.0)  # fmt: skip
    return _rule("gain", "holds", f"{text}: it is not shown to be better.", found, 0.0)


def _tail(found: Difference, gate: GateConfig) -> dict[str, Any]:
    floor = -gate.tail_floor
    if found.note == NO_FINDING:
        return _rule("tail", "passes", "No common finding is in the tail tier.", floor=floor)
    if found.note:
        return _rule("tail", "holds", f"The difference in AP of the tail tier is {found.note}.", floor=floor)
    result: Result = "passes" if found.low >= floor else "rejects" if found.high < floor else "holds"
    verb = {"passes": "does not lose", "holds": "is not shown not to lose", "rejects": "loses"}[result]
    sentence = f"AP of the tail tier differs by {_signed(found)}: it {verb} more than {gate.tail_floor:g}."
    return _rule("tail", result, sentence, found, floor)


def _subgroup(name: str, found: Difference, gate: GateConfig) -> dict[str, Any]:
    floor, rule = -gate.subgroup_floor, f"subgroup: {name}"
    if found.note:
        return _rule(rule, "listed", f"The difference in macro AP for {name} is {found.note}.", floor=floor)
    result: Result = "passes" if found.value >= floor else "rejects" if found.high < 0 else "holds"
    verb = {"passes": "within", "holds": "beyond, though chance could explain it,", "rejects": "beyond"}[
        result
    ]
    sentence = f"Macro AP for {name} differs by {_signed(found)}: {verb} the loss of {gate.subgroup_floor:g} that is tolerated."
    return _rule(rule, result, sentence, found, floor)


def _non_inferiority(
    evidence: GateInputs, studies: pd.DataFrame, test: pd.DataFrame, config: EvaluateConfig, gate: GateConfig
) -> dict[str, Any] | None:
    """Macro AP against the fixed anchor; it only informs, for the rule `gain` says what follows from it."""
    if gate.margin is None or evidence.anchor is None:
        return None
    name, floor = "non-inferiority", -gate.margin
    paired = pair(studies, test, evidence.anchor, evidence.preparation)
    if not paired.comparable:
        return _rule(name, "listed", f"Anchor: {paired.sentence}", floor=floor)
    found = differences(paired, config)["macro"]
    if found.note:
        return _rule(name, "listed", f"The difference in macro AP to the anchor is {found.note}.", floor=floor)  # fmt: skip
    found = widened(found, config.confidence, gate.seed_deviation)
    verb = "is not" if found.low >= floor else "may be"
    sentence = f"Macro AP differs from the anchor's ({evidence.anchor.version}) by {_signed(found)}: it {verb} lower by more than {gate.margin:g}."
    return _rule(name, "listed", sentence, found, floor)


def _unscored(found: Difference) -> dict[str, Any]:
    return _rule("findings", "listed", f"Not in any mean, for too few images: {found.note}.")


def _signed(found: Difference) -> str:
    return f"{signed(found.value)} ({signed_interval(found.low, found.high)})"
