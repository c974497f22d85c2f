"""Small outputs of the steps evaluate and explain for the report, with a name that attempts injection."""

import io
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ral.evaluation.calibration_io import SavedCalibration
from ral.evaluation.specs import CALIBRATION_METRICS
from ral.explain.contents import Gallery, Geometry

HOSTILE = "<script>alert('x')</script> $a_1$ \"&"
NOTHING = {"value": None, "low": None, "high": None, "findings": 0}


def jpeg(gray: int) -> bytes:
    """A picture with one gray value."""
    file = io.BytesIO()
    Image.new("L", (8, 8), gray).save(file, "JPEG")
    return file.getvalue()


PICTURES = {"image_001.jpg": jpeg(10), "map_001.jpg": jpeg(20), "image_002.jpg": jpeg(30)}


def calibration_columns(row: dict[str, Any], estimable: bool) -> dict[str, Any]:
    """The columns of findings.csv about calibration."""
    columns: dict[str, Any] = {"calibration": "shared" if estimable else np.nan}
    for index, error in enumerate(CALIBRATION_METRICS):
        value = 0.0123 + index / 1000 if estimable else np.nan
        columns |= {error: value, f"{error}_low": value - 0.01, f"{error}_high": value + 0.01}
        columns[f"{error}_uncalibrated"] = value + 0.3
    return row | columns


def tables(data: str, names: list[str]) -> dict[str, Any]:
    """The fields of Inputs that the steps evaluate (but metrics, findings, curves) and explain give.

    Args:
        data: phantom or images.
        names: the findings; the last is not estimable.
    """
    known = names[:-1]
    return {
        "calibration": saved_calibration({name: saved_map() for name in known} | {names[-1]: None}, data),
        "reliability": pd.DataFrame(
            [
                {"finding": name, "scores": scores, "images": 50, "positives": 5 * index, "mean_score": 0.11 * index,
                 "observed": 0.1 * index, "low": 0.05 * index if index else np.nan, "high": 0.2 * index if index else np.nan}
                for name in known for scores in ("calibrated", "uncalibrated") for index in range(4)
            ]
        ),
        "operating": pd.DataFrame([_operating(name, rule) for name in known for rule in ("max_f1", "sensitivity", "cost", "prevalence")]),
        "decision_curves": pd.DataFrame(
            [
                {"finding": name, "threshold": 0.02 * step, "net_benefit": 0.1317 / step, "low": 0.08 / step if step < 25 else np.nan,
                 "high": 0.17 / step if step < 25 else np.nan, "all": 0.2 - 0.05 * step, "images": 200}
                for name in known for step in range(1, 26)
            ]
        ),
        "characteristics": characteristics(names),
        "audit": audit(known),
        "second_reading": pd.DataFrame([_reading(names[0], ""), _reading(names[1], f"too few: {HOSTILE}")]),
        "comparison": comparison(names),
        "gallery": Gallery.model_validate(gallery(data, names)),
        "pictures": PICTURES,
        "geometry": Geometry.model_validate(geometry(data, names)),
        "confusion": pd.DataFrame(
            [
                {"finding": a, "taken_for": b, "images": 40, "times": 10, "share": 0.25 + 0.01 * index, "share_without": 0.1}
                for index, (a, b) in enumerate((a, b) for a in names for b in names if a != b)
            ]
        ),
    }  # fmt: skip


def saved_calibration(findings: dict[str, Any], data: str = "images") -> SavedCalibration:
    """A calibration.json."""
    return SavedCalibration.model_validate(
        {"format": 1, "rule": "max_f1", "findings": findings, "data": data, "version": "0123456789ab"}
    )


def saved_map() -> dict[str, Any]:
    """A calibration map that is the sigmoid, and thresholds."""
    return {
        "kind": "shared",
        "numbers": [1.0, 1.0, 0.0],
        "knots": [],
        "thresholds": {"max_f1": 0.3217, "sensitivity": 0.3217, "cost": 1.0, "prevalence": 0.0123},
    }


