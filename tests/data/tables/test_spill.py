"""Images are found by id, rows come back by their place whatever order they came in, and labels are counted right."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.data.tables import spill as module
from ral.data.tables.spill import ImageIdIndex, SpillBuffer, StudiesWriter

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
            "stored": 3 * rng.permutation(1000),
        }
    )


def test_images_are_found_by_id_in_any_kind_of_column() -> None:
    ids = [f"image{n}é.png" for n in range(2500)]
    stored = pd.concat([pd.Series(ids[:999], dtype="str"), pd.Series(ids[999:], dtype="str")])
    index = ImageIdIndex(stored)
    asked = [ids[7], "nowhere", ids[2499], ids[7], ""]
    for dtype in ("str", "object"):
        assert index.find(pd.Series(asked, dtype=dtype)).tolist() == [7, -1, 2499, 7, -1]
    assert index.find(pd.Series([], dtype="str")).tolist() == []
    assert ImageIdIndex(stored[:0]).find(stored[:2]).tolist() == [-1, -1]


def test_images_whose_ids_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda ids: np.array([len(i.as_py()) for i in ids], np.uint64))
    index = ImageIdIndex(pd.Series(["aa", "b", "cc", "d", "ee"]))
    found = index.find(pd.Series(["ee", "cc", "xx", "d", "yyy", "aa", "b", "z"]))
    assert found.tolist() == [4, 2, -1, 3, -1, 0, 1, -1]


@pytest.mark.parametrize("blocks", [1, 7])
def test_rows_come_back_by_their_place(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(module, "BUCKET_ROWS", 900)
    with SpillBuffer(tmp_path / "rows") as buffer:
        for part in np.array_split(np.arange(len(frame)), blocks):
            buffer.add(frame.iloc[part])
        buffer.add(frame[:0])
        chunks = list(buffer.in_order())
    assert len(chunks) == 4
    wanted = frame.sort_values("stored", ignore_index=True)
    pd.testing.assert_frame_equal(pd.concat(chunks, ignore_index=True), wanted)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_on_disk_after_a_failure(frame: pd.DataFrame, tmp_path: Path) -> None:
    def failing() -> None:
        with SpillBuffer(tmp_path / "rows") as buffer:
            buffer.add(frame)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunks", [1, 7])
def test_a_table_written_in_pieces_is_whole_and_counted(
    frame: pd.DataFrame, tmp_path: Path, chunks: int
) -> None:
    path = tmp_path / "studies.parquet"
    with StudiesWriter(path, FINDINGS, SPLITS) as written:
        for part in np.array_split(np.arange(len(frame)), chunks):
            written.add(frame.iloc[part])
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
    for name in SPLITS:
        here = frame[frame["split"] == name]
        assert written.class_counts[name].images == len(here)
        for finding in FINDINGS:
            kinds = ("positives", "negatives", "unknown")
            assert [getattr(written.class_counts[name], kind)[finding] for kind in kinds] == [
                (here[finding] == 1).sum(),
                (here[finding] == 0).sum(),
                here[finding].isna().sum(),
            ]
