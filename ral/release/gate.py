"""The gate: decides whether a new model (the challenger) may replace the one in use (the champion).

A pure function of its inputs: no clock, no files. The decision lists every rule with its numbers and a sentence, so it
can be verified manually. docs/release.md has the rules as a table.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri
from threadpoolctl import threadpool_limits

from ral import wording
from ral.config.evaluate import EvaluateConfig
from ral.config.gate import GateConfig
from ral.data.splits.holdout import gate_set, sealed_patients, unsealed
from ral.data.validation.result import ValidationResult
from ral.evaluation.results import Estimate
from ral.evaluation.score import data_of, evaluate
from ral.preparation import Preparation
from ral.release.decision import ComparedFindings, GateDecision, GateSet, Outcome, Rule, RuleResult
from ral.release.paired import NO_FINDING, Difference, Pair, ReferenceModel, differences, pair
from ral.release.shift_floors import floor_rules
from ral.robustness.contents import Robustness


@dataclass(frozen=True)
class GateInputs:
    """Everything that the gate's decision depends on."""

    studies: pd.DataFrame
    """All splits, as `rows.read_studies` returns them."""
    val: pd.DataFrame
    """The challenger's raw logits of all validation images: image_id and a column per finding."""
    test: pd.DataFrame
    """The challenger's raw logits of all test images, in the same format."""
    champion: ReferenceModel | None
    """None for the first model."""
    anchor: ReferenceModel | None
    """The fixed release of the non-inferiority margin; None if the parameters set no margin."""
    data: ValidationResult
    """Result of the step validate."""
    preparation: Preparation
    """Preprocessing parameters of this run."""
    decision_index: int
    """Number of earlier decisions; selects the gate set, which rotates."""
    run_id: str
    """Id of the run; there is one decision per run."""
    robustness: Robustness | None = None
    """Content of the run's robustness.json; None if the step robustness did not run."""


def evaluate_gate(inputs: GateInputs, config: EvaluateConfig, gate: GateConfig) -> GateDecision:
    """Decide on a challenger.

    The decision is REJECT if any rule rejects, else HOLD if any rule holds, else PROMOTE. A rule with the
    result `listed` is informative only.

    Args:
        inputs: see `GateInputs`.
        config: tiers, minimum positives, bootstrap, audit groups, sealed share.
        gate: the limits.

    Raises:
        UserError: studies and logits do not match, see `rows.align`.
    """
    studies, test = _gate_set(inputs, config, gate)
    test_studies = studies[studies["split"] == "test"]
    rules = [_data(inputs.data), _drift(inputs.data, gate), *floor_rules(inputs.robustness, gate.robustness)]
    findings, excluded_patients = ComparedFindings(), 0
    if test_studies["patient_id"].nunique() < 2:
        sentence = (
            f"The gate set has {len(test_studies)} images: too few for a decision. Wait for more data, or lower "
            "gate.sets or evaluate.sealed."
        )
        rules.append(_rule("gate set", "holds", sentence))
    else:
        with threadpool_limits(1):
            evaluation = evaluate(studies, inputs.val, test, config)
            rules.append(_calibration(evaluation.macro["ece_debiased"], gate))
            if inputs.champion is None:
                rules.append(_first(evaluation.macro["auroc"], gate))
            else:
                paired = pair(studies, test, inputs.champion, inputs.preparation)
                findings, excluded_patients = paired.findings, paired.excluded_patients
                rules.append(_rule("comparable", "passes" if paired.comparable else "holds", paired.sentence))
                if paired.comparable:
                    non_inferiority = _non_inferiority(inputs, studies, test, config, gate)
                    rules += _comparison(paired, non_inferiority, config, gate)
    decision = _decision(rules)
    return GateDecision(
        run_id=inputs.run_id,
        decision=decision,
        sentence=_summary(decision, rules, inputs.champion),
        notice=wording.notice(data_of(inputs.studies) == "phantom"),
        champion=inputs.champion.version if inputs.champion else None,
        anchor=inputs.anchor.version if inputs.anchor else None,
        set=GateSet(
            images=len(test_studies),
            left_out_patients=excluded_patients,
            number=inputs.decision_index % gate.sets + 1,
            patients=test_studies["patient_id"].nunique(),
            sealed_patients=sealed_patients(inputs.studies, config.sealed),
            sets=gate.sets,
            turn=inputs.decision_index,
        ),
        findings=findings,
        rules=rules,
        confidence=config.confidence,
        replicates=config.replicates,
        gate=gate,
    )


