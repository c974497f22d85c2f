"""Real DeepSpeed processes on small data: outputs, training recipe, error messages."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forks import forks
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import load_file
from trainings import BATCH_NORM, SEPARABLE, history, outputs, steps, train

from ral.config.model import ModelConfig
from ral.config.train import ClassifierConfig
from ral.data.dataset import open_dataset
from ral.errors import UserError
from ral.inference.bank import open_bank
from ral.training.second_phase.model import bank_of
from ral.training.second_phase.registry import build_second_phase
from ral.training.state import HISTORY


def test_the_best_weights_of_each_kind_are_kept(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out", epochs=3)
    metadata, table = json.loads((out / "model.json").read_text()), history(out)
    assert list(table) == [*HISTORY, "data"]
    best = {"last": table["val_macro_ap"].max(), "ema": table["ema_val_macro_ap"].max()}
    assert metadata["weights"] == max(best, key=lambda kind: best[kind])
    column = "ema_val_macro_ap" if metadata["weights"] == "ema" else "val_macro_ap"
    assert metadata["best_epoch"] == table["epoch"][table[column].idxmax()]
    assert metadata["phantom"] is True
    assert metadata["pretrained_sha256"] is None
    validation = json.loads((out / "validation.json").read_text())
    assert set(validation) == {"val"}
    assert set(validation["val"]) == {"data", "ap", "auroc"}
    assert validation["val"]["ap"] == pytest.approx(max(best.values()))
    best_weights = out / f"weights/{metadata['weights']}.safetensors"
    assert best_weights.read_bytes() == (out / "model.safetensors").read_bytes()
    last, ema = (load_file(out / f"weights/{kind}.safetensors") for kind in ("last", "ema"))
    assert last.keys() == ema.keys()
    assert any((last[name] != ema[name]).any() for name in last)


def test_without_average_the_last_weights_are_handed_on(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out", epochs=1, ema_decay=None)
    assert history(out)["ema_val_macro_ap"].isna().all()
    assert [path.name for path in (out / "weights").iterdir()] == ["last.safetensors"]


def test_early_stopping_waits_for_validation(prepared: Path, tmp_path: Path) -> None:
    out = train(prepared, tmp_path / "out", epochs=40, patience=1, learning_rate=1e-8, ema_decay=None)
    assert len(history(out)) < 40


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_second_phase_learns_the_classifier_alone(prepared: Path, tmp_path: Path, processes: int) -> None:
    # The first phase hardly learns, so the best epoch is one of the second.
    changes: dict = {"model": BATCH_NORM, "ema_decay": None, "learning_rate": 1e-7}
    classifier = {"epochs": 3, "learning_rate": 3e-2}
    out = train(prepared, tmp_path / "out", processes, classifier=classifier, **changes)
    first = train(prepared, tmp_path / "first", processes, **changes)
    assert history(out)["phase"].tolist() == ["network"] * 2 + ["classifier"] * 3
    pd.testing.assert_frame_equal(history(out)[:2], history(first), rtol=1e-5)
    assert json.loads((out / "model.json").read_text())["best_epoch"] > 2
    one, two = load_file(first / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name for name in one if (one[name] != two[name]).any()} == {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_second_phase_on_stored_features(prepared: Path, tmp_path: Path, processes: int) -> None:
    # The first phase hardly learns, so the refitted classifier is the best.
    changes: dict = {"model": BATCH_NORM, "ema_decay": None, "learning_rate": 1e-7}
    classifier = {"epochs": 3, "features": "bank", "l2": 0.1}
    out = train(prepared, tmp_path / "out", processes, classifier=classifier, **changes)
    first = train(prepared, tmp_path / "first", processes, **changes)
    table = history(out)
    assert table["phase"].tolist() == ["network"] * 2 + ["classifier"]
    pd.testing.assert_frame_equal(table[:2], history(first), rtol=1e-5)
    assert 0 < table["train_loss"].iloc[2] < 1
    assert json.loads((out / "model.json").read_text())["best_epoch"] == 3
    one, two = load_file(first / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in one if (one[name] != two[name]).any()}
    assert changed == {"backbone.fc.weight", "backbone.fc.bias"}
    # The same as fitting the stored features of the first phase's model.
    dataset = open_dataset(prepared)
    features = open_bank(first, dataset, tmp_path / "banks", "float32", torch.device("cpu"))
    options = {"epochs": 3, "l2": 0.1}
    head = build_second_phase("crt", options).fit(bank_of(dataset, features), 0)
    np.testing.assert_allclose(two["backbone.fc.weight"], head.weight, rtol=0, atol=1e-3)
    np.testing.assert_allclose(two["backbone.fc.bias"], head.bias, rtol=0, atol=1e-3)


def test_the_second_phase_needs_a_learning_rate_unless_its_features_are_stored() -> None:
    for wrong in ({"epochs": 1}, {"epochs": 1, "features": "bank", "learning_rate": 0.1}):
        with pytest.raises(ValidationError, match="needs learning_rate"):
            ClassifierConfig.model_validate(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "smote"}, "needs features: bank"),
        ({"method": "smote", "features": "bank", "epochs": 3}, "smote does not use epochs"),
        ({"method": "smote", "features": "bank", "options": {"neighbors": 5}}, "neighbors"),
        ({"method": "smotte", "features": "bank"}, "method"),
        ({"features": "bank"}, "crt needs epochs"),
        ({"epochs": 1, "features": "bank", "options": {"l2": 0.1}}, "crt has no options"),
    ],
)
def test_the_second_phase_has_keys_that_its_method_uses(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClassifierConfig.model_validate(wrong)


def test_the_second_phase_of_a_specification_is_read_back() -> None:
    given = ClassifierConfig(method="storm", features="bank", options={"sampler": {"name": "uniform"}})
    assert ClassifierConfig.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.long
def test_deferred_weights_change_the_loss_from_their_epoch_on(prepared: Path, tmp_path: Path) -> None:
    plain = steps(train(prepared, tmp_path / "plain", epochs=2))
    reweight = {"from_epoch": 1}
    deferred = steps(train(prepared, tmp_path / "deferred", epochs=2, reweight=reweight))
    half = len(plain) // 2
    np.testing.assert_allclose(deferred[:half], plain[:half], rtol=1e-5)
    assert (abs(deferred[half:] / plain[half:] - 1) > 1e-3).all()
    with pytest.raises(UserError, match=r"train\.reweight needs a loss with one term per label"):
        train(prepared, tmp_path / "zlpr", loss="zlpr", reweight=reweight)


@pytest.mark.long
def test_bfloat16_trains_close_to_float32(prepared: Path, tmp_path: Path) -> None:
    full = train(prepared, tmp_path / "full")
    half = train(prepared, tmp_path / "half", precision="bfloat16")
    np.testing.assert_allclose(steps(half), steps(full), rtol=0.05)
    assert {array.dtype.name for array in load_file(half / "model.safetensors").values()} <= {
        "float32",
        "int64",
    }


def test_weights_are_readable_by_all_and_no_pickle(two_epochs: Path) -> None:
    out = two_epochs
    for path in (out / "model.safetensors", *(out / "weights").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644
        with safe_open(path, "numpy") as weights:
            assert weights.metadata() == {"trained_on": "phantom; research, not a medical device"}
    assert not list(out.rglob("*.pt")) + list(out.rglob("*.bin"))


@pytest.mark.long
def test_deepspeed_settings_pass_through(prepared: Path, tmp_path: Path) -> None:
    settings = {
        "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000},
        "wall_clock_breakdown": False,
    }
    one = train(prepared, tmp_path / "one", 2, epochs=1, zero_stage=2)
    two = train(prepared, tmp_path / "two", 2, epochs=1, zero_stage=2, deepspeed_config=settings)
    np.testing.assert_allclose(steps(two), steps(one), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_batch_size": 8}, "deepspeed_config may not set train_batch_size: batch_size decides it"),
        ({"zero_optimization": {"stage": 3}}, "may not set zero_optimization.stage: zero_stage decides it"),
        ({"fp16": {"enabled": True}}, "may not set fp16"),
    ],
)
def test_deepspeed_settings_that_contradict_are_refused(settings: dict, words: str) -> None:
    from trainings import params

    with pytest.raises(ValueError, match=words):
        params(deepspeed_config=settings)


@pytest.mark.parametrize(
    ("model", "processes", "changes", "words"),
    [
        (ModelConfig(backbone="resnet10x"), 1, {}, "no model `resnet10x`"),
        pytest.param(  # without a training: tests/models/test_models.py
            ModelConfig(backbone="test_resnet", options={"wings": 2}),
            1,
            {},
            "cannot be built with",
            marks=pytest.mark.long,
        ),
        (SEPARABLE, 2, {"batch_size": 33}, "must be a multiple of the 2 processes"),
        (
            SEPARABLE,
            1,
            {"batch_size": 512, "micro_batch": 1},
            "A batch has .* images for 1 processes with 512",
        ),
        (
            SEPARABLE,
            1,
            {"learning_rate": 1e30, "clip_norm": 1e30, "max_consecutive_skips": 2},
            "in 3 steps in a row .*phantom0",
        ),
    ],
)
def test_errors_are_for_people(
    prepared: Path, tmp_path: Path, model: ModelConfig, processes: int, changes: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train(prepared, tmp_path / "out", processes, model=model, **changes)


def broken(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A rank whose `BatchLoss` is changed by `body` before it starts."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import torch\nfrom ral.training import __main__ as rank\nfrom ral.training.batch_loss import BatchLoss\n"
        f"share = BatchLoss.contribution\n{body}\nrank.run()\n"
    )
    return forks().command(str(script))


@pytest.mark.parametrize(
    ("processes", "stage", "bad"),
    [
        (2, 0, "gradient"),
        (2, 2, "loss"),
        pytest.param(1, 0, "loss", marks=pytest.mark.long),
        pytest.param(2, 3, "gradient", marks=pytest.mark.long),
        pytest.param(2, 0, "loss", marks=pytest.mark.long),
        pytest.param(2, 1, "loss", marks=pytest.mark.long),
        pytest.param(2, 3, "loss", marks=pytest.mark.long),
        pytest.param(2, 1, "gradient", marks=pytest.mark.long),
        pytest.param(2, 2, "gradient", marks=pytest.mark.long),
    ],
)
def test_a_step_without_finite_loss_or_gradient_is_passed_over(
    prepared: Path, tmp_path: Path, processes: int, stage: int, bad: str
) -> None:
    value = {
        "loss": "value * (float('nan') if hit else 1.0)",
        # The value stays; its slope does not.
        "gradient": "value + (torch.zeros((), device=value.device) * logits.sum() if not hit else"
        " (logits.sum() * 1e-30 - (logits.sum() * 1e-30).detach()) * 1e38 * 1e38)",
    }[bad]
    body = (
        "def changed(self, logits, batch, *whole):\n"
        "    value = share(self, logits, batch, *whole)\n"
        "    hit = batch.step == 2 and self.epoch == 0 and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1\n"
        f"    return {value}\n"
        "BatchLoss.contribution = changed\n"
    )
    out = train(
        prepared,
        tmp_path / "out",
        processes,
        command=broken(tmp_path, body),
        zero_stage=stage,
        model=BATCH_NORM,
    )
    table = history(out)
    assert table["skipped_steps"].tolist() == [1, 0]
    assert np.isfinite(table.select_dtypes("number")).all().all()


def test_memory_that_runs_out_names_the_micro_batch(prepared: Path, tmp_path: Path) -> None:
    body = (
        "def changed(self, logits, batch, *whole):\n"
        "    return torch.empty(1 << 60)\n"
        "BatchLoss.contribution = changed\n"
    )
    with pytest.raises(
        UserError, match=r"Out of memory on cpu with 3\d images .* train.micro_batch to 1\d"
    ) as caught:
        train(prepared, tmp_path / "out", command=broken(tmp_path, body))
    assert (caught.value.kind, caught.value.retry) == ("memory", False)


def test_a_bug_keeps_its_trace_and_the_others_are_quiet(
    prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = (
        "def changed(self, logits, batch, *whole):\n"
        "    if torch.distributed.get_rank() == 1 and batch.step == 3: raise KeyError('a bug')\n"
        "    return share(self, logits, batch, *whole)\n"
        "BatchLoss.contribution = changed\n"
    )
    with pytest.raises(UserError, match="process 1 of 4"):
        train(prepared, tmp_path / "out", 4, command=broken(tmp_path, body))
    assert capfd.readouterr().err.count("Traceback") == 1


def test_outputs_are_complete(two_epochs: Path) -> None:
    assert [name for name, content in outputs(two_epochs).items() if not content] == []


def test_validation_averages_over_the_findings_that_the_evaluation_would() -> None:
    from ral.inference.score import estimable_findings

    nan = np.nan
    targets = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, nan], [0, 0, nan, 0], [1, 0, 0, 0]], np.float32)
    patients = np.array(["a", "b", "c", "d", "a"])
    assert estimable_findings(targets, patients, 2).tolist() == [True, True, False, False]
    assert estimable_findings(targets, patients, 3).tolist() == [True, True, True, False]  # none has three
    with pytest.raises(UserError, match=r"Raise split\.val"):
        estimable_findings(targets[:, 3:], patients, 1)
