"""Uncertain labels of CheXpert and MIMIC, from the published table to a trained classifier (PRESTO)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shipped
import torch
from conftest import Once
from safetensors.numpy import load_file
from trainings import BATCH_NORM, history, train

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.data.dataset import open_dataset
from ral.data.prepare import prepare
from ral.data.sources.base import open_source
from ral.errors import UserError
from ral.inference.bank import open_bank
from ral.training import refit
from ral.training.second_phase.model import bank_of
from ral.training.second_phase.registry import build_second_phase

MODES = ("ignore", "keep", "positive")


def write(section: dict, out: Path) -> None:
    """Prepare a data set at 48 pixels."""
    data = DataConfig(**section)
    source = open_source(data)
    images, _ = source.images(source.read(), lambda _: None)
    split = SplitConfig(method="official", val=0.2, test=0.2, seed=0)
    params = PreprocessParams(data=data, split=split, preprocess=PreprocessConfig(size=48, shard_images=100))
    out.mkdir()
    prepare(params, images, out, DaskTarget(workers=2), lambda _: None, baseline=out / "none")


@pytest.fixture(scope="module", params=["chexpert", "mimic"])
def both(request, once: Once) -> tuple[str, Path]:
    """Source, and a folder with its data and with what preprocess makes of them by data.uncertain."""

    def make(folder: Path) -> None:
        section = shipped.write(request.param, folder / "data")
        for mode in MODES:
            write(section | {"uncertain": mode}, folder / mode)

    return request.param, once(f"uncertain-{request.param}", make)


@pytest.fixture(scope="module")
def chexpert(once: Once) -> Path:
    """The folder of `both` for CheXpert."""

    def make(folder: Path) -> None:
        section = shipped.write("chexpert", folder / "data")
        for mode in ("ignore", "keep"):
            write(section | {"uncertain": mode}, folder / mode)

    return once("uncertain-chexpert-alone", make)


def raw_marks(source: str, folder: Path, prepared: Path) -> np.ndarray:
    """Which labels are -1 in the published table, in the order of the prepared images."""
    dataset = open_dataset(prepared)
    reader = open_source(
        DataConfig(source=source, root=str(folder), missing_images="fail", views=["PA", "AP"])
    )
    raw = reader.read().set_index(reader.layout.image).loc[dataset.studies["image_id"]]
    return np.column_stack([raw[reader.layout.labels.columns[name]] == "-1.0" for name in dataset.findings])


def test_preprocess_keeps_which_labels_are_uncertain(both: tuple[str, Path]) -> None:
    source, folder = both
    ignored, kept, positive = (open_dataset(folder / mode) for mode in MODES)
    everything = np.arange(len(kept))
    marks = kept.uncertain(everything)
    expected = raw_marks(source, folder / "data", folder / "keep")
    assert 0.05 < expected.mean() < 0.6
    assert (marks == expected).all()
    assert np.isnan(kept.targets()[marks]).all()
    assert (positive.targets()[marks] == 1).all()
    assert (kept.uncertain(everything[::3]) == expected[::3]).all()
    assert ignored.uncertain(everything) is None
    assert positive.uncertain(everything) is None
    # Losses and metrics read the same as with `ignore`: nothing but the record differs.
    files = [
        {path.name: path.read_bytes() for path in (folder / mode).rglob("*") if path.is_file()}
        for mode in MODES
    ]
    assert files[1].keys() - files[0].keys() == {"uncertain.parquet"}
    del files[1]["uncertain.parquet"]
    assert files[1] == files[0]
    assert files[2].keys() == files[0].keys()
    table = pd.read_parquet(folder / "keep/uncertain.parquet")
    assert table["image_id"].tolist() == kept.studies["image_id"].tolist()


def test_without_uncertain_labels_nothing_is_recorded(tmp_path: Path) -> None:
    section = shipped.write("chexpert", tmp_path / "data")
    for name in ("train.csv", "valid.csv"):
        path = tmp_path / "data" / name
        path.write_text(path.read_text().replace("-1.0", "0.0"))
    for mode in ("ignore", "keep"):
        write(section | {"uncertain": mode}, tmp_path / mode)
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / mode).rglob("*") if path.is_file()}
        for mode in ("ignore", "keep")
    ]
    assert written[0] == written[1]


def test_a_record_of_other_images_is_refused(chexpert: Path, tmp_path: Path) -> None:
    for path in (chexpert / "keep").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "uncertain.parquet").unlink()
    pd.read_parquet(chexpert / "keep/uncertain.parquet")[:-1].to_parquet(tmp_path / "uncertain.parquet")
    with pytest.raises(UserError, match="does not belong to"):
        open_dataset(tmp_path).uncertain(np.arange(3))


def test_presto_trains_a_classifier_with_uncertain_between_negative_and_positive(
    chexpert: Path, tmp_path: Path
) -> None:
    # The first phase hardly learns, so the refitted classifier is the best.
    changes: dict = {
        "model": BATCH_NORM,
        "ema_decay": None,
        "learning_rate": 1e-7,
        "epochs": 1,
        "batch_size": 16,
    }
    options = {"shrink": 0.02, "l2": 0.5}
    classifier = {"method": "presto", "features": "bank", "options": options}
    out = train(chexpert / "keep", tmp_path / "out", classifier=classifier, **changes)
    first = train(chexpert / "keep", tmp_path / "first", **changes)
    assert history(out)["phase"].tolist() == ["network", "classifier"]
    trained = load_file(out / "model.safetensors")

    dataset = open_dataset(chexpert / "keep")
    features = open_bank(first, dataset, tmp_path / "banks", "float32", torch.device("cpu"))
    bank = bank_of(dataset, features)
    marks = raw_marks("chexpert", chexpert / "data", chexpert / "keep")
    presto = build_second_phase("presto", options)
    head = presto.fit(bank._replace(uncertain=marks), 0)
    np.testing.assert_allclose(trained["backbone.fc.weight"], head.weight, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(trained["backbone.fc.bias"], head.bias, rtol=1e-3, atol=1e-3)
    # Without the uncertain labels it would be another one.
    certain = presto.fit(bank._replace(uncertain=np.zeros_like(marks)), 0)
    assert np.abs(certain.weight - head.weight).max() > 0.1


def test_presto_says_what_it_needs(
    chexpert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = {"method": "presto", "features": "bank"}
    changes: dict = {"model": BATCH_NORM, "ema_decay": None, "epochs": 1, "batch_size": 16}
    with pytest.raises(UserError, match=r"data\.uncertain: keep"):
        train(chexpert / "ignore", tmp_path / "out", classifier=classifier, **changes)
    models = train(chexpert / "ignore", tmp_path / "models", **changes)
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path / "state"))
    for mode, code in (("ignore", 1), ("keep", 0)):
        paths = ["--models", str(models), "--prepared", str(chexpert / mode), "--out", str(tmp_path / mode)]
        assert refit.main(["presto", *paths]) == code
        assert ("data.uncertain: keep" in capsys.readouterr().err) == (mode == "ignore")
    assert (tmp_path / "keep/model.safetensors").is_file()
