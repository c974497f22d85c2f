"""Batches of arbitrary rows, whole and in order; columns of the table; a changed byte of a shard is found."""

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prepared_data import dataset_info

from ral.data import dataset as dataset_module
from ral.data.dataset import Dataset, open_dataset
from ral.data.dataset_info import Shard
from ral.data.images.shards import write_shard
from ral.errors import UserError
from ral.files import sha256, write_json

SIZE, SHARDS = 12, (40, 1, 60, 17)
FINDINGS = ["Mass", "Edema", "Hernia"]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (sum(SHARDS), SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def table() -> pd.DataFrame:
    """The table of the fixture `dataset`, with unknown labels."""
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, np.nan], (sum(SHARDS), len(FINDINGS))).astype(np.float32)
    names = {
        "image_id": [f"{n}.png" for n in range(len(labels))],
        "patient_id": rng.integers(0, 30, len(labels)).astype(str),
        "split": rng.choice(["train", "val", "test"], len(labels)),
    }
    return pd.DataFrame(names).join(pd.DataFrame(labels, columns=FINDINGS))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the table be read in many blocks."""
    monkeypatch.setattr(dataset_module, "BLOCK", 7)


@pytest.fixture
def dataset(tmp_path: Path, pixels: np.ndarray, table: pd.DataFrame) -> Dataset:
    (tmp_path / "shards").mkdir()
    ids, shards, start = [f"{n}.png" for n in range(len(pixels))], [], 0
    for number, images in enumerate(SHARDS):
        path = tmp_path / f"shards/{number:05}.arrow"
        write_shard(path, ids[start : start + images], pixels[start : start + images])
        shards.append(Shard(name=path.name, images=images, sha256=sha256(path)))
        start += images
    table.to_parquet(tmp_path / "studies.parquet", index=False)
    dataset_info(SIZE, shards, FINDINGS).write(tmp_path / "dataset.json")
    write_json(tmp_path / "class_counts.json", {})
    return open_dataset(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_any_rows_in_any_order(dataset: Dataset, pixels: np.ndarray, count: int) -> None:
    rows = np.random.default_rng(count).integers(0, len(pixels), count)
    assert (dataset.gather(rows) == pixels[rows]).all()


def test_rows_of_a_single_shard(dataset: Dataset, pixels: np.ndarray) -> None:
    one = replace(dataset, shards=(pixels,), starts=np.array([0]))
    rows = np.random.default_rng(0).integers(0, len(pixels), 300)
    assert (one.gather(rows) == pixels[rows]).all()


def test_into_a_tensor_that_is_there_already(dataset: Dataset, pixels: np.ndarray) -> None:
    import torch

    tensor = torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)
    out = tensor.numpy()
    assert dataset.gather(np.array([5, 99, 40]), out) is out
    assert (tensor.numpy() == pixels[[5, 99, 40]]).all()


@pytest.mark.parametrize(
    "out",
    [np.empty((2, SIZE, SIZE), np.uint8), np.empty((3, SIZE, SIZE)), np.empty((SIZE, SIZE, 3), np.uint8).T],
)
def test_wrong_place_is_refused(dataset: Dataset, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out must be contiguous uint8"):
        dataset.gather(np.array([1, 2, 3]), out)


@pytest.mark.parametrize("row", [-1, sum(SHARDS)])
def test_row_that_is_not_there(dataset: Dataset, row: int) -> None:
    with pytest.raises(IndexError, match="rows must be from 0 to 117"):
        dataset.gather(np.array([3, row]))


def test_verify_names_the_shard_of_a_changed_row(
    dataset: Dataset, tmp_path: Path, pixels: np.ndarray
) -> None:
    dataset.verify()
    path = tmp_path / "shards/00002.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(pixels[70].tobytes())] ^= 1
    path.write_bytes(content)
    dataset.verify(np.array([0, 40, 110]))
    with pytest.raises(UserError, match=r"00002\.arrow has changed since preprocess wrote it"):
        dataset.verify(np.array([41, 0]))
    with pytest.raises(UserError, match="00002"):
        dataset.verify()


@pytest.mark.usefixtures("small_blocks")
def test_columns_are_those_of_the_table(dataset: Dataset, table: pd.DataFrame) -> None:
    assert len(dataset) == len(table)
    labels = table[FINDINGS].to_numpy()
    assert dataset.labels.dtype == np.int8
    assert (dataset.labels == np.nan_to_num(labels, nan=-1)).all()
    np.testing.assert_array_equal(dataset.targets(), labels)
    some = np.array([100, 3, 3, 41])
    np.testing.assert_array_equal(dataset.targets(some), labels[some])
    assert dataset.targets(some).dtype == np.float32
    for split in ("train", "val", "test"):
        rows = dataset.rows(split)
        assert rows.tolist() == np.flatnonzero(table["split"] == split).tolist()
        assert dataset.column("patient_id", rows).tolist() == table["patient_id"][rows].tolist()
    assert dataset.rows("none").tolist() == []
    assert dataset.column("patient_id", np.array([], np.int64)).tolist() == []
    pd.testing.assert_frame_equal(dataset.studies, table.astype({"split": "str"}))


@pytest.mark.usefixtures("small_blocks")
def test_image_ids_of_any_rows_in_any_order(dataset: Dataset) -> None:
    assert dataset.image_ids(np.array([117, 40, 0, 41, 40])).tolist() == [
        "117.png", "40.png", "0.png", "41.png", "40.png"
    ]  # fmt: skip


def test_label_that_is_neither_known_nor_unknown(dataset: Dataset, table: pd.DataFrame) -> None:
    table.loc[70, "Edema"] = 0.5
    table.to_parquet(dataset.folder / "studies.parquet", index=False)
    with pytest.raises(UserError, match=r"studies\.parquet: Edema has labels other than 1, 0 and unknown"):
        _ = dataset.labels


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[:-1],
        lambda table: table[1:],
        lambda table: pd.concat([table, table[-1:]]),
        lambda table: table.iloc[[1, 0, *range(2, len(table))]],
    ],
    ids=["one row less", "other first row", "one row more", "two rows swapped"],
)
def test_table_of_other_images(
    dataset: Dataset, table: pd.DataFrame, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    change(table).to_parquet(dataset.folder / "studies.parquet", index=False)
    with pytest.raises(UserError, match=r"studies\.parquet and the shards list different images"):
        open_dataset(dataset.folder)


def test_open_shards_need_no_open_files(dataset: Dataset) -> None:
    """Systems limit open files to 1,024 or fewer: millions of images have more shards."""
    before = len(os.listdir("/dev/fd"))
    opened = open_dataset(dataset.folder)
    assert len(os.listdir("/dev/fd")) == before
    assert len(opened) == len(dataset)


def resident(address: int) -> bool:
    """Whether the page at an address is in memory."""
    answer = (ctypes.c_ubyte * 1)()
    page = ctypes.c_void_p(address // mmap.PAGESIZE * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mincore(page, ctypes.c_size_t(mmap.PAGESIZE), answer) == 0
    return bool(answer[0] & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops a file from memory when asked to")
def test_rows_on_disk_are_asked_for_and_no_others(tmp_path: Path) -> None:
    path, size = tmp_path / "pixels", 1 << 10
    images = 64
    path.write_bytes(b"x" * (images * size**2))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pixels = np.memmap(path, np.uint8, "r", shape=(images, size, size))
    addresses = pixels.ctypes.data + np.arange(images) * size**2
    middle = addresses + size**2 // 2
    if any(map(resident, middle.tolist())):
        pytest.skip("this file system keeps files in memory")
    wanted = np.array([50, 3])
    dataset_module._read_ahead(addresses[wanted], size**2)
    deadline = time.monotonic() + 60
    while not all(map(resident, middle[wanted].tolist())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert np.flatnonzero([resident(address) for address in middle.tolist()]).tolist() == [3, 50]
