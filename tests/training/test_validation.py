"""Validation metrics: those of scikit-learn, on one rank or shared among ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.synthetic import write_dataset
from ral.data.dataset import Dataset
from ral.inference.score import estimable_findings
from ral.labels import patient_counts
from ral.launch.base import free_port
from ral.training.validation import Validator

FINDINGS = ("Mass", "Edema", "Hernia", "Nodule", "Fibrosis")


class RandomLogits:
    """In place of a `Scorer`, which needs a network."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def score(self, _: Any, rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(rows), len(FINDINGS)), np.float32).round(1)


# Forks ranks after the imports, which take seconds; each prints its scores.
RANKS = """
import os
import sys
from pathlib import Path
import torch
from test_validation import RandomLogits
from ral.data.dataset import open_dataset
from ral.training.validation import Validator

folder, world, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rank = next((rank for rank in range(1, world) if not os.fork()), 0)
store = torch.distributed.TCPStore("127.0.0.1", port, world, rank == 0)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
scores = Validator(RandomLogits(rank, world), open_dataset(folder), 1).scores({})
print(scores.macro_ap.hex(), scores.macro_auroc.hex(), flush=True)
torch.distributed.barrier()
if rank:
    os._exit(0)
for _ in range(1, world):
    os.wait()
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path, 3_000, 2, 500, FINDINGS)


def test_metrics_are_means_over_the_measured_findings(dataset: Dataset) -> None:
    fewest = [min(patient_counts(labels, patients_of(dataset))) for labels in targets_of(dataset).T]
    minimum = sorted(fewest)[1]  # leaves one finding out
    validator = Validator(RandomLogits(), dataset, minimum)  # type: ignore[arg-type]
    assert validator.findings.tolist() == [number >= minimum for number in fewest]
    assert 2 <= validator.measured < len(FINDINGS)
    logits, ap, auroc = RandomLogits().score(None, validator.rows), [], []
    for finding in np.flatnonzero(validator.findings):
        labels = targets_of(dataset)[:, finding]
        known = ~np.isnan(labels)
        assert not known.all()
        ap.append(average_precision_score(labels[known], logits[known, finding]))
        auroc.append(roc_auc_score(labels[known], logits[known, finding]))
    scores = validator.scores({})
    assert scores is not None
    assert (scores.macro_ap, scores.macro_auroc) == (np.mean(ap), np.mean(auroc))


@pytest.mark.parametrize("world", [3, pytest.param(7, marks=pytest.mark.long)])
def test_every_rank_has_the_metrics_of_one_alone(dataset: Dataset, world: int) -> None:
    """Also where there are more ranks than findings."""
    scores = Validator(RandomLogits(), dataset, 1).scores({})  # type: ignore[arg-type]
    assert scores is not None
    command = [sys.executable, "-c", RANKS, str(dataset.folder), str(world), str(free_port())]
    path = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/training'}"
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    expected = f"{scores.macro_ap.hex()} {scores.macro_auroc.hex()}"
    assert printed.stdout.splitlines() == [expected] * world


def test_patients_are_counted_not_images() -> None:
    targets = np.array([[1, 1], [1, 1], [0, 0], [0, np.nan]], np.float32)
    patients = np.array(["a", "a", "b", "c"], object)
    assert estimable_findings(targets, patients, 1).tolist() == [True, True]
    assert estimable_findings(np.hstack([targets, 1 - targets]), np.array(["a", "d", "b", "c"]), 2).tolist() == [
        True, False, True, False
    ]  # fmt: skip


def targets_of(dataset: Dataset) -> np.ndarray:
    """Labels of the validation images, read in another way than the code does."""
    rows = (dataset.studies["split"] == "val").to_numpy()
    return dataset.studies.loc[rows, list(FINDINGS)].to_numpy()


def patients_of(dataset: Dataset) -> np.ndarray:
    """Patients of the validation images."""
    return dataset.studies.loc[dataset.studies["split"] == "val", "patient_id"].to_numpy()
