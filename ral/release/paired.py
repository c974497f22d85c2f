"""Paired comparison of two models: the images and findings that both can be scored on, and the differences in AP."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ral.config.evaluate import EvaluateConfig
from ral.evaluation.audit import groups
from ral.evaluation.compare import compare
from ral.evaluation.rows import ATTRIBUTES, KEYS, findings_of
from ral.evaluation.score import tier_of

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
    preparation: dict[str, Any]
    """Preprocessing parameters of the images it was trained on (`bundle.preparation`)."""


@dataclass(frozen=True)
class Pair:
    """The images and findings on which a challenger and a reference model are scored."""

    studies: pd.DataFrame
    """Training and validation images and the test images to score, with the common findings."""
    models: Mapping[str, pd.DataFrame]
    """The reference model's logits, then the challenger's."""
    findings: dict[str, list[str]]
    """scored, only_challenger, only_champion."""
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


def pair(
    studies: pd.DataFrame, test: pd.DataFrame, reference: ReferenceModel, preparation: dict[str, Any]
) -> Pair:
    """Choose the images and findings that both models can be scored on.

    Args:
        studies: as `rows.read_studies` gives it, with the test images that may be used.
        test: the challenger's logits of these test images.
        reference: the earlier model.
        preparation: preprocessing parameters of this run.
    """
    challenger_findings = findings_of(studies)
    reference_findings = [str(name) for name in reference.logits.columns if name != "image_id"]
    common = [name for name in challenger_findings if name in reference_findings]
    findings = {
        "scored": common,
        "only_challenger": [name for name in challenger_findings if name not in reference_findings],
        "only_champion": [name for name in reference_findings if name not in challenger_findings],
    }
    in_test = (studies["split"] == "test").to_numpy()
    seen = studies["patient_id"].isin(reference.seen).to_numpy()
    excluded_patients = int(studies.loc[in_test & seen, "patient_id"].nunique())
    is_scored = in_test & ~seen & studies["image_id"].isin(reference.logits["image_id"]).to_numpy()
    attributes = [name for name in ATTRIBUTES if name in studies.columns]
    rows = studies.loc[~in_test | is_scored, [*KEYS, *attributes, *common]]
    ids = studies.loc[is_scored, "image_id"]
    models = {
        name: table.loc[table["image_id"].isin(ids), ["image_id", *common]]
        for name, table in ((reference.version, reference.logits), (CHALLENGER, test))
    }
    patients = studies.loc[is_scored, "patient_id"].nunique()
    changed = [name for name in preparation if reference.preparation.get(name) != preparation[name]]
    if changed:
        name = changed[0]
        reason = (
            f"{reference.version} was trained on images preprocessed differently (preprocess.{name}: "
            f"{reference.preparation.get(name)}, in this run {preparation[name]}), so it cannot be scored "
            "on the images of "
            f"this run. Train with the preprocessing of {reference.version}, or compare the models manually "
            "and promote."
        )
    elif not common:
        remedy = "Compare the models manually and promote."
        reason = f"{reference.version} has no finding in common with this model. {remedy}"
    elif patients < 2:
        reason = (
            f"Only {patients} test patients remain that {reference.version} was not trained or validated on: too few. "
            "Add new patients to the test split, or keep the split (baseline/split.parquet)."
        )
    else:
        reason = ""
    sentence = (
        f"Both models are scored on {len(ids):,} images of {patients:,} patients and {len(common)} findings."
    )
    if excluded_patients:
        why = f"{reference.version} was trained or validated on them"
        sentence += f" {excluded_patients} patients are excluded because {why}."
    for names, status in (("only_challenger", "new"), ("only_champion", "no longer scored")):
        if findings[names]:
            sentence += f" Findings {status}: {', '.join(findings[names])}."
    return Pair(rows, models, findings, excluded_patients, not reason, reason or sentence)


def differences(paired: Pair, config: EvaluateConfig, subgroups: bool = False) -> dict[str, Difference]:
    """Differences in AP from the paired bootstrap of `ral.evaluation.compare`.

    Args:
        paired: images and findings to score.
        config: tiers, minimum positives, bootstrap, audit groups.
        subgroups: also compare macro AP within the groups of each attribute of `audit.by` (not of pairs of
            attributes). Their intervals are simultaneous (Bonferroni), because every group is checked.

    Returns:
        macro, tail, findings (its note names the findings that are not estimable), then one entry per group.
    """
    table = compare(paired.studies, paired.models, "test", config)
    table = table[table["metric"] == "ap"]
    train = paired.studies[paired.studies["split"] == "train"]
    tiers = {tier_of(name, train[name], config)[0] for name in paired.findings["scored"]}
    rows = table[table["level"] == "finding"]
    unscored = rows.loc[rows["note"] != "", "name"]
    result = {
        "macro": _difference(table, "macro"),
        "tail": _difference(table, "tail") if "tail" in tiers else Difference(note=NO_FINDING),
        "findings": Difference(note=", ".join(unscored)),
    }
    if not subgroups:
        return result
    test = paired.studies[paired.studies["split"] == "test"]
    single = [group for group in groups(test, config.audit) if "×" not in group.attribute]
    strict = config.model_copy(
        update={
            "confidence": 1 - (1 - config.confidence) / max(len(single), 1),
            "min_positives": config.audit.min_positives,
        }
    )
    for group in single:
        result[f"{group.attribute} {group.name}"] = _within(paired, test[group.rows], strict)
    return result


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
