"""World size, accumulation and ZeRO stage affect only rounding: the global batch defines the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trainings import BATCH_NORM, history, outputs, steps, train

from ral.config.losses import LossConfig

MEASURED = ["val_macro_ap", "val_macro_auroc", "ema_val_macro_ap", "ema_val_macro_auroc"]


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single process without accumulation: 56 steps."""
    return train(prepared, tmp_path_factory.mktemp("alone") / "out", epochs=7)


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {"zero_stage": 1, "micro_batch": 8}),
        pytest.param(1, {"micro_batch": 8}, marks=pytest.mark.long),
        pytest.param(2, {"zero_stage": 3}, marks=pytest.mark.long),
        pytest.param(4, {"zero_stage": 2, "micro_batch": 4}, marks=pytest.mark.long),
        pytest.param(1, {"zero_stage": 3, "micro_batch": 16}, marks=pytest.mark.long),
        pytest.param(2, {}, marks=pytest.mark.long),
        pytest.param(2, {"zero_stage": 2, "micro_batch": 4}, marks=pytest.mark.long),
        pytest.param(4, {"zero_stage": 1}, marks=pytest.mark.long),
        pytest.param(4, {"micro_batch": 4, "zero_stage": 3}, marks=pytest.mark.long),
    ],
)
def test_sharing_the_batch_out_changes_only_rounding(
    prepared: Path, tmp_path: Path, alone: Path, processes: int, changes: dict
) -> None:
    split = train(prepared, tmp_path / "out", processes, epochs=7, **changes)
    assert len(steps(alone)) >= 50
    np.testing.assert_allclose(steps(split), steps(alone), rtol=1e-4)
    np.testing.assert_allclose(history(split)[MEASURED], history(alone)[MEASURED], rtol=1e-3)
    for name in ("val", "test"):
        actual, expected = (pd.read_parquet(folder / f"logits/{name}.parquet") for folder in (split, alone))
        assert actual["image_id"].tolist() == expected["image_id"].tolist()
        np.testing.assert_allclose(actual.iloc[:, 1:], expected.iloc[:, 1:], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, pytest.param({"zero_stage": 2}, marks=pytest.mark.long)])
def test_batch_statistics_are_those_of_the_whole_batch(prepared: Path, tmp_path: Path, changes: dict) -> None:
    one = train(prepared, tmp_path / "one", model=BATCH_NORM)
    two = train(prepared, tmp_path / "two", 2, model=BATCH_NORM, **changes)
    # Batch norm divides by small standard deviations, so rounding errors grow faster than without it.
    np.testing.assert_allclose(steps(two)[:8], steps(one)[:8], rtol=1e-4)
    np.testing.assert_allclose(steps(two), steps(one), rtol=2e-3)


@pytest.mark.parametrize(
    "loss",
    [pytest.param(name, marks=pytest.mark.long) for name in ("zlpr", "bce", "hill", "ldam", "comp_sum")],
)
def test_every_separable_loss_keeps_the_contract(prepared: Path, tmp_path: Path, loss: str) -> None:
    one = train(prepared, tmp_path / "one", loss=loss, epochs=1)
    shared = train(prepared, tmp_path / "shared", 2, loss=loss, epochs=1, micro_batch=4)
    np.testing.assert_allclose(steps(shared), steps(one), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "smoothing", "processes"),
    [
        ("ral", 0.1, 2),
        pytest.param("ral", 0.1, 1, marks=pytest.mark.long),
        pytest.param("ral", 0.1, 4, marks=pytest.mark.long),
        pytest.param("anyloss", 0.0, 2, marks=pytest.mark.long),
    ],
)
def test_mixup_smoothing_and_adaptive_adjustment_keep_the_contract(
    prepared: Path, tmp_path: Path, name: Any, smoothing: float, processes: int
) -> None:
    changes: dict = {"epochs": 3, "mixup": 0.4, "label_smoothing": smoothing, "seed": 2}
    loss = LossConfig(name=name, adjust="adaptive")
    one = train(prepared, tmp_path / "one", loss=loss, **changes)
    shared = train(prepared, tmp_path / "shared", processes, loss=loss, micro_batch=4, **changes)
    np.testing.assert_allclose(steps(shared), steps(one), rtol=1e-4)
    np.testing.assert_allclose(history(shared)[MEASURED], history(one)[MEASURED], rtol=1e-3)


@pytest.mark.parametrize(
    ("loss", "processes"),
    [
        ("anyloss", 2),
        *(
            pytest.param(name, processes, marks=pytest.mark.long)
            for name in ("anyloss", "dice", "two_way", "rlc", "z_loss")
            for processes in (1, 2, 4)
            if (name, processes) != ("anyloss", 2)
        ),
    ],
)
def test_losses_over_the_whole_batch_keep_the_contract(
    prepared: Path, tmp_path: Path, loss: str, processes: int
) -> None:
    one = train(prepared, tmp_path / "one", loss=loss, epochs=2)
    shared = train(prepared, tmp_path / "shared", processes, loss=loss, epochs=2, micro_batch=4)
    np.testing.assert_allclose(steps(shared), steps(one), rtol=1e-4)


def test_unknown_labels_weigh_the_same_wherever_they_fall(prepared: Path, tmp_path: Path) -> None:
    masked = tmp_path / "masked"
    masked.mkdir()
    for entry in prepared.iterdir():
        (masked / entry.name).symlink_to(entry)
    studies = pd.read_parquet(prepared / "studies.parquet")
    findings = studies.columns[studies.columns.get_loc("split") + 1 :]
    holes = (
        np.random.default_rng(0).random((len(studies), len(findings)))
        < np.linspace(0, 0.8, len(studies))[:, None]
    )
    studies[findings] = studies[findings].astype("Int8").mask(holes)
    (masked / "studies.parquet").unlink()
    studies.to_parquet(masked / "studies.parquet", index=False)
    one = train(masked, tmp_path / "one", epochs=1)
    shared = train(masked, tmp_path / "shared", 2, epochs=1, micro_batch=4)
    np.testing.assert_allclose(steps(shared), steps(one), rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "repeat_factor",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("inverse_frequency", "class_aware", "temperature")
        ),
    ],
)
def test_samplers_keep_the_contract(prepared: Path, tmp_path: Path, name: str) -> None:
    sampler = {"name": name}
    one = train(prepared, tmp_path / "one", epochs=1, sampler=sampler)
    two = train(prepared, tmp_path / "two", 2, epochs=1, sampler=sampler)
    np.testing.assert_allclose(steps(two), steps(one), rtol=1e-4)


def test_same_bytes_twice_and_another_seed_differs(prepared: Path, tmp_path: Path, two_epochs: Path) -> None:
    first = outputs(two_epochs)
    assert outputs(train(prepared, tmp_path / "again")) == first
    assert outputs(train(prepared, tmp_path / "seed", seed=1))["history.csv"] != first["history.csv"]


def test_every_image_is_trained_and_scored_once(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out", 2)
    studies = pd.read_parquet(prepared / "studies.parquet")
    for split in ("val", "test"):
        logits = pd.read_parquet(out / f"logits/{split}.parquet")
        assert logits["image_id"].tolist() == studies["image_id"][studies["split"] == split].tolist()
        assert (logits.dtypes.iloc[1:] == np.float32).all()
        assert np.isfinite(logits.iloc[:, 1:]).all().all()
    images = pd.read_csv(out / "speed.csv")["images"]
    assert (images == (studies["split"] == "train").sum()).all()
