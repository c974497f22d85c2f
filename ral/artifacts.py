"""The stages and the paths of their outputs, relative to the project folder; tests compare both with DVC's files.

A function that gets a folder as an argument joins it with the name: `prepared / artifacts.DATASET.name`.
"""

from pathlib import PurePosixPath
from typing import Literal

# In the order of the graph.
Stage = Literal[
    "manifest",
    "phantom",
    "validate",
    "preprocess",
    "train",
    "features",
    "explain",
    "evaluate",
    "robustness",
    "report",
]

# manifest, phantom
MANIFEST = PurePosixPath("data/manifest.json")
LOCATION = PurePosixPath("data/location.json")
USER_CODE = PurePosixPath("data/user_code.json")
PHANTOM = PurePosixPath("data/phantom")

# validate
VALIDATED = PurePosixPath("data/validated")
VALIDATION = VALIDATED / "validation.json"
IMAGES = VALIDATED / "images.parquet"

# preprocess
PREPARED = PurePosixPath("data/prepared")
DATASET = PREPARED / "dataset.json"
STUDIES = PREPARED / "studies.parquet"
SPLIT = PREPARED / "split.parquet"
CLASS_COUNTS = PREPARED / "class_counts.json"
# Only with data.boxes.
BOXES = PREPARED / "boxes.parquet"

# train
MODELS = PurePosixPath("models")
WEIGHTS = MODELS / "model.safetensors"
MODEL = MODELS / "model.json"
LOGITS = MODELS / "logits"
HISTORY = MODELS / "history.csv"

# features
FEATURES = PurePosixPath("data/features")
FEATURE_ARRAY = FEATURES / "features.npy"
BANK = FEATURES / "bank.json"

# explain, evaluate, robustness, report
REPORTS = PurePosixPath("reports")
GALLERY = REPORTS / "gallery"
# Only if there are boxes.
LOCALISATION = GALLERY / "localisation.csv"
GEOMETRY = REPORTS / "geometry.json"
CONFUSION = REPORTS / "confusion.csv"
METRICS = REPORTS / "metrics.json"
SUMMARY = REPORTS / "summary.json"
CALIBRATION = REPORTS / "calibration.json"
FINDINGS = REPORTS / "findings.csv"
CURVES = REPORTS / "curves.csv"
OPERATING = REPORTS / "operating.csv"
RELIABILITY = REPORTS / "reliability.csv"
DECISION_CURVES = REPORTS / "decision_curves.csv"
CHARACTERISTICS = REPORTS / "characteristics.csv"
AUDIT = REPORTS / "audit.csv"
SECOND_READING = REPORTS / "second_reading.csv"
COMPARISON = REPORTS / "comparison.csv"
ROBUSTNESS = REPORTS / "robustness"
AUDITED = ROBUSTNESS / "robustness.json"
REPORT = REPORTS / "report.html"
MODEL_CARD = REPORTS / "model_card.md"
# Which run made the report: beside it and no output, because it depends on the clock.
RUN_INFO = REPORTS / "run.css"


# What later runs are compared with; tracked by git.
BASELINE = PurePosixPath("baseline")


def logits(split: str) -> PurePosixPath:
    """The logits of the split val or test."""
    return LOGITS / f"{split}.parquet"
