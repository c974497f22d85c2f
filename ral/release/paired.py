"""Two models on the same images: which images and findings both may be scored on, and the differences in AP."""

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

# The note of a tier that has no finding at all.
NO_FINDING = "no finding"


@dataclass(frozen=True)
class ReferenceModel:
    """An earlier model on tonight's images."""

    version: str
    logits: pd.DataFrame
    """Raw logits: image_id and a column per finding of its own. Images that are no test images tonight are not looked at."""
    seen: frozenset[str]
    """Patients it was trained or validated with."""
    preparation: dict[str, Any]
    """How the images it was trained on became pixels."""


@dataclass(frozen=True)
class Pair:
    """What a challenger and a rival are scored on."""

    studies: pd.DataFrame
    """Training and validation images, and the test images that count, with the common findings."""
    models: Mapping[str, pd.DataFrame]
    """The rival's logits, then the challenger's."""
    findings: dict[str, list[str]]
    """scored, only_challenger, only_champion."""
    left_out: int
    """Patients whose images are left out, since the rival was trained or validated with them."""
    comparable: bool
    sentence: str
    """What is compared, or why not and what to do."""


@dataclass(frozen=True)
class Difference:
    """Challenger − rival."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    """Why there are no numbers; empty if there are."""


def pair(
    studies: pd.DataFrame, test: pd.DataFrame, rival: ReferenceModel, preparation: dict[str, Any]
) -> Pair:
    """Choose images and findings that both models may be scored on.

    Args:
        studies: as `rows.read_studies` gives it, with the test images that may be used.
        test: the challenger's logits of these test images.
        rival: the earlier model.
        preparation: how tonight's images became pixels.
    """
    own, other = findings_of(studies), [str(name) for name in rival.logits.columns if name != "image_id"]
    common = [name for name in own if name in other]
    findings = {
        "scored": common,
        "only_challenger": [name for name in own if name not in other],
        "only_champion": [name for name in other if name not in own],
    }
    in_test = (studies["split"] == "test").to_numpy()
    seen = studies["patient_id"].isin(rival.seen).to_numpy()
    left_out = int(studies.loc[in_test & seen, "patient_id"].nunique())
    counts = in_test & ~seen & studies["image_id"].isin(rival.logits["image_id"]).to_numpy()
    attributes = [name for name in ATTRIBUTES if name in studies.columns]
    rows = studies.loc[~in_test | counts, [*KEYS, *attributes, *common]]
    ids = studies.loc[counts, "image_id"]
    models = {
        name: table.loc[table["image_id"].isin(ids), ["image_id", *common]]
        for name, table in ((rival.version, rival.logits), (CHALLENGER, test))
    }
    patients = studies.loc[counts, "patient_id"].nunique()
    unlike = [name for name in preparation if rival.preparation.get(name) != preparation[name]]
    if unlike:
        name = unlike[0]
        reason = (
            f"{rival.version} was trained on images prepared otherwise (preprocess.{name} {rival.preparation.get(name)}, "
            f"tonight {preparation[name]}), so it cannot be scored on tonight's. Train with the preparation of "
            f"{rival.version}, or compare both by hand and promote."
        )
    elif not common:
        reason = (
            f"{rival.version} has no finding in common with this model. Compare both by hand and promote."
        )
    elif patients < 2:
        reason = (
            f"{patients} test patients are left whom {rival.version} was not trained or validated with: too few. "
            "Give the test split new patients, or keep the split (baseline/split.parquet)."
        )
    else:
        reason = ""
    sentence = (
        f"Both models are scored on {len(ids):,} images of {patients:,} patients and {len(common)} findings."
    )
    if left_out:
        sentence += f" {left_out} patients are left out, whom {rival.version} was trained or validated with."
    for names, words in (("only_challenger", "new"), ("only_champion", "no longer scored")):
        if findings[names]:
            sentence += f" Findings {words}: {', '.join(findings[names])}."
    return Pair(rows, models, findings, left_out, not reason, reason or sentence)


def differences(paired: Pair, config: EvaluateConfig, subgroups: bool = False) -> dict[str, Difference]:
    """Differences in AP from the paired bootstrap of `ral.evaluation.compare`.

    Args:
        paired: images and findings.
        config: tiers, least positives, the bootstrap, audit groups.
        subgroups: whether macro AP is compared within groups of images, too: of each attribute of `audit.by`, not of
            pairs of them. Their intervals hold all at once (Bonferroni), since every group is looked at.

    Returns:
        macro, tail, findings (its note names those that are not estimable), then one for each group.
    """
    table = compare(paired.studies, paired.models, "test", config)
    table = table[table["metric"] == "ap"]
    train = paired.studies[paired.studies["split"] == "train"]
    tiers = {tier_of(name, train[name], config)[0] for name in paired.findings["scored"]}
    rows = table[table["level"] == "finding"]
    unscored = rows.loc[rows["note"] != "", "name"]
    found = {
        "macro": _of(table, "macro"),
        "tail": _of(table, "tail") if "tail" in tiers else Difference(note=NO_FINDING),
        "findings": Difference(note=", ".join(unscored)),
    }
    if not subgroups:
        return found
    test = paired.studies[paired.studies["split"] == "test"]
    parts = [group for group in groups(test, config.audit) if "×" not in group.attribute]
    strict = config.model_copy(
        update={
            "confidence": 1 - (1 - config.confidence) / max(len(parts), 1),
            "min_positives": config.audit.min_positives,
        }
    )
    for group in parts:
        found[f"{group.attribute} {group.name}"] = _within(paired, test[group.rows], strict)
    return found


def _within(paired: Pair, images: pd.DataFrame, config: EvaluateConfig) -> Difference:
    """The difference in macro AP on some of the test images."""
    if images["patient_id"].nunique() < 2:
        return Difference(note="not estimable: fewer than 2 patients")
    outside = paired.studies[paired.studies["split"] != "test"]
    models = {
        name: table[table["image_id"].isin(images["image_id"])] for name, table in paired.models.items()
    }
    table = compare(pd.concat([outside, images]), models, "test", config)
    return _of(table[table["metric"] == "ap"], "macro")


def _of(table: pd.DataFrame, name: str) -> Difference:
    row = table[(table["name"] == name) & (table["level"] != "finding")].iloc[0]
    if row["note"]:
        return Difference(note=str(row["note"]))
    if not np.isfinite([row["low"], row["high"]]).all():
        return Difference(note="not estimable: fewer than five patients carry it")
    return Difference(float(row["difference"]), float(row["low"]), float(row["high"]))
