"""Heat maps against boxes: the metrics where their values are known, and the step explain on data with boxes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.config.explain import ExplainConfig, ExplainParams
from ral.data.dataset import open_dataset
from ral.explain.localisation import (
    BASELINES,
    METRICS,
    RANDOM_POINTS,
    baseline,
    bell,
    detect,
    iobb,
    locate,
    measure,
    region_of,
)
from ral.files import write_json
from tasks.explain import run

SIZE = 64


def region(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), bool)
    inside[top:bottom, left:right] = True
    return inside


BOX = region(8, 20, 24, 52)
SHARE = BOX.mean()


def test_the_indicator_of_the_box_has_all_values_1() -> None:
    assert measure(BOX.astype(np.float32), BOX) == dict.fromkeys(METRICS, 1.0)


def test_a_uniform_map_has_the_share_of_the_area() -> None:
    values = measure(np.full((SIZE, SIZE), 0.3, np.float32), BOX)
    assert values["pointing"] == values["energy"] == pytest.approx(SHARE)
    assert iobb(np.ones((SIZE, SIZE), np.float32), BOX) == pytest.approx(SHARE)
    assert (values["iobb_10"], values["iobb_25"]) == (1.0, 0.0)  # the box has an eighth of the image


def test_a_random_point_is_in_the_box_with_the_share_of_its_area() -> None:
    hits = [baseline("random", BOX, seed)["pointing"] for seed in range(150)]
    error = np.sqrt(SHARE * (1 - SHARE) / (len(hits) * RANDOM_POINTS))
    assert np.mean(hits) == pytest.approx(SHARE, abs=4 * error)
    everywhere = [
        measure(bell(SIZE, x, y), BOX)["pointing"] for x in range(0, SIZE, 2) for y in range(0, SIZE, 2)
    ]
    assert np.mean(everywhere) == pytest.approx(SHARE)


def test_the_centre_hits_what_is_in_the_centre() -> None:
    assert baseline("centre", region(28, 28, 36, 36), 0)["pointing"] == 1
    assert baseline("centre", BOX, 0)["pointing"] == 0
    whole = np.ones((SIZE, SIZE), bool)
    assert all(baseline(name, whole, 3) == dict.fromkeys(METRICS, 1.0) for name in BASELINES)


def test_a_map_of_zeros_points_nowhere() -> None:
    assert measure(np.zeros((SIZE, SIZE), np.float32), BOX) == dict.fromkeys(METRICS, 0.0)


def test_values_by_hand() -> None:
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[0:4, 0:4] = 1  # the maximum, outside
    heat[30:34, 20:28] = 0.5  # half of it inside: above 60 of 255, below 180
    values = measure(heat, BOX)
    assert values["pointing"] == 0
    assert values["energy"] == pytest.approx(0.5 * 16 / (16 + 0.5 * 32))
    assert iobb(heat, BOX) == 0.5
    assert (values["iobb_10"], values["iobb_25"]) == (1.0, 1.0)
    heat[30:34, 20:28] = 0.2  # below both cuts
    assert iobb(heat, BOX) == 0


def test_ties_of_the_maximum_count_by_their_share() -> None:
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[20, [8, 9, 40, 41]] = 1
    assert measure(heat, BOX)["pointing"] == 0.5


def test_detected_boxes_are_around_isolated_parts_at_both_cuts() -> None:
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[2:6, 2:6] = 61 / 255
    heat[3:5, 3:5] = 1.0
    heat[40, 40] = heat[41, 41] = 179 / 255  # they touch at a corner
    heat[50, 50] = 59 / 255
    boxes = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in detect(heat)]
    assert boxes == [(2, 6, 2, 6), (40, 42, 40, 42), (3, 5, 3, 5)]


def boxes_table(*rows: tuple[str, str, str, int, float, float, float, float]) -> pd.DataFrame:
    columns = ["image_id", "finding", "reader", "votes", "x_min", "y_min", "x_max", "y_max"]
    return pd.DataFrame(rows, columns=columns)


def test_region_of_several_readers_is_where_enough_of_them_agree() -> None:
    table = boxes_table(
        ("a", "Mass", "R1", 2, 0, 0, 10, 10),
        ("a", "Mass", "R2", 2, 5, 0, 15, 10),
        ("a", "Mass", "R2", 2, 6, 0, 9, 2),
    )
    assert np.array_equal(region_of(table, SIZE), region(5, 0, 10, 10))
    assert np.array_equal(region_of(table.assign(votes=1), SIZE), region(0, 0, 15, 10))
    assert not region_of(table.assign(votes=3), SIZE).any()


def test_region_has_at_least_a_pixel() -> None:
    for low, high in ((3.1, 3.3), (63.6, 64.0), (63.2, 63.4)):
        inside = region_of(boxes_table(("a", "Mass", "", 1, low, low, high, high)), SIZE)
        assert inside.sum() == 1, (low, high)
    assert region_of(boxes_table(("a", "Mass", "", 1, 2.4, 0, 5.6, 1)), SIZE).sum() == 4


# --- the step


def params(sealed: float = 0.0, **changes: object) -> ExplainParams:
    evaluate = load(ROOT / "params.yaml", EvaluateParams).evaluate
    evaluate = evaluate.model_copy(update={"sealed": sealed, "replicates": 100})
    explain = ExplainConfig.model_validate({"threads": 1, "per_kind": 2, **changes})
    return ExplainParams(explain=explain, evaluate=evaluate)


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def boxed(prepared: Path) -> Path:
    """Prepared data with a box of each Effusion and Mass; the third finding has none."""
    studies = pd.read_parquet(prepared / "studies.parquet")
    studies.loc[studies.index % 4 == 0, "split"] = "val"
    studies.to_parquet(prepared / "studies.parquet", index=False)
    rows = [
        (row.image_id, name, "", 1, 8.0 * index, 16.0, 24.0 + 8 * index, 40.0)
        for row in studies.itertuples()
        for index, name in enumerate(("Effusion", "Mass"))
        if getattr(row, name) == 1
    ]
    boxes_table(*rows).to_parquet(prepared / "boxes.parquet", index=False)
    return prepared


def explain(boxed: Path, models: Path, out: Path, **changes: object) -> pd.DataFrame:
    logits = pd.read_parquet(models / "logits/test.parquet")
    test = open_dataset(boxed).studies.query("split == 'test'")["image_id"]
    logits[logits["image_id"].isin(test)].to_parquet(models / "logits/test.parquet", index=False)
    run(params(**changes), boxed, models, out)
    path = out / "gallery/localisation.csv"
    return pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame()


def test_images_with_boxes_are_found_by_finding(boxed: Path) -> None:
    dataset = open_dataset(boxed)
    rows = dataset.rows("test")
    located = locate(dataset, rows)
    assert [part.finding for part in located] == ["Effusion", "Mass"]
    for index, part in enumerate(located):
        labels = dataset.targets(rows)[:, index]
        assert part.rows.tolist() == rows[labels == 1].tolist()
        assert all(np.array_equal(one, region(8 * index, 16, 24 + 8 * index, 40)) for one in part.regions)


def test_every_method_is_measured_on_both_splits(
    boxed: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = make_model("test_resnet", "csra")
    table = explain(boxed, models, tmp_path / "out", layer="layer3")
    assert list(dict.fromkeys(table["split"])) == ["val", "test"]
    methods = dict.fromkeys(zip(table["method"], table["layer"], strict=True))
    assert {method for method, _ in methods} == {"grad_cam", "csra", "centre", "random"}
    assert ("grad_cam", "layer3") in methods
    assert ("grad_cam", "") in methods
    assert set(table["finding"]) == {"Effusion", "Mass", "macro"}
    assert set(table["metric"]) == set(METRICS)
    assert set(table.loc[table["shown"] == "yes", "layer"]) == {"layer3"}
    assert (table["data"] == "images").all()
    macro = table[(table["finding"] == "macro") & (table["split"] == "test")]
    for (_, _, metric), own in macro.groupby(["method", "layer", "metric"]):
        key = {
            "method": own["method"].iloc[0],
            "layer": own["layer"].iloc[0],
            "metric": metric,
            "split": "test",
        }
        parts = table[(table[list(key)] == pd.Series(key)).all(axis=1) & (table["finding"] != "macro")]
        assert own["value"].astype(float).iloc[0] == pytest.approx(
            parts["value"].astype(float).mean(), abs=1e-6
        )
    again = explain(boxed, models, tmp_path / "again", layer="layer3")
    pd.testing.assert_frame_equal(again, table)


def test_a_network_that_looks_at_the_box_wins(
    boxed: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Only the centre is in the box of every image: that baseline has the value 1."""
    boxes = pd.read_parquet(boxed / "boxes.parquet").assign(x_min=28.0, x_max=36.0, y_min=28.0, y_max=36.0)
    boxes.to_parquet(boxed / "boxes.parquet", index=False)
    table = explain(boxed, make_model("test_resnet"), tmp_path / "out")
    pointing = table[(table["metric"] == "pointing") & (table["finding"] == "macro")].set_index(
        ["split", "method"]
    )
    assert (pointing.loc[[("val", "centre"), ("test", "centre")], "value"].astype(float) == 1).all()
    assert pointing.loc[("test", "random"), "value"] < 0.2


