"""Paired comparison of two models: the images and findings that both can be scored on, and the differences in AP."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ral.config.evaluate import EvaluateConfig
from ral.evaluation.audit import groups
from ral.evaluation.common import restrict
from ral.evaluation.compare import compare
from ral.evaluation.rows import findings_of
from ral.evaluation.score import tier_of
from ral.evaluation.table_rows import TIMES
from ral.preparation import Preparation
from ral.release.decision import ComparedFindings

CHALLENGER = "challenger"

# Note for a tier without any finding.
NO_FINDING = "no finding"


@dataclass(frozen=True)
class ReferenceModel:
    """An earlier model and its logits on the images of this run."""

    version: str
    logits: pd.DataFrame
    """Raw logits: image_id and a column per finding of this model. Images outside the test split are ignored."""
    seen: frozenset[str]
    """Patients in its training or validation split."""
    preparation: Preparation
    """Preprocessing parameters of the images it was trained on."""


@dataclass(frozen=True)
class Pair:
    """The images and findings on which a challenger and a reference model are scored."""

    studies: pd.DataFrame
    """Training and validation images and the test images to score, with the common findings."""
    models: Mapping[str, pd.DataFrame]
    """The reference model's logits, then the challenger's."""
    findings: ComparedFindings
    excluded_patients: int
    """Number of patients excluded because the reference model was trained or validated on them."""
    comparable: bool
    sentence: str
    """What is compared; or why the models are not comparable, and what to do."""


@dataclass(frozen=True)
class Difference:
    """Challenger − reference."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    """Why there are no numbers; empty if there are."""


@dataclass(frozen=True)
class Differences:
    """Differences in AP between a challenger and a reference model."""

    macro: Difference
    tail: Difference
    """Of the tail tier."""
    not_estimable: tuple[str, ...]
    """Findings that are in no mean."""
    subgroups: Mapping[str, Difference] = field(default_factory=dict)
    """Macro AP by group of test images."""


def pair(
    studies: pd.DataFrame, test: pd.DataFrame, reference: ReferenceModel, preparation: Preparation
) -> Pair:
    """Choose the images and findings that both models can be scored on.

    Args:
        studies: as `rows.read_studies` gives it, with the test images that may be used.
        test: the challenger's logits of these test images.
        reference: the earlier model.
        preparation: preprocessing parameters of this run.
    """
    findings = ComparedFindings.of(
        findings_of(studies), [str(name) for name in reference.logits.columns if name != "image_id"]
    )
    in_test = (studies["split"] == "test").to_numpy()
    seen = studies["patient_id"].isin(reference.seen).to_numpy()
    excluded_patients = studies.loc[in_test & seen, "patient_id"].nunique()
    is_scored = in_test & ~seen & studies["image_id"].isin(reference.logits["image_id"]).to_numpy()
    models = {reference.version: reference.logits, CHALLENGER: test}
    rows, logits = restrict(studies, models, is_scored, findings.scored)
    patients = studies.loc[is_scored, "patient_id"].nunique()
    reason = _not_comparable(reference, preparation, findings, patients)
    sentence = (
        f"Both models are scored on {is_scored.sum():,} images of {patients:,} patients and "
        f"{len(findings.scored)} findings."
    )
    if excluded_patients:
        why = f"{reference.version} was trained or validated on them"
        sentence += f" {excluded_patients} patients are excluded because {why}."
    for names, status in ((findings.only_challenger, "new"), (findings.only_champion, "no longer scored")):
        if names:
            sentence += f" Findings {status}: {', '.join(names)}."
    return Pair(rows, logits, findings, excluded_patients, not reason, reason or sentence)


def _not_comparable(
    reference: ReferenceModel, preparation: Preparation, findings: ComparedFindings, patients: int
) -> str:
    """Why a challenger cannot be compared with a reference model, and what to do; empty if it can."""
    ours, theirs = preparation.model_dump(), reference.preparation.model_dump()
    changed = [name for name in ours if theirs[name] != ours[name]]
    if changed:
        name = changed[0]
        return (
            f"{reference.version} was trained on images preprocessed differently (preprocess.{name}: {theirs[name]}, "
            f"in this run {ours[name]}), so it cannot be scored on the images of this run. Train with the "
            f"preprocessing of {reference.version}, or compare the models manually and promote."
        )
    if not findings.scored:
        remedy = "Compare the models manually and promote."
        return f"{reference.version} has no finding in common with this model. {remedy}"
    if patients < 2:
        return (
            f"Only {patients} test patients remain that {reference.version} was not trained or validated on: too few. "
            "Add new patients to the test split, or keep the split (baseline/split.parquet)."
        )
    return ""


def differences(paired: Pair, config: EvaluateConfig, subgroups: bool = False) -> Differences:
    """Differences in AP from the paired bootstrap of `ral.evaluation.compare`.

    Args:
        paired: images and findings to score.
        config: tiers, minimum positives, bootstrap, audit groups.
        subgroups: also compare macro AP within the groups of each attribute of `audit.by` (not of pairs of
            attributes). Their intervals are simultaneous (Bonferroni), because every group is checked.
    """
    table = compare(paired.studies, paired.models, "test", config)
    table = table[table["metric"] == "ap"]
    train = paired.studies[paired.studies["split"] == "train"]
    tiers = {tier_of(name, train[name], config)[0] for name in paired.findings.scored}
    rows = table[table["level"] == "finding"]
    return Differences(
        macro=_difference(table, "macro"),
        tail=_difference(table, "tail") if "tail" in tiers else Difference(note=NO_FINDING),
        not_estimable=tuple(rows.loc[rows["note"] != "", "name"]),
        subgroups=_subgroups(paired, config) if subgroups else {},
    )


def _subgroups(paired: Pair, config: EvaluateConfig) -> dict[str, Difference]:
    test = paired.studies[paired.studies["split"] == "test"]
    single = [group for group in groups(test, config.audit) if TIMES not in group.attribute]
    strict = config.model_copy(
        update={
            "confidence": 1 - (1 - config.confidence) / max(len(single), 1),
            "min_positives": config.audit.min_positives,
        }
    )
    return {f"{group.attribute} {group.name}": _within(paired, test[group.rows], strict) for group in single}


def _within(paired: Pair, images: pd.DataFrame, config: EvaluateConfig) -> Difference:
    """The difference in macro AP on some of the test images."""
    if images["patient_id"].nunique() < 2:
        return Difference(note="not estimable: fewer than 2 patients")
    other_splits = paired.studies[paired.studies["split"] != "test"]
    models = {
        name: table[table["image_id"].isin(images["image_id"])] for name, table in paired.models.items()
    }
    table = compare(pd.concat([other_splits, images]), models, "test", config)
    return _difference(table[table["metric"] == "ap"], "macro")


def _difference(table: pd.DataFrame, name: str) -> Difference:
    row = table[(table["name"] == name) & (table["level"] != "finding")].iloc[0]
    if row["note"]:
        return Difference(note=str(row["note"]))
    if not np.isfinite([row["low"], row["high"]]).all():
        return Difference(note="not estimable: fewer than five patients contribute")
    return Difference(float(row["difference"]), float(row["low"]), float(row["high"]))
