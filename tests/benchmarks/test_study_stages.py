"""The study's second phase, its longer runs and the order of its stages."""

import csv
import itertools
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.study import folds, second_phase, table
from benchmarks.study.__main__ import parse
from benchmarks.study.plan import BIG, Plan, Row, Run, Settings, run_of, seconds
from benchmarks.study.recipes import ARMS
from benchmarks.synthetic import write_dataset
from ral.errors import UserError
from ral.training.refit import METHODS

SETTINGS = Settings("cpu", "test_resnet", 1, 32)
IMAGES, SIZE = 240, 32
COMMAND = (
    "--backbone", "test_resnet", "--epochs", "1", "--batch-size", "32", "--arms", "bce", "--folds", "0",
)  # fmt: skip


def finished(run: Run, ap: float = 0.4) -> Row:
    """A row of runs.csv, as far as the plan reads it."""
    return {name: str(value) for name, value in vars(run).items()} | {
        "run": run.name, "selection_macro_ap": str(ap), "seconds": "60",
    }  # fmt: skip


def order_of(plan: Plan) -> list[Run]:
    """All runs of a plan in the order in which one worker runs them."""
    rows: list[Row] = []
    while ready := plan.ready(rows):
        rows.append(finished(ready[0]))
    return [run_of(row) for row in rows]


# The order.


def test_what_tells_most_comes_first() -> None:
    def group(run: Run) -> tuple[str, str, int]:
        arm = ARMS[run.arm.partition("+")[0]]
        kind = "first" if arm.every_fold else "late" if arm.late else "other"
        return run.stage, kind, run.fold

    found = [key for key, _ in itertools.groupby(map(group, order_of(Plan(SETTINGS))))]
    later = [("main", kind, fold) for fold in range(2, 5) for kind in ("other", "late")]
    assert found == [
        ("rate", "first", 0), *[("main", "first", fold) for fold in range(5)], ("control", "first", 0),
        ("second_phase", "first", 0), ("epochs", "first", 0), ("epochs", "first", 1), ("epochs", "first", 0),
        ("epochs", "first", 1),
        ("rate", "late", 0), ("epochs", "late", 0), ("epochs", "late", 1), ("rate", "late", 0),
        *[("second_phase", "first", fold) for fold in range(1, 5)], ("main", "late", 1),
        ("rate", "other", 0), ("extra", "first", 0), ("thin", "first", 0),
        ("main", "other", 1), *later,
        *[("extra", "first", fold) for fold in range(1, 5)], *[("thin", "first", fold) for fold in range(1, 5)],
    ]  # fmt: skip


def test_large_backbones_are_for_a_gpu_unless_they_are_named() -> None:
    assert not [run for run in order_of(Plan(SETTINGS)) if run.stage == "seeds"]
    assert BIG == {"cpu": (), "cuda": ("resnet50",)}
    assert {run.backbone for run in order_of(Plan(SETTINGS, ["rate", "seeds"], big=["resnet50"]))} == {
        "test_resnet",
        "resnet50",
    }
    assert parse([]).big is None
    assert parse(["--big", "resnet34"]).big == ["resnet34"]


def test_the_second_phase_of_a_network_waits_for_its_row_and_then_for_its_first_method() -> None:
    plan = Plan(SETTINGS, ["rate", "main", "second_phase"], ["bce"])
    rates = plan.ready([])
    assert {run.stage for run in rates} == {"rate"}
    rows = [finished(run, ap) for run, ap in zip(rates, (0.1, 0.3, 0.2), strict=True)]
    waiting = [run for run in plan.ready(rows) if run.stage == "second_phase"]
    assert [(run.arm, run.fold, run.learning_rate) for run in waiting] == [(f"bce+{METHODS[0]}", 0, 1e-3)]
    then = [run.arm for run in plan.ready([*rows, finished(waiting[0])]) if run.stage == "second_phase"]
    assert then == [f"bce+{method}" for method in METHODS[1:]]
    # A network that does not repeat its row fails once, not once for each method.
    assert not [run for run in plan.ready(rows, [waiting[0].name]) if run.stage == "second_phase"]


def test_longer_runs_have_the_learning_rates_of_the_short_ones() -> None:
    plan = Plan(replace(SETTINGS, epochs=6))
    long = [run for run in order_of(plan) if run.stage == "epochs"]
    assert [(run.arm, run.fold, run.epochs) for run in long] == [
        (arm, fold, 12) for fold in (0, 1) for arm in ("ral", "bce")
    ] + [(arm, fold, 12) for arm in ("reference", "comp_sum") for fold in (0, 1)]
    assert [run.learning_rate for run in long] == [3e-4] * 4 + [1e-4] * 2 + [3e-4] * 2
    assert not [run for run in order_of(Plan(replace(SETTINGS, epochs=12))) if run.stage == "epochs"]


def test_expected_seconds_are_those_of_runs_like_it() -> None:
    run = Run("main", "bce", 0, 0, 1e-3, "test_resnet", 6, 32, "float32", "cpu")
    refit = replace(run, stage="second_phase", arm="bce+smote")
    rows = [finished(run), finished(refit) | {"seconds": "6"}]
    assert seconds(replace(run, epochs=12), rows) == pytest.approx(120)
    assert seconds(refit, rows) == pytest.approx(6)
    assert seconds(replace(refit, arm="bce+crt"), rows) == pytest.approx(60)  # it trains the network again


