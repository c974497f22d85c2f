"""An image whose pixels failed never trains: its row leaves the table, its patient's split and the counts."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.data.dataset import open_dataset
from ral.data.images.bad_image import BadImage
from ral.data.images.decode import decode
from ral.data.images.locate import list_images
from ral.data.prepare import prepare
from ral.files import read_json


@pytest.fixture
def spoiled(phantom_copy: Path) -> tuple[Path, list[str]]:
    """Phantom images in a folder, three of them bad, one missing."""
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    (phantom_copy / "images_001.tar.gz").unlink()
    names = sorted(path.name for path in (phantom_copy / "images").iterdir())
    bad = [names[n] for n in (3, 200, 399)]
    for name, content in zip(bad, (b"Forbidden", b"", b"\x89PNG\r\n\x1a\n"), strict=True):
        (phantom_copy / "images" / name).write_bytes(content)
    (phantom_copy / "images" / names[50]).unlink()
    return phantom_copy, bad


def run(root: Path, out: Path, **config) -> Path:
    params = PreprocessParams(
        data=DataConfig(source="nih", root=str(root), missing_images="drop", views=["PA", "AP"]),
        split=SplitConfig(method="hash", val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(size=32, shard_images=64, **config),
    )
    out.mkdir()
    prepare(params, list_images(root, lambda _: None)[0], out, DaskTarget(workers=2), lambda _: None)
    return out


def test_row_leaves_table_split_counts_and_shards(spoiled: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, bad = spoiled
    out = run(root, tmp_path / "out", on_bad_image="quarantine")
    dataset = open_dataset(out)
    assert len(dataset.studies) == 396
    assert not set(bad) & set(dataset.studies["image_id"])
    info, excluded = dataset.info, pd.read_parquet(out / "quarantine.parquet")
    assert info.left_out == {"no image": 1, "image is not an image": 3}
    reasons = excluded.set_index("image_id")["reason"]
    assert reasons[bad[0]] == "image is not an image (9 bytes)"
    assert reasons[bad[1]] == "image is not an image (0 bytes)"
    assert list(excluded.columns) == ["image_id", "patient_id", "reason"]
    assert excluded["patient_id"].notna().all()
    assert sum(counts["images"] for counts in read_json(out / "class_counts.json").values()) == 396
    for row in np.random.default_rng(0).integers(0, 396, 20):
        name = dataset.studies["image_id"].iloc[row]
        assert (
            dataset.gather(np.array([row]))[0] == decode((root / "images" / name).read_bytes(), 32, name)
        ).all()


def test_the_rest_is_as_if_the_bad_images_had_never_been_there(
    spoiled: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, bad = spoiled
    first = run(root, tmp_path / "a", on_bad_image="quarantine")
    shutil.copytree(root, tmp_path / "without")
    for name in bad:
        (tmp_path / "without/images" / name).unlink()
    second = run(tmp_path / "without", tmp_path / "b")
    for name in ("studies.parquet", "split.parquet", "class_counts.json", "shards/00003.arrow"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_default_is_an_error(spoiled: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"preprocess\.on_bad_image"):
        run(spoiled[0], tmp_path / "out")