def characteristics(names: list[str]) -> pd.DataFrame:
    """200 images of each split, a few ages and labels of which are unknown."""
    blank = {"median": np.nan, "q1": np.nan, "q3": np.nan}
    ages = {"median": 48.0, "q1": 35.5, "q3": 59.0}
    rows: list[tuple[str, str, int, int, dict[str, float]]] = [
        ("all", "all", 200, 200, blank),
        ("sex", "F", 80, 200, blank),
        ("sex", HOSTILE, 120, 200, blank),
        ("age_years", "known", 190, 200, ages),
        *(("finding", name, 40, 160, blank) for name in names),
    ]
    return pd.DataFrame(
        [
            {"attribute": attribute, "group": group, "split": split, "images": images, "of": of, "share": images / of,
             "patients": images // 2} | numbers
            for attribute, group, images, of, numbers in rows for split in ("train", "val", "test")
        ]
    )  # fmt: skip


def comparison(names: list[str]) -> pd.DataFrame:
    """The second finding is not estimable; the others gain a little, the mean of all more than chance."""
    rows = []
    for metric in ("ap", "auroc"):
        for level, name in (("macro", "macro"), ("tier", "head"), *(("finding", name) for name in names)):
            missing = name == names[1]
            numbers = dict.fromkeys(
                ("value", "baseline_value", "difference", "low", "high", "p", "p_holm"), np.nan
            )
            if not missing:
                numbers = {
                    "value": 0.5124,
                    "baseline_value": 0.4813,
                    "difference": 0.0312,
                    "low": 0.0107,
                    "high": 0.0519,
                    "p": 0.003,
                    "p_holm": 0.0065,
                }
            rows.append(
                {
                    "metric": metric,
                    "level": level,
                    "name": name,
                    "model": "this model",
                    "baseline": "previous",
                    "findings": 2,
                }
                | numbers
                | {
                    "note": f"not estimable: {HOSTILE}" if missing else "",
                    "data": "images",
                    "images": 2345,
                    "patients": 678,
                }
            )
    return pd.DataFrame(rows)


def audit(names: list[str]) -> pd.DataFrame:
    """One attribute whose groups are F, a name that is no text, and a small one; and one that the data lacks."""
    blank = dict.fromkeys(
        ("value", "low", "high", "others", "difference", "difference_low", "difference_high", "p", "p_holm"),
        np.nan,
    )
    counts = {"images": 100, "patients": 50, "positives": 20}
    rows: list[dict[str, Any]] = [{"attribute": "source", "note": "not in the data"} | blank]
    for group in ("F", HOSTILE):
        for finding in (*names, "macro"):
            for index, metric in enumerate(
                ("auroc", "ap", "sensitivity", "false_negative_rate", "calibration")
            ):
                flagged = group == HOSTILE and metric == "sensitivity" and finding == names[0]
                tested = metric in ("auroc", "sensitivity", "calibration")
                rows.append(
                    {"attribute": "sex", "group": group, "finding": finding, "metric": metric} | counts
                    | {"value": 0.7 + index / 100, "low": 0.61, "high": 0.83, "others": 0.75, "difference": -0.05,
                       "difference_low": -0.1, "difference_high": 0.01, "p": 0.002 if tested else np.nan,
                       "p_holm": (0.004 if flagged else 0.9) if tested else np.nan,
                       "flagged": ("yes" if flagged else "no") if tested else np.nan}
                )  # fmt: skip
    rows.append(
        {"attribute": "sex", "group": "small", "finding": names[0], "metric": np.nan} | counts | blank
        | {"note": f"too few: 3 patients {HOSTILE}"}
    )  # fmt: skip
    columns = [
        "attribute",
        "group",
        "finding",
        "images",
        "patients",
        "positives",
        "metric",
        *blank,
        "flagged",
        "note",
    ]
    return pd.DataFrame(rows, columns=columns)


def gallery(data: str, names: list[str]) -> dict[str, Any]:
    """A gallery whose first finding has an image of each kind, and whose last has none."""

    def image(image_id: str, picture: str, rank: int, **more: Any) -> dict[str, Any]:
        fields = {
            "image_id": image_id,
            "logit": 1.25,
            "rank": rank,
            "image": picture,
            "labels": [names[1]],
            "unknown": [],
        }
        return fields | more

    heat = {"map": "map_001.jpg", "empty_map": False}
    first = {
        "hits": [image(HOSTILE, "image_001.jpg", 1, **heat)],
        "false_positives": [image("b.png", "image_002.jpg", 2, labels=[])],
        "misses": [image("c.png", "image_001.jpg", 1199, unknown=[HOSTILE], logit=-1.25)],
    }
    empty: dict[str, Any] = {"hits": [], "false_positives": [], "misses": []}
    counts = {"positives": 200, "negatives": 1000, "unknown": 0, "note": None}
    return {
        "notice": "", "data": data, "images": True, "per_kind": 1, "method": "grad_cam", "layer": "layer2", "reason": f"coarse {HOSTILE}",
        "positions": [8, 8],
        "findings": [
            {"finding": names[0], **counts, **first},
            *({"finding": name, **counts, "note": f"No test image: {name}", **empty} for name in names[1:]),
        ],
    }  # fmt: skip


def geometry(data: str, names: list[str]) -> dict[str, Any]:
    """Directions of the classifier, the last one without a value."""
    matrix = [[1.0 if a == b else 0.31 for b in range(len(names))] for a in range(len(names))]
    matrix[-1] = [None] * len(names)  # type: ignore[list-item]
    part = {"cosines": matrix, "mean_cosine": {"common": 0.31, "rare": None, "common_to_rare": 0.29}}
    return {
        "notice": "", "data": data, "images": 100, "width": 8, "class_means": part, "classifier": part,
        "collapse": {"vanishing": 12.3, "classifier_distance": 0.456, "class_means_distance": None},
        "findings": [
            {"finding": name, "train_prevalence": 0.1, "train_positives": 10, "images": 10, "within": None, "between": None,
             "variability": None, "weight_norm": 1.5, "ideal_weight_norm": 1.25}
            for name in names
        ],
    }  # fmt: skip


def _operating(name: str, rule: str) -> dict[str, Any]:
    row: dict[str, Any] = {"finding": name, "rule": rule, "chosen": rule == "max_f1"}
    row |= {"threshold": 1.0 if rule == "cost" else 0.3217, "tp": 31, "fp": 17, "fn": 9, "tn": 1143}
    for index, share in enumerate(("sensitivity", "specificity", "ppv", "npv", "f1")):
        row |= {share: 0.775 + index / 100, f"{share}_low": 0.6, f"{share}_high": 0.9}
    return row


def _reading(name: str, note: str) -> dict[str, Any]:
    row: dict[str, Any] = {"finding": name, "images": 90, "patients": 60, "first_positives": 12}
    row |= {"second_positives": 14, "both_positive": 10, "note": note or np.nan}
    for metric in ("kappa", "positive_agreement", "negative_agreement", *_METRICS_AGAINST):
        row |= {metric: np.nan if note else 0.654, f"{metric}_low": 0.5, f"{metric}_high": 0.8}
    return row


_METRICS_AGAINST = tuple(f"{name}_{reading}" for name in ("auroc", "ap") for reading in ("first", "second"))
