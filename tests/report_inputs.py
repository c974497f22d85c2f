"""Small outputs of every step as inputs of the report, and a parser for the page."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evaluated import HOSTILE, NOTHING, calibration_columns, tables
from prepared_data import dataset_info

from ral.config.params import ReportParams
from ral.data.dataset_info import LabelCounts, Shard
from ral.data.validation.result import ValidationResult
from ral.evaluation.results import Metrics
from ral.models.info import ModelInfo
from ral.records import Record
from ral.reporting.report import Inputs
from ral.robustness.contents import Robustness
from ral.training.state import HISTORY

# Name -> tier, training positives of 1000, test positives of 200, value of every metric.
FINDINGS: dict[str, tuple[str, int, int, float | None]] = {
    "Effusion": ("head", 200, 40, 0.612345),
    HOSTILE: ("medium", 50, 10, 0.234567),
    "Hernia": ("tail", 2, 1, None),
}
# Tables that may be empty.
LISTS = ("reliability", "operating", "decision_curves", "audit", "second_reading", "comparison", "confusion")
PARAMS: dict[str, Any] = {
    "phantom": {"images": 600, "size": 64, "floor": 0.01, "seed": 1},
    "data": {
        "source": "nih", "root": f"/data/{HOSTILE}", "missing_images": "drop", "views": ["PA"], "findings": None,
    },
    "split": {"method": "hash", "val": 0.1, "test": 0.2, "seed": 0},
    "preprocess": {"size": 64, "shard_images": 1000},
    "model": {"backbone": "resnet10t", "options": {"channels": [8, 16]}},
    "loss": {"name": "ral"},
    "train": {
        "epochs": 2, "batch_size": 16, "micro_batch": None, "learning_rate": 0.003, "weight_decay": 0.05,
        "warmup": 0.2, "clip_norm": 1.0, "precision": "float32", "zero_stage": 0, "threads": 1, "seed": 0,
        "augment": {"flip": 0.5, "rotate": 8.0, "shift": 0.06, "zoom": 0.1},
    },
    "evaluate": {
        "head": 0.1, "tail": 0.01, "min_positives": 5, "replicates": 1000, "confidence": 0.95,
        "interval": "bca", "seed": 0, "calibration": {"own": 20, "isotonic": 100, "bins": 15},
        "threshold": {"rule": "max_f1", "sensitivity": 0.9, "miss_cost": 10.0},
        "audit": {"by": ["sex"], "age_bands": [18, 65], "min_positives": 10}, "second_reading": None,
    },
    "explain": {},
    "report": {"title": f"Trial {HOSTILE}"},
}  # fmt: skip


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": round(value - 0.0511, 6), "high": round(value + 0.0622, 6), "findings": 1}


def metrics(data: str) -> dict[str, Any]:
    """A metrics.json whose tier tail has no value; every number in it is different."""
    numbers = iter(np.round(np.arange(0.1, 0.9, 0.0211), 6).tolist())

    def mean(findings: int) -> dict[str, Any]:
        measured = ("auroc", "ap", "f1", "sensitivity_at_90_specificity")
        return {metric: estimate(next(numbers)) for metric in measured} | {"findings": findings}

    content = {
        "data": data,
        "test": {"rows": 2345, "patients": 678},
        "macro": mean(2),
        "tiers": {
            "head": mean(1),
            "medium": mean(1),
            "tail": {
                **dict.fromkeys(("auroc", "ap", "f1", "sensitivity_at_90_specificity"), NOTHING),
                "findings": 0,
            },
        },
        "not_estimable": {
            "Hernia": "1 positive test images, at least 5 needed",
            HOSTILE: f"no F1: {HOSTILE}",
        },
        "interval": "bca",
        "confidence": 0.95,
        "replicates": 1000,
    }
    content["micro"] = mean(2)
    content["cxr_lt"] = {
        name: estimate(next(numbers)) | {"findings": 2} for name in ("mAP", "mAUROC", "mF1", "mECE")
    }
    return content


def findings() -> pd.DataFrame:
    rows = []
    for name, (tier, train, test, value) in FINDINGS.items():
        row: dict[str, Any] = {"finding": name, "tier": tier, "train_prevalence": train / 1000}
        row |= {"train_positives": train, "test_positives": test, "test_rows": 200, "threshold": -0.123456}
        for metric in ("auroc", "ap", "f1", "sensitivity_at_90_specificity"):
            missing = value is None or (metric == "f1" and name == HOSTILE)
            one = NOTHING if missing or value is None else estimate(value)
            row |= {metric: one["value"], f"{metric}_low": one["low"], f"{metric}_high": one["high"]}
        rows.append(calibration_columns(row, value is not None) | {"not_estimable": ""})
    table = pd.DataFrame(rows)
    floats = [name for name in table.columns if name.startswith(("auroc", "ap", "f1", "sensitivity"))]
    return table.astype(dict.fromkeys(floats, np.float64))


def make(phantom: bool) -> Inputs:
    """Small outputs of every step."""
    x = np.linspace(0, 1, 11)
    curves = [
        pd.DataFrame({"finding": name, "curve": curve, "x": x, "y": x})
        for name, (*_, value) in FINDINGS.items()
        if value is not None
        for curve in ("roc", "pr")
    ]
    check = {
        "kind": "table",
        "check": "image is present",
        "column": "image_bytes",
        "observed": "",
        "remedy": f"Add it. {HOSTILE}",
    }
    samples = [{"row": 8, "image_id": HOSTILE, "value": None}, {"row": 9, "image_id": "b", "value": HOSTILE}]
    return Inputs(
        params=ReportParams.model_validate(PARAMS),
        validation=ValidationResult.model_validate({
            "checks": [
                {**check, "passed": False, "samples": samples, "severity": "warning", "unexpected": 4321},
                {**check, "passed": True, "samples": [], "severity": "error", "unexpected": 0},
            ],
            "files": {HOSTILE: {"bytes": 123456, "sha256": "ab" * 32}},
            "images": 1500, "images_without_row": 7, "passed": True, "patients": 900, "phantom": phantom,
            "rows": 5824, "rows_without_image": 4321,
            "profile": {"rows": 5824, "patients": 900, "columns": {}, "labels": {}},
        }),
        dataset=dataset_info(
            64, [Shard(name="00000.arrow", images=1500, sha256="cd" * 32)], list(FINDINGS),
            images=1500,
            left_out={"no image": 4321, HOSTILE: 3},
            same_image={
                "images": 2, "patients": 3, "apart": 1, "joined": False,
                "examples": [["a.png (patient 1)", f"b.png (patient {HOSTILE})"], ["c.png (patient 2)", "d.png (patient 1)"]],
            },
            notes={"saturated": {"images": 4, "examples": [HOSTILE], "text": f"Little contrast. {HOSTILE}"}},
            inverted=1234,
            patients=800,
            phantom=phantom,
            rows=5824,
            split={
                name: {"images": images, "patients": images // 2}
                for name, images in (("train", 1000), ("val", 300), ("test", 200))
            },
        ),
        class_counts={
            name: LabelCounts(
                images=1000,
                **{kind: dict.fromkeys(FINDINGS, 3) for kind in ("positives", "negatives", "unknown")},
            )
            for name in ("train", "val", "test")
        },
        model=ModelInfo.model_validate({
            "model": {"backbone": "resnet10t", "options": {"channels": [8, 16]}, "head": "linear"},
            "best_epoch": 2, "findings": list(FINDINGS), "loss": "ral", "weights": "ema",
            "pretrained_sha256": None, "outputs": "raw logits", "phantom": phantom,
            "pixel_deviation": 63.0, "pixel_mean": 134.0, "size": 64,
        }),
        history=pd.DataFrame(
            [
                [1, "network", 0.002, 0.3, 0, 0.1, 0.6, 0.05, 0.55],
                [2, "network", 1e-6, 0.2, 1, 0.2, 0.7, 0.25, 0.75],
            ],
            columns=list(HISTORY),
        ),
        metrics=Metrics.model_validate(metrics("phantom" if phantom else "images")),
        findings=findings(),
        curves=pd.concat(curves, ignore_index=True),
        **tables("phantom" if phantom else "images", list(FINDINGS)),
        robustness=Robustness(notice="Research", data="phantom" if phantom else "images"),
        versions={"torch": f"2.0 {HOSTILE}"},
    )  # fmt: skip


class Page(HTMLParser):
    """The elements of a page with their attributes and the text inside."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(content)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def text(self, tag: str) -> list[str]:
        """The text of every element with this tag, with normalized white space."""
        return [" ".join("".join(text).split()) for name, _, text in self.elements if name == tag]

    def attributes(self) -> Iterator[tuple[str, str]]:
        for _, attributes, _ in self.elements:
            yield from attributes.items()