def _gate_set(
    inputs: GateInputs, config: EvaluateConfig, gate: GateConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The studies without the test images that are sealed or of another gate set, and the logits of its test images."""
    studies, test = unsealed(inputs.studies, config.sealed, inputs.test)
    is_test = (studies["split"] == "test").to_numpy()
    in_set = gate_set(studies["patient_id"], gate.sets, inputs.decision_index)
    ids = studies.loc[is_test & in_set, "image_id"]
    return studies[in_set | ~is_test], test[test["image_id"].isin(ids)]


def _comparison(
    paired: Pair, non_inferiority: Rule | None, config: EvaluateConfig, gate: GateConfig
) -> list[Rule]:
    """The rules about the differences to the champion."""
    found = differences(paired, config, subgroups=True)
    return [
        _gain(found.macro, non_inferiority, config, gate),
        _tail(found.tail, gate),
        *(_subgroup(name, difference, gate) for name, difference in found.subgroups.items()),
        *([non_inferiority] if non_inferiority else []),
        *([_unscored(found.not_estimable)] if found.not_estimable else []),
    ]


def _decision(rules: list[Rule]) -> Outcome:
    results = {rule.result for rule in rules}
    return "REJECT" if "rejects" in results else "HOLD" if "holds" in results else "PROMOTE"


def _summary(decision: Outcome, rules: list[Rule], champion: ReferenceModel | None) -> str:
    """The decision and its reasons in one line."""
    decisive = {"REJECT": "rejects", "HOLD": "holds"}.get(decision)
    reasons = [rule.sentence for rule in rules if rule.result == decisive]
    if decision == "PROMOTE":
        reasons = [rule.sentence for rule in rules if rule.rule in ("gain", "first model")]
    comparison = f"against {champion.version}" if champion else "first model"
    return f"{decision} ({comparison}): {' '.join(reasons)}"


def _rule(
    name: str,
    result: RuleResult,
    sentence: str,
    interval: Difference | Estimate | None = None,
    floor: float | None = None,
) -> Rule:
    ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    estimate, low, high = (None if end is None or np.isnan(end) else round(end, 6) for end in ends)
    return Rule(
        rule=name, result=result, sentence=sentence, estimate=estimate, low=low, high=high, floor=floor
    )


def _data(data: ValidationResult) -> Rule:
    if data.passed:
        return _rule("data", "passes", "The data passed validation.")
    return _rule(
        "data", "rejects", "The data did not pass validation. A model trained on it cannot be released."
    )


def _drift(data: ValidationResult, gate: GateConfig) -> Rule:
    """Drift from the accepted profile; other validation warnings only appear in the report."""
    failed = [check for check in data.checks if check.kind == "drift" and not check.passed]
    if not failed:
        return _rule("drift", "passes", "No drift from the accepted profile was detected.")
    reasons = "; ".join(f"failed: {check.check} ({check.observed})" for check in failed)
    if not gate.hold_on_drift:
        return _rule("drift", "listed", f"The data drifted: {reasons}. gate.hold_on_drift is false.")
    return _rule(
        "drift",
        "holds",
        f"The data drifted: {reasons}. Review the data, and promote manually if it is acceptable.",
    )


def _calibration(error: Estimate, gate: GateConfig) -> Rule:
    cap = gate.calibration_cap
    if error.value is None:
        return _rule("calibration", "holds", "The calibration error is not estimable.", floor=cap)
    result: RuleResult = "passes" if error.value <= cap else "holds"
    sentence = f"The calibration error of the calibrated scores is {error.value:.3f}; the limit is {cap:g}."
    return _rule("calibration", result, sentence, error, cap)


def _first(auroc: Estimate, gate: GateConfig) -> Rule:
    floor = gate.first_auroc
    if auroc.value is None or auroc.low is None or auroc.high is None:
        sentence = "The macro AUROC is not estimable: too few test images with findings."
        return _rule("first model", "holds", sentence, floor=floor)
    result: RuleResult = "passes" if auroc.low >= floor else "rejects" if auroc.high < floor else "holds"
    verb = {"passes": "reaches", "holds": "is not shown to reach", "rejects": "is below"}[result]
    interval = f"{auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f})"
    sentence = f"Macro AUROC {interval} {verb} {floor:g}, the minimum for a first model."
    return _rule("first model", result, sentence, auroc, floor)


def widened(difference: Difference, confidence: float, deviation: float) -> Difference:
    """Widen the interval of a difference by the variance between training seeds, added in quadrature.

    Args:
        difference: a difference with an interval.
        confidence: coverage.
        deviation: standard deviation of the metric between trainings that differ only in the seed.
    """
    seeds = float(ndtri(0.5 + confidence / 2)) * np.sqrt(2) * deviation
    low = difference.value - np.hypot(difference.value - difference.low, seeds)
    high = difference.value + np.hypot(difference.high - difference.value, seeds)
    return Difference(difference.value, float(low), float(high), difference.note)


def _gain(
    difference: Difference, non_inferiority: Rule | None, config: EvaluateConfig, gate: GateConfig
) -> Rule:
    """Macro AP against the champion's; with a margin, a model that is not inferior to the anchor passes too."""
    if difference.note:
        return _rule("gain", "holds", f"The difference in macro AP is {difference.note}.", floor=0.0)
    difference = widened(difference, config.confidence, gate.seed_deviation)
    text = f"Macro AP differs from the champion's by {_signed(difference)}"
    if difference.low > 0:
        return _rule("gain", "passes", f"{text}: it is better.", difference, 0.0)
    if difference.high < 0:
        return _rule("gain", "rejects", f"{text}: it is worse.", difference, 0.0)
    if (
        non_inferiority
        and non_inferiority.low is not None
        and non_inferiority.floor is not None
        and non_inferiority.low >= non_inferiority.floor
    ):
        sentence = f"{text}: neither better nor worse, and not inferior to the anchor."
        return _rule("gain", "passes", sentence, difference, 0.0)
    return _rule("gain", "holds", f"{text}: not significantly better.", difference, 0.0)


def _tail(difference: Difference, gate: GateConfig) -> Rule:
    floor = -gate.tail_floor
    if difference.note == NO_FINDING:
        return _rule("tail", "passes", "No common finding is in the tail tier.", floor=floor)
    if difference.note:
        return _rule(
            "tail", "holds", f"The difference in AP of the tail tier is {difference.note}.", floor=floor
        )
    result: RuleResult = (
        "passes" if difference.low >= floor else "rejects" if difference.high < floor else "holds"
    )
    verb = {"passes": "does not lose", "holds": "may lose", "rejects": "loses"}[result]
    sentence = (
        f"AP of the tail tier differs by {_signed(difference)}: it {verb} more than {gate.tail_floor:g}."
    )
    return _rule("tail", result, sentence, difference, floor)


def _subgroup(name: str, difference: Difference, gate: GateConfig) -> Rule:
    floor, rule = -gate.subgroup_floor, f"subgroup: {name}"
    if difference.note:
        return _rule(
            rule, "listed", f"The difference in macro AP for {name} is {difference.note}.", floor=floor
        )
    result: RuleResult = (
        "passes" if difference.value >= floor else "rejects" if difference.high < 0 else "holds"
    )
    verb = {"passes": "within", "holds": "beyond (but possibly by chance)", "rejects": "beyond"}[result]
    tolerated = f"the tolerated loss of {gate.subgroup_floor:g}"
    sentence = f"Macro AP for {name} differs by {_signed(difference)}: {verb} {tolerated}."
    return _rule(rule, result, sentence, difference, floor)


def _non_inferiority(
    inputs: GateInputs, studies: pd.DataFrame, test: pd.DataFrame, config: EvaluateConfig, gate: GateConfig
) -> Rule | None:
    """Macro AP against the fixed anchor; informative only, because the rule `gain` decides on it."""
    if gate.margin is None or inputs.anchor is None:
        return None
    name, floor = "non-inferiority", -gate.margin
    paired = pair(studies, test, inputs.anchor, inputs.preparation)
    if not paired.comparable:
        return _rule(name, "listed", f"Anchor: {paired.sentence}", floor=floor)
    difference = differences(paired, config).macro
    if difference.note:
        sentence = f"The difference in macro AP to the anchor is {difference.note}."
        return _rule(name, "listed", sentence, floor=floor)
    difference = widened(difference, config.confidence, gate.seed_deviation)
    verb = "is not" if difference.low >= floor else "may be"
    sentence = (
        f"Macro AP differs from the anchor's ({inputs.anchor.version}) by {_signed(difference)}: it {verb} lower by "
        f"more than {gate.margin:g}."
    )
    return _rule(name, "listed", sentence, difference, floor)


def _unscored(findings: tuple[str, ...]) -> Rule:
    sentence = f"Excluded from all means because of too few images: {', '.join(findings)}."
    return _rule("findings", "listed", sentence)


def _signed(difference: Difference) -> str:
    return wording.difference(difference.value, difference.low, difference.high)
