"""Batches of arbitrary rows, whole and in order; a changed byte of a shard is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prepared_data import dataset_info

from ral.data.dataset import Dataset, open_dataset
from ral.data.dataset_info import Shard
from ral.data.images.shards import write_shard
from ral.errors import UserError
from ral.files import sha256, write_json

SIZE, SHARDS = 12, (40, 1, 60, 17)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (sum(SHARDS), SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def dataset(tmp_path: Path, pixels: np.ndarray) -> Dataset:
    (tmp_path / "shards").mkdir()
    ids, shards, start = [f"{n}.png" for n in range(len(pixels))], [], 0
    for number, images in enumerate(SHARDS):
        path = tmp_path / f"shards/{number:05}.arrow"
        write_shard(path, ids[start : start + images], pixels[start : start + images])
        shards.append(Shard(name=path.name, images=images, sha256=sha256(path)))
        start += images
    pd.DataFrame({"image_id": ids}).to_parquet(tmp_path / "studies.parquet")
    dataset_info(SIZE, shards, []).write(tmp_path / "dataset.json")
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