def write(inputs: Inputs, folder: Path) -> tuple[Path, Path, Path, Path]:
    """Write the files of the previous steps in their formats."""
    texts = {
        "validated/validation.json": inputs.validation,
        "prepared/dataset.json": inputs.dataset,
        "prepared/class_counts.json": {
            name: counts.to_json() for name, counts in inputs.class_counts.items()
        },
        "models/model.json": inputs.model,
        "models/history.csv": inputs.history,
        "reports/metrics.json": inputs.metrics,
        "reports/findings.csv": inputs.findings,
        "reports/curves.csv": inputs.curves,
        "reports/calibration.json": inputs.calibration,
        "reports/reliability.csv": inputs.reliability,
        "reports/operating.csv": inputs.operating,
        "reports/decision_curves.csv": inputs.decision_curves,
        "reports/characteristics.csv": inputs.characteristics,
        "reports/audit.csv": inputs.audit,
        "reports/second_reading.csv": inputs.second_reading,
        "reports/comparison.csv": inputs.comparison,
        "reports/gallery/gallery.json": inputs.gallery,
        "reports/geometry.json": inputs.geometry,
        "reports/confusion.csv": inputs.confusion,
        "reports/robustness/robustness.json": inputs.robustness,
    }
    for name, content in texts.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if isinstance(content, pd.DataFrame):
            content.to_csv(path, index=False)
        else:
            plain = content.to_json() if isinstance(content, Record | ModelInfo) else content
            path.write_text(json.dumps(plain), encoding="utf-8")
    for name, picture in inputs.pictures.items():
        (folder / "reports/gallery" / name).write_bytes(picture)
    return folder / "validated", folder / "prepared", folder / "models", folder / "reports"
