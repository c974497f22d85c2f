"""Preprocessing: every included image once, in shard order; excluded images are counted; the same bytes always."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.data.dataset import open_dataset
from ral.data.images.decode import decode
from ral.data.images.locate import list_images
from ral.data.prepare import prepare
from ral.errors import UserError
from ral.files import read_json
from ral.labels import NIH_FINDINGS

TABLE = "Data_Entry_2017.csv"


def params(root: Path, shard_images: int = 64, **data) -> PreprocessParams:
    defaults = {"source": "nih", "root": str(root), "missing_images": "drop", "views": ["PA", "AP"]}
    return PreprocessParams(
        data=DataConfig(**(defaults | data)),
        split=SplitConfig(method="hash", val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(size=32, shard_images=shard_images),
    )


def prepared(root: Path, out: Path, workers: int = 2, **options) -> Path:
    out.mkdir()
    images, _ = list_images(root, lambda _: None)
    prepare(params(root, **options), images, out, DaskTarget(workers=workers), lambda _: None)
    return out


def drop_images(root: Path, keep: slice) -> None:
    """Rewrite the archive with only some of its images."""
    old = root / "images_001.tar.gz"
    with tarfile.open(old) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()[keep]]  # type: ignore[union-attr]
    with tarfile.open(old, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))


def unpack(root: Path) -> None:
    with tarfile.open(root / "images_001.tar.gz") as tar:
        tar.extractall(root, filter="data")
    (root / "images_001.tar.gz").unlink()


def test_pixels_belong_to_their_labels(small_phantom: Path, tmp_path: Path) -> None:
    dataset = open_dataset(prepared(small_phantom, tmp_path / "out"))
    assert len(dataset.shards) == 7
    assert dataset.findings == NIH_FINDINGS
    raw = pd.read_csv(small_phantom / TABLE, index_col=False).set_index("Image Index")
    rows = np.array([399, 0, 64, 63, 200, 5, 5])
    batch = dataset.gather(rows)
    with tarfile.open(small_phantom / "images_001.tar.gz") as tar:
        for row, pixels in zip(rows, batch, strict=True):
            study = dataset.studies.iloc[row]
            image = tar.extractfile(f"images/{study.image_id}")
            assert image is not None
            assert (pixels == decode(image.read(), 32, "a")).all()
            texts = raw.loc[study.image_id, "Finding Labels"].split("|")
            assert [name for name in NIH_FINDINGS if study[name]] == [n for n in NIH_FINDINGS if n in texts]


def test_statistics_are_those_of_the_training_images(small_phantom: Path, tmp_path: Path) -> None:
    dataset = open_dataset(prepared(small_phantom, tmp_path / "out"))
    pixels = dataset.gather(dataset.rows("train")).astype(np.float64)
    assert dataset.info.pixel_mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert dataset.info.pixel_deviation == pytest.approx(pixels.std(), abs=1e-6)
    counts = read_json(tmp_path / "out/class_counts.json")
    labels = dataset.targets()[dataset.rows("train")]
    for index, finding in enumerate(dataset.findings):
        assert counts["train"]["positives"][finding] == (labels[:, index] == 1).sum()
        assert counts["train"]["negatives"][finding] == (labels[:, index] == 0).sum()


def test_patients_are_apart_and_split_parquet_says_so(small_phantom: Path, tmp_path: Path) -> None:
    out = prepared(small_phantom, tmp_path / "out")
    studies, split = (pd.read_parquet(out / f"{name}.parquet") for name in ("studies", "split"))
    assert split["patient_id"].is_unique
    joined = studies.merge(split, on="patient_id", suffixes=("", "_patient"))
    assert (joined["split"] == joined["split_patient"]).all()


def test_bytes_do_not_depend_on_workers_or_time(small_phantom: Path, tmp_path: Path) -> None:
    first = prepared(small_phantom, tmp_path / "a", workers=1)
    second = prepared(small_phantom, tmp_path / "b", workers=4)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_archive_and_folder_hold_the_same_images(phantom_copy: Path, tmp_path: Path) -> None:
    packed = open_dataset(prepared(phantom_copy, tmp_path / "a"))
    unpack(phantom_copy)
    loose = open_dataset(prepared(phantom_copy, tmp_path / "b"))
    order = (
        loose.studies.reset_index().set_index("image_id").loc[packed.studies["image_id"], "index"].to_numpy()
    )
    assert (loose.gather(order) == packed.gather(np.arange(400))).all()


def test_rows_without_image_and_other_views_are_left_out_and_counted(
    phantom_copy: Path, tmp_path: Path
) -> None:
    drop_images(phantom_copy, slice(0, 380))
    views = pd.read_csv(phantom_copy / TABLE, index_col=False)["View Position"]
    out = prepared(phantom_copy, tmp_path / "out", views=["PA"], findings=["Effusion"])
    metadata = read_json(out / "dataset.json")
    excluded = pd.read_parquet(out / "quarantine.parquet")
    assert metadata["left_out"] == {
        "no image": int((views[380:] == "PA").sum()),
        "view not in data.views": int((views == "AP").sum()),
    }
    assert metadata["rows"] == 400  # a row without image and of another view is counted once
    assert len(excluded) == sum(metadata["left_out"].values()) == 400 - metadata["images"]
    assert set(open_dataset(out).studies["view"]) == {"PA"}


def test_chosen_findings(small_phantom: Path, tmp_path: Path) -> None:
    dataset = open_dataset(prepared(small_phantom, tmp_path / "out", findings=["Mass", "Effusion"]))
    assert dataset.findings == ("Mass", "Effusion")
    assert dataset.targets().shape == (400, 2)


@pytest.mark.parametrize("loose", [False, True])
def test_image_that_is_no_image_stops_and_is_named(phantom_copy: Path, tmp_path: Path, loose: bool) -> None:
    images, _ = list_images(phantom_copy, lambda _: None)
    name = images["image_id"].iloc[123]
    unpack(phantom_copy)
    (phantom_copy / "images" / name).write_text("Forbidden")
    if not loose:
        with tarfile.open(phantom_copy / "images_001.tar.gz", "w:gz") as tar:
            tar.add(phantom_copy / "images", "images")
        shutil.rmtree(phantom_copy / "images")
    with pytest.raises(UserError, match=f"Image .*{name}.* is not an image"):
        prepared(phantom_copy, tmp_path / "out")


def test_image_that_vanishes_after_validation(phantom_copy: Path, tmp_path: Path) -> None:
    images, _ = list_images(phantom_copy, lambda _: None)
    drop_images(phantom_copy, slice(0, 300))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"no longer exists\. Run validate again"):
        prepare(params(phantom_copy), images, tmp_path / "out", DaskTarget(), lambda _: None)


def test_nothing_left(small_phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"No usable image in .* All 400 rows were excluded: 400 view not in data\.views"
    ):
        prepared(small_phantom, tmp_path / "out", views=["LATERAL"])


def test_mixed_outputs_are_noticed(small_phantom: Path, tmp_path: Path) -> None:
    out = prepared(small_phantom, tmp_path / "out")
    studies = pd.read_parquet(out / "studies.parquet")
    studies.iloc[::-1].to_parquet(out / "studies.parquet")
    with pytest.raises(UserError, match="list different images"):
        open_dataset(out)


def test_grayscale_extremes_survive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(stream, "PNG")
    assert decode(stream.getvalue(), 2, "a").tolist() == [[0, 255], [255, 0]]
