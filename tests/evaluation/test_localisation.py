"""Means and intervals of how heat maps point at boxes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ral.config.base import load
from ral.config.evaluate import EvaluateConfig, EvaluateParams
from ral.evaluation.localisation import LABELS, MACRO, LocalisationRow, read_table, summarise, to_table

METRICS = list(LABELS)


@pytest.fixture(scope="module")
def config() -> EvaluateConfig:
    return load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 400})


def values(better: float = 0.0, patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Two methods on the same images, two images a patient; the second has the given lead where both can differ."""
    rng = np.random.default_rng(seed)
    images = [f"i{number}" for number in range(2 * patients)]
    parts = []
    for finding, chance in (("Mass", 0.3), ("Nodule", 0.6)):
        first = rng.random(len(images)) < chance
        second = first | (rng.random(len(images)) < better)
        for method, layer, hits in (
            ("grad_cam", "layer2", first),
            ("grad_cam", "", second),
            ("random", "", first / 2),
        ):
            parts.append(
                pd.DataFrame(
                    {
                        "method": method, "layer": layer, "positions": "" if method == "random" else "8 × 8",
                        "finding": finding, "image_id": images, "patient_id": [f"p{n // 2}" for n in range(len(images))],
                        **dict.fromkeys(METRICS, np.asarray(hits, float)),
                    }
                )
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def row_of(rows: list[LocalisationRow], **wanted: str) -> LocalisationRow:
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return row


def test_values_are_means_over_images_and_findings(config: EvaluateConfig) -> None:
    table = values(0.5)
    rows = summarise(table, "test", ("grad_cam", "layer2"), config)
    assert len(rows) == 3 * 3 * len(METRICS)
    means = table.groupby(["method", "layer", "finding"])["energy"].mean()
    for (method, layer), own in means.groupby(level=["method", "layer"]):
        for finding in ("Mass", "Nodule"):
            row = row_of(rows, method=method, layer=layer, finding=finding, metric="energy")
            assert row.value == pytest.approx(means[method, layer, finding], abs=1e-6)
            assert (row.images, row.patients) == (120, 60)
            assert row.low is not None
            assert row.high is not None
            assert row.low < row.value < row.high
        macro = row_of(rows, method=method, layer=layer, finding=MACRO, metric="energy")
        assert macro.value == pytest.approx(own.mean(), abs=1e-6)


def test_differences_are_to_the_shown_heat_maps_on_the_same_patients(config: EvaluateConfig) -> None:
    rows = summarise(values(0.5), "val", ("grad_cam", "layer2"), config)
    shown = row_of(rows, layer="layer2", finding=MACRO, metric="pointing")
    other = row_of(rows, method="grad_cam", layer="", finding=MACRO, metric="pointing")
    assert (shown.shown, other.shown) == ("yes", "no")
    assert shown.difference is None
    assert other.value is not None
    assert shown.value is not None
    assert other.difference == pytest.approx(other.value - shown.value, abs=2e-6)
    assert other.difference_low is not None
    assert other.difference_low > 0
    assert (shown.name, other.name) == ("Grad-CAM, layer2 (8 × 8)", "Grad-CAM (8 × 8)")


def test_equal_methods_have_no_difference(config: EvaluateConfig) -> None:
    other = row_of(
        summarise(values(0.0), "val", ("grad_cam", "layer2"), config), method="grad_cam", layer="", finding=MACRO,
        metric="energy",
    )  # fmt: skip
    assert (other.difference, other.difference_low, other.difference_high) == (0, 0, 0)


def test_images_of_a_patient_are_resampled_together(config: EvaluateConfig) -> None:
    """Twice the images of the same patients say no more: the interval is as wide."""
    table = values()
    doubled = pd.concat([table, table.assign(image_id=table["image_id"] + "b")])
    doubled = doubled.sort_values(["method", "layer", "finding"], kind="stable", ignore_index=True)
    widths = [
        (row.high or 0) - (row.low or 0)
        for rows in (
            table.sort_values(["method", "layer", "finding"], kind="stable", ignore_index=True),
            doubled,
        )
        for row in [
            row_of(summarise(rows, "test", None, config), layer="layer2", finding="Mass", metric="energy")
        ]
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_without_shown_maps_there_are_no_differences(config: EvaluateConfig) -> None:
    rows = summarise(values(), "test", None, config)
    assert {row.shown for row in rows} == {"no"}
    assert all(row.difference is None for row in rows)


def test_too_few_patients_give_no_rows(config: EvaluateConfig) -> None:
    assert summarise(pd.DataFrame(), "test", None, config) == []
    table = values()
    assert summarise(table[table["patient_id"] == "p0"], "test", None, config) == []


def test_methods_on_different_images_are_a_bug(config: EvaluateConfig) -> None:
    table = values()
    with pytest.raises(ValueError, match="different images"):
        summarise(table.drop(index=0), "test", None, config)


def test_table_is_read_as_it_was_written(config: EvaluateConfig, tmp_path: Path) -> None:
    rows = summarise(values(0.5), "test", ("grad_cam", "layer2"), config)
    to_table(rows).to_csv(tmp_path / "localisation.csv", index=False)
    assert (
        read_table(pd.read_csv(tmp_path / "localisation.csv", keep_default_na=False, na_values=[""])) == rows
    )
    assert list(to_table([]).columns) == list(to_table(rows).columns)
