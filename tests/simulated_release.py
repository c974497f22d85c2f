"""Simulated images and models of known skill, for which the right decision is known."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.config.gate import GateConfig
from ral.data.validation.result import Profile, ValidationResult
from ral.files import sha256
from ral.inference.bundle import BUNDLE, Bundle
from ral.preparation import Preparation
from ral.release.decision import ComparedFindings, GateDecision, GateSet, Outcome, Rule
from ral.release.gate import GateInputs
from ral.release.ledger import Decision
from ral.release.paired import ReferenceModel

ROOT = Path(__file__).parent.parent

# Training prevalence: head, medium, medium, tail. In test all are frequent enough to score.
TRAIN = {"Effusion": 0.3, "Mass": 0.06, "Edema": 0.05, "Hernia": 0.004}
TEST = {"Effusion": 0.3, "Mass": 0.15, "Edema": 0.15, "Hernia": 0.1}

PREPARED = Preparation(size=64, fit="stretch", range="own")
PASSED = ValidationResult(
    phantom=False, passed=True, rows=1, patients=1, images=1, rows_without_image=0, images_without_row=0,
    profile=Profile(rows=1, patients=1, columns={}, labels={}), checks=[], files={},
)  # fmt: skip

Ral = Callable[..., str]

# What `list` shows of the metrics that the fixture `trained` writes.
MACRO = {"AP": "0.412 (0.380–0.451)", "AUROC": "0.700 (no interval)"}


def evaluate_config(**changes: Any) -> EvaluateConfig:
    """The project's parameters with fewer resamples."""
    config = load(ROOT / "params.yaml", EvaluateParams).evaluate
    audit = config.audit.model_copy(update={"by": changes.pop("by", [])})
    return config.model_copy(update={"replicates": 300, "audit": audit} | changes)


def gate_config(**changes: Any) -> GateConfig:
    """One gate set and wide limits, so that each test exercises only the rule it names."""
    wide = {"sets": 1, "tail_floor": 0.5, "subgroup_floor": 0.5, "calibration_cap": 0.5, "first_auroc": 0.6}
    wide["seed_deviation"] = 0.0
    return GateConfig.model_validate(wide | changes)


def images(seed: int = 0, patients: int = 900, name: str = "image") -> pd.DataFrame:
    """Studies: two images a patient, a third of the patients each for training, validation and test."""
    generator = np.random.default_rng(seed)
    number = np.arange(2 * patients)
    split = np.repeat(["train", "val", "test"], 2 * patients // 3)
    studies = pd.DataFrame(
        {
            "image_id": [f"{name}{n:05d}" for n in number],
            "patient_id": [f"p{n // 2:05d}" for n in number],
            "split": split,
            "sex": np.where(number // 2 % 4 == 0, "F", "M"),
            "age_years": 20.0 + number // 2 % 60,
        }
    )
    for finding in TRAIN:
        rate = np.where(split == "train", TRAIN[finding], TEST[finding])
        studies[finding] = (generator.random(len(studies)) < rate).astype(float)
    return studies


def model(
    studies: pd.DataFrame, split: str, skill: float = 1.5, seed: int = 1, own: int = 0, **skills: float
) -> pd.DataFrame:
    """Logits of a model: its skill times the label, and noise.

    Args:
        studies: images.
        split: the split to score.
        skill: distance between positive and negative images, in standard deviations.
        seed: seed of the noise that all models share (the same images are hard for all).
        own: seed of the noise of this model alone; 0 for none.
        skills: skill for single findings.
    """
    rows = studies[studies["split"] == split]
    noise = np.random.default_rng(seed).normal(size=(len(rows), len(TRAIN)))
    if own:
        noise = (noise + 0.5 * np.random.default_rng(own).normal(size=noise.shape)) / np.sqrt(1.25)
    logits = pd.DataFrame({"image_id": rows["image_id"].to_numpy()})
    for column, finding in enumerate(name for name in TRAIN if name in rows):
        distance = skills.get(finding, skill)
        logits[finding] = noise[:, column] + distance * rows[finding].to_numpy() - 2
    return logits


def reference_model(logits: pd.DataFrame, version: str = "v0.1.0", **changes: Any) -> ReferenceModel:
    """An earlier model that saw none of the test patients."""
    return ReferenceModel(**({"version": version, "logits": logits, "seen": frozenset(), "preparation": PREPARED} | changes))  # fmt: skip


def gate_inputs(
    studies: pd.DataFrame, test: pd.DataFrame, champion: ReferenceModel | None, **changes: Any
) -> GateInputs:
    """GateInputs of a challenger with these test logits."""
    fields: dict[str, Any] = {
        "studies": studies, "val": model(studies, "val"), "test": test, "champion": champion, "anchor": None,
        "data": PASSED, "preparation": PREPARED, "decision_index": 0, "run_id": "one",
    }  # fmt: skip
    return GateInputs(**(fields | changes))


def rule(decision: GateDecision, name: str) -> Rule:
    """The rule of that name."""
    (entry,) = [entry for entry in decision.rules if entry.rule == name]
    return entry


def gate_decision(
    run_id: str = "one", decision: Outcome = "PROMOTE", champion: str | None = None
) -> GateDecision:
    """A decision without rules, for tests of what becomes of it."""
    sets = GateSet(images=0, left_out_patients=0, number=1, patients=0, sealed_patients=0, sets=1, turn=0)
    return GateDecision(
        run_id=run_id, decision=decision, sentence="better", notice="Research", champion=champion, anchor=None, set=sets,
        findings=ComparedFindings(), rules=[], confidence=0.95, replicates=300, gate=gate_config(),
    )  # fmt: skip


def write_bundle(folder: Path, files: Iterable[str], **changes: Any) -> None:
    """Write bundle.json for the files that are in a folder."""
    fields: dict[str, Any] = {
        "commit": "0" * 40, "data_manifest": "0" * 64, "phantom": True, "findings": ["Mass"], "preparation": PREPARED,
        "params": {}, "files": {name: sha256(folder / name) for name in files},
    }  # fmt: skip
    Bundle(**(fields | changes)).write(folder / BUNDLE)


def decided(run_id: str, sentence: str = "better", decision: Outcome = "HOLD") -> Decision:
    """The ledger's event of a decision."""
    made = gate_decision(run_id, decision)
    return Decision(
        run_id=run_id, decision=decision, version="v0.1.0", commit="0" * 40, champion=None, set=made.set, sentence=sentence
    )  # fmt: skip


def night(ral: Ral, commit: Callable[[str], str], project: Path, run: str, *arguments: str) -> str:
    """Judge and register what is in the project."""
    decision = project / f"{run}.json"
    ral("judge", "--workspace", project, "--run-id", run, "--out", decision)
    made = commit(run)
    common = ("--workspace", project, "--commit", made, "--decision", decision, "--run-id", run)
    return ral("register", *common, *arguments)
