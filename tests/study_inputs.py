"""Inputs of the study's statistics that no training made: images, runs.csv and logits with known answers."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import ROOT
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.study.arms import Study, assemble
from benchmarks.study.inputs import COLUMNS, SELECTION, read_data, read_runs
from benchmarks.study.statistics import Bootstrap
from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams

PARAMS = load(ROOT / "params.yaml", EvaluateParams).evaluate
# One calibration map for all findings, which is fitted in no time.
SHARED = PARAMS.calibration.model_copy(update={"own": 10_000})
CONFIG = PARAMS.model_copy(update={"replicates": 200, "calibration": SHARED})

# A head, a medium and a tail finding, and one that is common enough for its own calibration.
PREVALENCES = {"Infiltration": 0.3, "Mass": 0.08, "Hernia": 0.01, "Effusion": 0.15}


@dataclass
class StudyInputs:
    """A folder with the inputs: `state` and `out`, as the command has them."""

    folder: Path
    patients: int = 240
    folds: int = 2
    prevalences: dict[str, float] = field(default_factory=lambda: dict(PREVALENCES))
    seed: int = 0

    def __post_init__(self) -> None:
        """Draw the images: 1 to 5 for each patient, an equal number of patients in each fold and the selection set."""
        self.generator = np.random.default_rng(self.seed)
        patient = np.repeat(np.arange(self.patients), self.generator.integers(1, 6, self.patients))
        self.patient = np.char.add("p", np.char.zfill(patient.astype(str), 5))
        self.fold = (patient % (self.folds + 1) - 1).astype(np.int8)
        shares = np.array(list(self.prevalences.values()))
        self.targets = (self.generator.random((len(patient), len(shares))) < shares).astype(np.float32)
        self.noise = self.generator.normal(size=self.targets.shape)
        self.rows: list[dict[str, object]] = []
        for name in ("state/logits", "out/results"):
            (self.folder / name).mkdir(parents=True)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self) -> None:
        """Write data.npz and runs.csv."""
        np.savez(
            self.state / "data.npz", image_id=np.arange(len(self.patient)).astype(str), patient_id=self.patient,
            targets=self.targets, fold=self.fold, findings=np.array(list(self.prevalences)),
        )  # fmt: skip
        pd.DataFrame(self.rows)[list(COLUMNS)].to_csv(self.out / "results" / "runs.csv", index=False)

    def logits(self, strength: float, own: float = 0.3) -> np.ndarray:
        """Logits of all images: labels times `strength`, noise that all arms share, and noise of their own."""
        noise = np.sqrt(1 - own**2) * self.noise + own * self.generator.normal(size=self.noise.shape)
        return (strength * self.targets + noise - 2).astype(np.float32)

    def run(self, stage: str, arm: str, fold: int = 0, strength: float = 1.0, **other: object) -> str:
        """Add a run; returns its name.

        Args:
            stage: of the run.
            arm: of the run.
            fold: of the run.
            strength: of the logits.
            other: other columns; `logits`: those of all images, instead of drawn ones.
        """
        logits = other.pop("logits", None)
        values = self.logits(strength) if logits is None else logits
        row: dict[str, object] = {
            "stage": stage, "arm": arm, "fold": fold, "seed": 0, "learning_rate": 1e-3, "backbone": "resnet18",
            "parameters": 11_000_000, "image_size": 64, "epochs": 12, "batch_size": 128, "precision": "float32",
            "thin": 1.0, "best_epoch": 7, "seconds": 100.5, "images_per_second": 1234.5, "device": "two cores",
            "torch": "2.9", "commit": "0123456789ab", "data": "111111111111",
        } | other  # fmt: skip
        parts = ["stage", "arm", "fold", "seed", "learning_rate", "backbone", "thin", "epochs"]
        row["run"] = "-".join([*(str(row[name]) for name in parts), "cpu"])
        test, selection = (np.flatnonzero(self.fold == number) for number in (fold, SELECTION))
        row |= {"train_images": 1000, "test_images": len(test), "selection_images": len(selection)}
        for name, rows in (("test", test), ("selection", selection)):
            row.setdefault(
                f"{name}_macro_ap", mean_of(average_precision_score, self.targets[rows], values[rows])
            )
            row.setdefault(f"{name}_macro_auroc", mean_of(roc_auc_score, self.targets[rows], values[rows]))
        path = self.state / "logits" / f"{row['run']}.npz"
        # Rows in any order: the statistics sort them.
        test, selection = test[::-1], self.generator.permutation(selection)
        np.savez(
            path, test_rows=test.astype(np.int32), test_logits=values[test],
            selection_rows=selection.astype(np.int32), selection_logits=values[selection],
        )  # fmt: skip
        row["logits"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self.rows.append(row)
        return str(row["run"])


def mean_of(metric, targets: np.ndarray, logits: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    """A metric of scikit-learn, mean over the findings with a positive."""
    return float(
        np.mean([metric(y, x) for y, x in zip(targets.T, logits.T, strict=True) if 0 < y.sum() < len(y)])
    )


def whole_study(folder: Path) -> StudyInputs:
    """A study with every stage, small enough for a test."""
    made = StudyInputs(folder)
    strengths = {"bce": 1.5, "reference": 1.0, "ral": 1.5, "asl": 2.0, "focal": 1.4, "dice": 1.2}
    for arm, strength in strengths.items():
        if arm != "reference":
            for rate in (3e-4, 1e-3, 3e-3):
                made.run("rate", arm, 0, strength - abs(np.log10(rate) + 3), learning_rate=rate)
    made.run("main", "reference", 0, 1.0, learning_rate=1e-4)
    for arm in ("bce", "reference", "ral", "asl"):
        made.run("main", arm, 1, strengths[arm], learning_rate=1e-4 if arm == "reference" else 1e-3)
    for step in ("ema", "flip_tta"):
        for fold in range(2):
            made.run("extra", f"ral+{step}", fold, 1.6)
    for ratio in (1.0, 10.0, 100.0):
        for arm in ("bce", "asl", "ral"):
            made.run("thin", arm, 0, strengths[arm] - np.log10(ratio) / 4, thin=ratio)
    for method, strength in (("crt", 1.5), ("smote", 4.0), ("virtual", -1.0)):
        for fold in range(2):
            made.run("second_phase", f"ral+{method}", fold, strength, seconds=3.25)
    for fold in range(2):
        for arm, strength in (("ral", 1.0), ("bce", 4.0)):
            made.run("epochs", arm, fold, strength, epochs=24)
    made.run("control", "bce", 0, 0.0)
    for arm in ("bce", "ral"):
        for seed in range(3):
            made.run("seeds", arm, 0, strengths[arm], seed=seed, backbone="resnet50", parameters=24_000_000)
        made.run("main", arm, 0, strengths[arm], epochs=3)
    made.write()
    return made


def study_of(inputs: StudyInputs, config: EvaluateConfig = CONFIG) -> Study:
    """The arms of the inputs, scored as the command scores them."""
    inputs.write()
    data = read_data(inputs.state / "data.npz", config)
    runs = read_runs(inputs.out / "results" / "runs.csv")
    with threadpool_limits(1):
        return assemble(runs, inputs.state, Bootstrap(data, config, config.replicates))
