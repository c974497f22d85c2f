"""Thinned training images: positives fall geometrically, patients stay whole, validation and test keep their bytes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.data.dataset import Dataset, open_dataset
from ral.data.images.locate import list_images
from ral.data.prepare import prepare
from ral.data.splits.thin import THINNED, profile, thin

FINDINGS = ["Effusion", "Infiltration", "Nodule"]


def test_the_profile_is_the_largest_that_the_data_can_fill() -> None:
    assert profile(np.array([50, 1000, 200]), 1).tolist() == [50, 50, 50]
    assert profile(np.array([50, 1000, 200]), 100).tolist() == [10, 1000, 100]
    assert profile(np.array([5, 1000, 200]), 100).tolist() == [5, 500, 50]


@pytest.mark.parametrize("ratio", [1.0, 10.0, 100.0])
def test_counts_match_the_profile_within_one_patient_if_findings_do_not_occur_together(ratio: float) -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(2000), generator.integers(1, 5, 2000))
    of_patient = generator.choice(4, 2000, p=[0.5, 0.3, 0.15, 0.05])
    targets = (of_patient[patients][:, None] == np.arange(1, 4)).astype(np.int8)
    kept = thin(targets, patients, generator.permutation(2000)[patients], ratio)
    left, wanted = targets[kept].sum(axis=0), profile(targets.sum(axis=0), ratio)
    assert (np.abs(left - wanted) < np.bincount(patients).max()).all()
    assert not set(patients[kept]) & set(patients[~kept])
    assert kept[~targets.any(axis=1)].all()


@pytest.mark.parametrize("ratio", [1.0, 10.0])
def test_findings_that_occur_together_come_close_to_the_profile(ratio: float) -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(1500), 2)
    targets = (generator.random((3000, 5)) < [0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.float32)
    targets[generator.random(targets.shape) < 0.02] = np.nan
    kept = thin(targets, patients, patients.astype(float), ratio)
    left, wanted = (targets[kept] == 1).sum(axis=0), profile((targets == 1).sum(axis=0), ratio)
    assert left == pytest.approx(wanted, rel=0.3)
    assert left.max() / left.min() == pytest.approx(ratio, rel=0.3)
    assert not set(patients[kept]) & set(patients[~kept])
    without = ~np.isin(patients, patients[(targets == 1).any(axis=1)])
    assert kept[without].all()


def prepared(root: Path, out: Path, ratio: float | None = None, method: str = "stratified") -> Dataset:
    thinning = {} if ratio is None else {"thin": {"ratio": ratio}}
    params = PreprocessParams(
        data=DataConfig(
            source="nih", root=str(root), missing_images="drop", views=["PA", "AP"], findings=FINDINGS
        ),
        split=SplitConfig.model_validate({"method": method, "val": 0.2, "test": 0.2, "seed": 0} | thinning),
        preprocess=PreprocessConfig(size=32, shard_images=7),
    )
    out.mkdir()
    prepare(params, list_images(root, lambda _: None)[0], out, DaskTarget(workers=2), lambda _: None)
    return open_dataset(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def part(dataset: Dataset, split: str) -> tuple[pd.DataFrame, bytes]:
    rows = dataset.rows(split)
    return dataset.studies.iloc[rows].reset_index(drop=True), dataset.gather(rows).tobytes()


def test_a_ratio_of_one_changes_no_byte(small_phantom: Path, tmp_path: Path) -> None:
    prepared(small_phantom, tmp_path / "plain")
    prepared(small_phantom, tmp_path / "one", 1)
    assert contents(tmp_path / "plain") == contents(tmp_path / "one")


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_only_training_images_leave_and_are_counted(small_phantom: Path, tmp_path: Path, method: str) -> None:
    plain = prepared(small_phantom, tmp_path / "plain", method=method)
    counts_before = (plain.labels[plain.rows("train")] == 1).sum(axis=0)
    for ratio in (2, 20):
        thinned = prepared(small_phantom, tmp_path / f"{ratio}", ratio, method)
        for split in ("val", "test"):
            before, after = part(plain, split), part(thinned, split)
            pd.testing.assert_frame_equal(before[0], after[0])
            assert before[1] == after[1]
        trained, before = thinned.studies.iloc[thinned.rows("train")], plain.studies.iloc[plain.rows("train")]
        gone = before[~before["image_id"].isin(trained["image_id"])]
        assert 0 < len(gone) < len(before)
        assert not set(gone["patient_id"]) & set(thinned.studies["patient_id"])
        assert thinned.info.left_out == plain.info.left_out | {THINNED: len(gone)}
        assert thinned.info.rows == thinned.info.images + sum(thinned.info.left_out.values())
        table = pd.read_parquet(thinned.folder / "quarantine.parquet")
        listed = table.loc[table["reason"] == THINNED, "image_id"]
        assert sorted(listed) == sorted(gone["image_id"])
        pixels = plain.gather(plain.rows("train"))[before["image_id"].isin(trained["image_id"]).to_numpy()]
        assert (thinned.gather(thinned.rows("train")) == pixels).all()
        thinned.verify()
        counts = (thinned.labels[thinned.rows("train")] == 1).sum(axis=0)
        assert counts.min() > 0
        assert counts.sum() < counts_before.sum()
        assert thinned.info.pixel_mean == pytest.approx(pixels.astype(float).mean(), abs=1e-6)