# Real runs.


def study(folder: Path, *arguments: str) -> list[str]:
    """The command of a study in a folder."""
    paths = ["--prepared", folder / "prepared", "--state", folder / "state", "--results", folder / "results"]
    return [sys.executable, "-m", "benchmarks.study", *map(str, paths), *COMMAND, *arguments]


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of runs.csv; none before the first run is finished."""
    path = folder / "results" / "runs.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]], list[int]]:
    """A study that was killed in the middle of the second phase of a network, and started again.

    Returns its folder, the rows before the second start, and the times of change of the features before and after it.
    """
    folder = tmp_path_factory.mktemp("second")
    (folder / "prepared").mkdir()
    write_dataset(folder / "prepared", IMAGES, SIZE)
    stages = ("--stages", "rate", "second_phase")
    with subprocess.Popen(study(folder, *stages), cwd=ROOT) as process:
        while len(rows_of(folder)) < 5:
            assert process.poll() is None, "the study ended"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = rows_of(folder)
    (features,) = (folder / "state" / "features").iterdir()
    times = [features.stat().st_mtime_ns]
    subprocess.run(study(folder, *stages, "--jobs", "2"), cwd=ROOT, check=True)
    return folder, rows, [*times, features.stat().st_mtime_ns]


@pytest.mark.long
def test_a_second_phase_that_was_killed_loses_nothing_and_repeats_nothing(
    killed: tuple[Path, list[dict[str, str]], list[int]],
) -> None:
    folder, before, times = killed
    after = rows_of(folder)
    assert 5 <= len(before) < 3 + len(METHODS)
    assert after[: len(before)] == before
    assert sorted(row["arm"] for row in after[3:]) == sorted(f"bce+{method}" for method in METHODS)
    assert times[0] == times[1]  # the network was not trained again


def test_a_refitted_row_has_the_settings_of_its_network_and_the_logits_of_its_head(
    killed: tuple[Path, list[dict[str, str]], list[int]],
) -> None:
    folder, _, _ = killed
    data, rows = folds.read_data(folder / "state"), rows_of(folder)
    network = max(rows[:3], key=lambda row: float(row["selection_macro_ap"]))
    same = ("learning_rate", "epochs", "best_epoch", "parameters", "test_images", "train_images")
    (path,) = (folder / "state" / "features").iterdir()
    assert path.name == f"{network['run']}-{network['logits']}.npy"
    features = np.load(path)
    assert len(features) == len(data.targets)
    test = np.flatnonzero(data.fold == 0)
    for row in rows[3:]:
        assert [row[name] for name in same] == [network[name] for name in same]
        file = folder / "state" / "logits" / f"{row['run']}.npz"
        assert table.logits_hash(file) == row["logits"]
        with np.load(file) as arrays:
            assert (arrays["test_rows"] == test).all()
            # Logits of a linear classifier on the features: a least-squares fit leaves nothing.
            inputs = np.column_stack([features[test], np.ones(len(test))]).astype(np.float64)
            logits = arrays["test_logits"].astype(np.float64)
        left = logits - inputs @ np.linalg.lstsq(inputs, logits, rcond=None)[0]
        assert np.abs(left).max() < 1e-3 * max(1, np.abs(logits).max())
    # Without a frequent finding, rcal has nothing to borrow: it is virtual.
    assert len({row["logits"] for row in rows if not row["arm"].endswith("rcal")}) == len(rows) - 1


@pytest.mark.long
def test_a_refitted_row_reruns_to_its_own_numbers_without_its_features(
    killed: tuple[Path, list[dict[str, str]], list[int]],
) -> None:
    folder, _, _ = killed
    (path,) = (folder / "state" / "features").iterdir()
    features = path.read_bytes()
    path.unlink()
    row = rows_of(folder)[-1]
    done = subprocess.run(study(folder, "--rerun", row["run"]), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == features


@pytest.mark.long
def test_a_network_that_gives_other_logits_than_its_row_is_refused(
    killed: tuple[Path, list[dict[str, str]], list[int]], tmp_path: Path
) -> None:
    folder, _, _ = killed
    rows = rows_of(folder)
    network = max(rows[:3], key=lambda row: float(row["selection_macro_ap"]))
    changed = [row | {"logits": "0" * 16} if row is network else row for row in rows[:3]]
    (tmp_path / "results").mkdir()
    table.write_rows(tmp_path / "results" / "runs.csv", changed)
    for name in ("prepared", "state"):
        (tmp_path / name).symlink_to(folder / name)
    command = study(tmp_path, "--stages", "second_phase")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert f"gives other logits ({network['logits']}) than its row ({'0' * 16})" in done.stderr
    assert "0 runs finished, 1 failed, 0 ready to run" in done.stdout
    assert rows_of(tmp_path) == changed


def test_a_second_phase_without_its_network_is_refused() -> None:
    run = Run("second_phase", "bce+crt", 3, 0, 1e-3, "test_resnet", 1, 32, "float32", "cpu")
    with pytest.raises(UserError, match="network of bce, which has no row on fold 3"):
        second_phase.row_of_network(run, [finished(replace(run, stage="main", arm="bce", fold=2))])