def test_sealed_patients_are_not_measured(
    boxed: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = make_model("test_resnet")
    whole = explain(boxed, models, tmp_path / "whole")
    part = explain(boxed, models, tmp_path / "part", sealed=0.5)
    images = [table.loc[table["split"] == "test", "images"].max() for table in (whole, part)]
    assert 0 < images[1] < images[0]
    assert (
        part.loc[part["split"] == "val", "images"].max() == whole.loc[whole["split"] == "val", "images"].max()
    )


def test_boxes_are_listed_with_their_images(
    boxed: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    explain(boxed, make_model("test_resnet"), tmp_path / "out")
    content = json.loads((tmp_path / "out/gallery/gallery.json").read_text())
    findings = {finding["finding"]: finding for finding in content["findings"]}
    for name, corners in (("Effusion", [0, 0.25, 0.375, 0.625]), ("Mass", [0.125, 0.25, 0.5, 0.625])):
        assert all(image["boxes"] == [corners] for image in findings[name]["hits"])
        assert not any("boxes" in image for image in findings[name]["false_positives"])


def test_boxes_change_nothing_else(boxed: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    models = make_model("test_resnet")
    explain(boxed, models, tmp_path / "with")
    (boxed / "boxes.parquet").unlink()
    explain(boxed, models, tmp_path / "without")
    own, plain = tree(tmp_path / "with"), tree(tmp_path / "without")
    assert set(own) - set(plain) == {"gallery/localisation.csv"}
    content = json.loads(own.pop("gallery/gallery.json"))
    for finding in content["findings"]:
        for kind in ("hits", "false_positives", "misses"):
            for image in finding[kind]:
                image.pop("boxes", None)
    write_json(tmp_path / "gallery.json", content)
    assert (tmp_path / "gallery.json").read_bytes() == plain.pop("gallery/gallery.json")
    assert all(own[name] == plain[name] for name in plain)


def test_no_pictures_no_boxes_of_images(boxed: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    table = explain(boxed, make_model("test_resnet"), tmp_path / "out", show_images=False)
    assert len(table) > 0  # numbers show no pixels
    assert "boxes" not in (tmp_path / "out/gallery/gallery.json").read_text()
