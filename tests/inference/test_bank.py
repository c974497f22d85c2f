"""The feature bank: what a linear classifier reads, computed once per model, data and precision."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import BATCH_NORM

from ral.data.dataset import open_dataset
from ral.errors import UserError
from ral.inference.bank import FEATURES, bank_key, feature_batches, open_bank, require_linear
from ral.inference.score import score_images
from ral.models import build_model
from ral.models.load import load_network

CPU = torch.device("cpu")


def test_features_and_classifier_give_the_logits(phantom_prepared: Path, phantom_trained: Path) -> None:
    dataset = open_dataset(phantom_prepared)
    network, info = load_network(phantom_trained)
    rows = np.arange(len(dataset.studies))[::-1]
    features = np.concatenate(list(feature_batches(network, info, dataset, rows)))
    linear = require_linear(network)
    logits = features @ linear.weight.numpy().T + linear.bias.numpy()
    expected = score_images(network, dataset, info, rows, CPU)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-3


def test_a_bank_is_computed_once_and_memory_mapped(
    phantom_prepared: Path, phantom_trained: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(phantom_prepared)
    first = open_bank(phantom_trained, dataset, tmp_path / "banks", "float32", CPU)
    assert isinstance(first, np.memmap)
    assert first.dtype == np.float32
    assert len(first) == len(dataset.studies)
    (folder,) = (tmp_path / "banks").iterdir()
    written = (folder / FEATURES).stat()
    again = open_bank(phantom_trained, dataset, tmp_path / "banks", "float32", CPU)
    assert (folder / FEATURES).stat().st_ino == written.st_ino
    assert (again == first).all()
    half = open_bank(phantom_trained, dataset, tmp_path / "banks", "float16", CPU)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), first, rtol=1e-3, atol=1e-3)
    assert len(list((tmp_path / "banks").iterdir())) == 2


def test_the_key_depends_on_weights_and_precision(
    phantom_prepared: Path, phantom_trained: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(phantom_prepared)
    key = bank_key(phantom_trained, dataset, "float32")
    assert key == bank_key(phantom_trained, dataset, "float32")
    assert key != bank_key(phantom_trained, dataset, "float16")
    other = tmp_path / "models"
    shutil.copytree(phantom_trained, other)
    with (other / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    assert key != bank_key(other, dataset, "float32")


def test_a_damaged_bank_is_refused(phantom_prepared: Path, phantom_trained: Path, tmp_path: Path) -> None:
    dataset = open_dataset(phantom_prepared)
    features = np.array(open_bank(phantom_trained, dataset, tmp_path, "float16", CPU))
    (folder,) = tmp_path.iterdir()
    np.save(folder / FEATURES, features[:-1])
    with pytest.raises(UserError, match="Remove the folder"):
        open_bank(phantom_trained, dataset, tmp_path, "float16", CPU)
    (folder / FEATURES).write_bytes((folder / FEATURES).read_bytes()[:1000])
    with pytest.raises(UserError, match="Remove the folder"):
        open_bank(phantom_trained, dataset, tmp_path, "float16", CPU)


def test_other_heads_are_refused() -> None:
    with pytest.raises(UserError, match="CSRA"):
        require_linear(build_model(BATCH_NORM.model_copy(update={"head": "csra"}), 3))
