"""A table written block by block is the table written at once, in the order asked for, and counted right."""

from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from ral.data import table as module
from ral.data.table import write_table

FINDINGS, SPLITS = ("Mass", "Hernia"), ("train", "val", "test")


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 200, 1000)
    labels = rng.choice([0, 1, np.nan], (1000, 2)).astype(np.float32)
    return pd.DataFrame(
        {
            "image_id": [f"{n}.png" for n in range(1000)],
            "patient_id": patient.astype(str),
            "split": np.array(SPLITS)[patient % 3],
            "Mass": labels[:, 0],
            "Hernia": labels[:, 1],
            "stored": rng.permutation(1000),
        }
    )


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("order", [None, "stored"])
def test_blocks_make_the_whole(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, order: str | None
) -> None:
    monkeypatch.setattr(module, "BUCKET_ROWS", 300)
    blocks = dd.from_pandas(frame, npartitions=7, sort=False)
    path = tmp_path / "studies.parquet"
    done = write_table(blocks, lambda block: block, path, FINDINGS, SPLITS, workers, order)
    wanted = frame if order is None else frame.sort_values("stored", ignore_index=True).drop(columns="stored")
    pd.testing.assert_frame_equal(pd.read_parquet(path).astype(wanted.dtypes), wanted)
    assert done.rows == 1000
    pairs = frame[["patient_id", "split"]].drop_duplicates().sort_values("patient_id", ignore_index=True)
    pd.testing.assert_frame_equal(done.patients.astype(pairs.dtypes), pairs)
    for name in SPLITS:
        here = frame[frame["split"] == name]
        assert done.counts[name]["films"] == len(here)
        for finding in FINDINGS:
            counts = [done.counts[name][kind][finding] for kind in ("positives", "negatives", "unknown")]
            assert counts == [
                (here[finding] == 1).sum(),
                (here[finding] == 0).sum(),
                here[finding].isna().sum(),
            ]
    assert [path.name for path in tmp_path.iterdir()] == ["studies.parquet"]


def test_bytes_do_not_depend_on_workers(frame: pd.DataFrame, tmp_path: Path) -> None:
    blocks = dd.from_pandas(frame, npartitions=7, sort=False)
    for workers in (1, 4):
        write_table(blocks, lambda block: block, tmp_path / f"{workers}.parquet", FINDINGS, SPLITS, workers)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "4.parquet").read_bytes()


def test_failure_leaves_no_spill(frame: pd.DataFrame, tmp_path: Path) -> None:
    def broken(block: pd.DataFrame) -> pd.DataFrame:
        if block["image_id"].iloc[0] != "0.png":
            raise ValueError("broken")
        return block

    blocks = dd.from_pandas(frame, npartitions=7, sort=False)
    with pytest.raises(ValueError, match="broken"):
        write_table(blocks, broken, tmp_path / "a.parquet", FINDINGS, SPLITS, 2, "stored")
    assert not list(tmp_path.glob(".*"))
