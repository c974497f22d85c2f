"""Coverage of the intervals on simulated patients; `benchmarks.coverage` is the long version."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from forks import forks

from benchmarks.coverage import Counts, one, summary
from benchmarks.simulated import SHARES, images_of, population, sample

ROOT = Path(__file__).parent.parent.parent


def test_patients_have_1_to_12_images_and_findings_their_prevalence() -> None:
    generator = np.random.default_rng(0)
    images = images_of(20_000, generator)
    assert (images.min(), images.max()) == (1, 12)
    images = sample(3000, generator, {})
    for name in ("Infiltration", "Mass"):
        labels = images.first[name].labels
        assert labels.mean() == pytest.approx(SHARES[name], rel=0.2)
        # Images of a patient go together.
        _, patient = np.unique(images.patients, return_inverse=True)
        first = np.append(True, patient[1:] != patient[:-1])
        again = labels[1:][~first[1:] & (labels[:-1] == 1)]
        assert again.mean() > 2 * SHARES[name]


def test_the_truth_is_that_of_the_thresholds_of_the_samples() -> None:
    truth = population(3000)
    for name, values in truth.first.items():
        assert 0.75 < values["auroc"] < 0.97, name
        assert values["f1"] >= values["f1_at_half"] - 1e-9


def test_a_cell_fails_only_if_its_own_interval_is_below() -> None:
    def cells(held: int, shown: int, samples: int) -> dict:
        good, bad = {"auroc head": [1, 1, 0]}, {"auroc head": [0, 1, 0]}
        counts: list[Counts] = (
            [good] * held + [bad] * (shown - held) + [{"auroc head": [0, 0, 1]}] * (samples - shown)
        )
        return summary(counts)["auroc head"]

    assert not cells(95, 100, 100)["fails"]
    assert not cells(90, 100, 110)["fails"]
    assert cells(90, 100, 110)["withheld"] == 10
    assert cells(1800, 2000, 2000)["fails"]
    assert not cells(1850, 2000, 2000)["fails"]  # 92.5 %, but 93 % is within its own interval
    assert cells(1990, 2000, 2000)["fails"]  # of a ranking metric, too many
    assert not cells(1, 99, 99)["fails"]  # too few to say
    assert cells(0, 0, 5)["coverage"] is None


def test_one_sample_counts_every_figure() -> None:
    counts = one(100, 3, 3000, 200)
    cells = set(counts)
    for figure in ("ap", "sensitivity", "ppv", "npv", "brier", "log_loss", "ece"):
        assert {f"{figure} head", f"{figure} macro"} <= cells
    assert {
        "mAP",
        "mAUROC",
        "mF1",
        "mECE",
        "f1 micro",
        "net benefit head",
        "ap difference macro",
        "kappa head",
    } <= cells
    assert counts["ece_debiased head"][:2] == [0, 0]
    assert counts["ece_debiased head"][2] == 3
    assert all(held <= shown for held, shown, _ in counts.values())


def test_the_command_prints_json_and_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "samples.jsonl"
    command = [
        *forks().command("benchmarks.coverage"), "--samples", "2", "--patients", "100", "--replicates", "100",
        "--truth", "3000", "--state", str(state),
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(first.stdout.splitlines()[-1])
    assert set(result) == {"cells", "failed", "withheld"}
    assert len(state.read_text().split()) > 2
    state.write_text(state.read_text()[:-20])  # cut off: the second is done again
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(again.stdout.splitlines()[-1]) == result
    assert state.read_text().count("\n") == 3


@pytest.mark.long
def test_intervals_of_300_patients_cover() -> None:
    cells = summary([one(300, seed, 100_000, 1000) for seed in range(400)])
    assert not [name for name, cell in cells.items() if cell["fails"]]
