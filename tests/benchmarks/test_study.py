"""The study: folds and plan, permuted labels, the scale of a loss, and real runs that are killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT

from benchmarks.study import archive, folds, plan, table
from benchmarks.study.authors import boxes, jittered, macro_precision, sharpened
from benchmarks.study.plan import Plan, Row, Run, Settings
from benchmarks.study.recipes import ARMS
from benchmarks.study.scales import gradient_norm, measured
from benchmarks.study.training import Place, StudyTrainer, fold_dataset, parameters
from benchmarks.synthetic import write_dataset
from ral.errors import UserError
from ral.training.distributed import DistributedContext
from ral.training.phase import build_network

IMAGES, SIZE = 240, 32
SETTINGS = Settings("cpu", "test_resnet", 1, 32)
RUN = Run("rate", "ral", 0, 0, 1e-3, "test_resnet", 1, 32, "float32", "cpu")
# Four runs: three learning rates of RAL on fold 0, then RAL at the best of them on fold 1.
COMMAND = (
    "--backbone", "test_resnet", "--epochs", "1", "--batch-size", "32", "--arms", "ral", "--stages", "rate", "main",
    "--folds", "0", "1",
)  # fmt: skip


def labels(patients: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids of patients with one to four images, and labels of five findings, common to rare."""
    rng = np.random.default_rng(seed)
    patient = np.repeat([f"p{number:04d}" for number in range(patients)], rng.integers(1, 5, patients))
    return patient, (rng.random((len(patient), 5)) < [0.3, 0.2, 0.1, 0.05, 0.03]).astype(np.float32)


def finished(run: Run, ap: float) -> Row:
    """A row of runs.csv, as far as the plan reads it."""
    return {"run": run.name, "selection_macro_ap": str(ap)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The images of a small study."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "prepared").mkdir()
    write_dataset(folder / "prepared", IMAGES, SIZE)
    state = folder / "state"
    data = folds.import_prepared(folder / "prepared", state)
    return Place(state, data, folds.open_pixels(state), DistributedContext(0, 1, torch.device("cpu")), "test")


# Folds.


def test_no_patient_is_in_two_folds_and_every_finding_is_in_all() -> None:
    patient, targets = labels()
    fold = folds.assign_folds(patient, targets)
    assert set(fold) == {folds.SELECTION, 0, 1, 2, 3, 4}
    for name in np.unique(patient):
        assert len(set(fold[patient == name])) == 1
    shares = np.array([targets[fold == one].sum(axis=0) for one in range(-1, 5)]) / targets.sum(axis=0)
    assert np.abs(shares[0] - 0.15).max() < 0.06
    assert np.abs(shares[1:] - 0.17).max() < 0.06


def test_folds_do_not_depend_on_the_order_of_the_rows() -> None:
    patient, targets = labels()
    order = np.random.default_rng(1).permutation(len(patient))
    assert (
        folds.assign_folds(patient[order], targets[order]) == folds.assign_folds(patient, targets)[order]
    ).all()


def test_each_image_is_tested_once_and_the_selection_set_never(place: Place) -> None:
    splits = [place.data.split(fold) for fold in range(folds.FOLDS)]
    tested = sum((split == "test").astype(int) for split in splits)
    selection = place.data.fold == folds.SELECTION
    assert (tested == np.where(selection, 0, 1)).all()
    assert all(((split == "val") == selection).all() for split in splits)


def test_images_are_in_the_order_of_their_ids_with_their_pixels_and_labels(place: Place) -> None:
    from ral.data.dataset import open_dataset

    prepared = open_dataset(place.state.parent / "prepared")
    ids = prepared.studies["image_id"].to_numpy(str)
    rows = np.argsort(ids)
    assert (place.data.image_id == ids[rows]).all()
    assert (place.pixels == prepared.gather(rows)).all()
    np.testing.assert_array_equal(place.data.targets, prepared.targets()[rows])


def test_other_images_are_refused(place: Place, tmp_path: Path) -> None:
    write_dataset(tmp_path, IMAGES // 2, SIZE)
    with pytest.raises(UserError, match="another prepared data set"):
        folds.import_prepared(tmp_path, place.state)
    with pytest.raises(UserError, match="of other images"):
        table.check_rows([{"run": "a", "data": "0" * 12}], place.data.sha256, Path("runs.csv"))


# Permuted labels.


def test_permuted_labels_keep_their_counts_and_leave_their_patients() -> None:
    patient, targets = labels()
    permuted = folds.permute(targets, patient, 0)
    assert (permuted.sum(axis=0) == targets.sum(axis=0)).all()
    assert sorted(map(tuple, permuted)) == sorted(map(tuple, targets))
    correlation = [np.corrcoef(targets[:, number], permuted[:, number])[0, 1] for number in range(5)]
    assert np.abs(correlation).max() < 0.15
    assert (folds.permute(targets, patient, 1) != permuted).any()


def test_a_control_learns_permuted_labels_and_is_tested_on_the_true_ones(place: Place) -> None:
    run = replace(RUN, stage="control")
    control, plain = (fold_dataset(place.data, place.pixels, place.state, one) for one in (run, RUN))
    for split, same in (("train", False), ("val", False), ("test", True)):
        rows = plain.rows(split)
        assert (
            (control.targets()[rows] == plain.targets()[rows]) | np.isnan(plain.targets()[rows])
        ).all() == same
    assert control.class_counts["train"].positives == plain.class_counts["train"].positives


def test_pixel_statistics_are_those_of_the_training_images(place: Place) -> None:
    dataset = fold_dataset(place.data, place.pixels, place.state, RUN)
    pixels = place.pixels[dataset.rows("train")].astype(np.float64)
    assert dataset.info.pixel_mean == pytest.approx(pixels.mean(), abs=1e-5)
    assert dataset.info.pixel_deviation == pytest.approx(pixels.std(), abs=1e-5)


# The plan.


def test_the_best_rate_on_the_selection_set_is_used_and_the_lowest_of_equal_ones() -> None:
    one = Plan(SETTINGS, arms=["bce"], stages=["rate", "main"])
    runs = one.ready([])
    assert [run.learning_rate for run in runs] == [3e-4, 1e-3, 3e-3]
    assert {run.stage for run in runs} == {"rate"}
    for scores, best in (((0.1, 0.3, 0.2), 1e-3), ((0.3, 0.1, 0.3), 3e-4)):
        rows = [finished(run, ap) for run, ap in zip(runs, scores, strict=True)]
        later = one.ready(rows)
        # The run of fold 0 at that rate is not repeated.
        assert [(run.stage, run.fold, run.learning_rate) for run in later] == [
            ("main", fold, best) for fold in range(1, 5)
        ]
    assert one.ready(rows[:2]) == runs[2:]
    assert {run.learning_rate for run in one.ready(rows[1:], [runs[0].name])} == {3e-3}


def test_the_main_arms_come_first_and_every_run_once() -> None:
    whole, rows, order = Plan(SETTINGS, big=["resnet50"]), [], []
    while ready := whole.ready(rows):
        order.append(ready[0])
        rows.append(finished(ready[0], 0.5 if ready[0].arm == "asl" else 0.4))
    names = [run.name for run in order]
    assert len(names) == len(set(names))
    main = [name for name, arm in ARMS.items() if arm.every_fold]
    first = order[: 5 * 3 + 6 * 5 - 5]
    assert {run.stage for run in first} == {"rate", "main"}
    assert {run.arm for run in first} == set(main)
    assert {run.arm for run in order if run.stage == "extra"} == {
        f"{name}+{step}" for name in ("ral", "asl") for step in plan.STEPS
    }
    assert [run for run in order if run.arm == "reference" and run.learning_rate != 1e-4] == []
    assert {(run.arm, run.thin) for run in order if run.stage == "thin"} == {
        (name, ratio) for name in plan.THINNED for ratio in plan.RATIOS
    }
    assert {run.seed for run in order if run.stage == "seeds"} == set(plan.SEEDS)
    assert [plan.run_of({**_columns(run), "run": run.name}) for run in order] == order


def _columns(run: Run) -> dict[str, str]:
    return {name: str(value) for name, value in vars(run).items()}


def test_rows_of_other_settings_choose_nothing() -> None:
    one = Plan(SETTINGS, arms=["bce"], stages=["rate"])
    rows = [finished(run, 0.5) for run in Plan(replace(SETTINGS, epochs=2), arms=["bce"]).ready([])]
    assert one.ready(rows) == one.ready([])


# Losses and the authors' recipe.


def test_the_scale_gives_the_gradient_the_norm_of_that_of_bce(place: Place) -> None:
    bce = gradient_norm("bce", RUN, place)
    for name in ("ral", "zlpr"):
        scale = measured(replace(RUN, arm=name), place)
        assert scale * gradient_norm(name, RUN, place) == pytest.approx(bce, rel=1e-3)
        assert abs(scale - 1) > 0.1


def test_precision_counts_a_finding_that_is_never_predicted_as_zero() -> None:
    targets = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    logits = np.array([[2, 1, -1], [1, -1, -1]], np.float32)
    assert macro_precision(targets, logits) == pytest.approx((0.5 + 0 + 0) / 3)


def test_sharpening_and_erasing_are_those_of_the_authors() -> None:
    from PIL import Image, ImageEnhance

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(2.0), np.float32)
    mine = sharpened(torch.from_numpy(pixels).float()[None, None])[0, 0].numpy()
    assert np.abs(mine - expected).max() <= 1  # Pillow rounds the smoothed image
    erased = boxes(4000, 64, torch.Generator().manual_seed(0))
    share = erased.float().mean(dim=(1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert share[share > 0].mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    assert share.max() < 0.36


def test_the_authors_augmentation_keeps_half_of_the_images_and_repeats_with_its_seed(place: Place) -> None:
    info = fold_dataset(place.data, place.pixels, place.state, RUN).info
    images = torch.randn(2000, 1, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-0.9, 0.9)
    once, again = (jittered(images, info, torch.Generator().manual_seed(0)) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    changed = ((once - images).abs() > 1e-4).flatten(1).any(dim=1).float().mean()
    assert changed == pytest.approx(0.75, abs=0.04)  # half sharpened, half erased, independently
    black = (0 - info.pixel_mean) / info.pixel_deviation
    assert once.min() == pytest.approx(black, abs=1e-4)


def test_scores_of_a_network_trained_in_bfloat16_are_not_rounded_to_it(place: Place) -> None:
    run = replace(RUN, precision="bfloat16")
    dataset = fold_dataset(place.data, place.pixels, place.state, run)
    params = parameters(run)
    trainer = StudyTrainer(params, dataset, place.context, ARMS["ral"], 1.0)
    network = build_network(params, len(dataset.findings))
    logits = torch.from_numpy(trainer.validator.scorer.score(network.state_dict(), dataset.rows("val")))
    assert network.use_bfloat16
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9


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


def wait_for(condition: object, process: "subprocess.Popen[bytes]") -> None:
    """Poll until a condition holds; the process must still run."""
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "the study ended"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]], list[int]]:
    """A study whose worker was killed, then the whole of it, and that was started again.

    Returns its folder, the rows before the second start, and the processes of the first one.
    """
    folder = tmp_path_factory.mktemp("killed")
    (folder / "prepared").mkdir()
    write_dataset(folder / "prepared", IMAGES, SIZE)
    with subprocess.Popen(study(folder, "--pack", str(folder / "pack")), cwd=ROOT) as process:
        log = folder / "state" / "worker-0.log"
        wait_for(log.is_file, process)
        (worker,) = (
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        )
        wait_for(lambda: rows_of(folder), process)
        worker.kill()
        before = len(rows_of(folder))
        wait_for(lambda: len(rows_of(folder)) > before, process)
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = rows_of(folder)
    subprocess.run(study(folder, "--pack", str(folder / "pack"), "--jobs", "2"), cwd=ROOT, check=True)
    return folder, rows, children


def test_a_study_that_was_killed_loses_nothing_and_repeats_nothing(
    killed: tuple[Path, list[dict[str, str]], list[int]],
) -> None:
    folder, before, children = killed
    after = rows_of(folder)
    assert 2 <= len(before) < 4
    assert after[: len(before)] == before
    assert [row["stage"] for row in after] == ["rate"] * 3 + ["main"]
    assert len({row["run"] for row in after}) == 4
    best = max(after[:3], key=lambda row: float(row["selection_macro_ap"]))
    assert (after[3]["fold"], after[3]["learning_rate"]) == ("1", best["learning_rate"])
    assert not [
        pid for pid in children if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
    ]


def test_a_gpu_that_is_not_there_is_said(killed: tuple[Path, list[dict[str, str]], list[int]]) -> None:
    folder, _, _ = killed
    command = study(folder, "--device", "cuda", "--batch-size", "16")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not see a GPU here: use --device cpu" in done.stderr


def test_rows_and_logits_say_what_was_tested(killed: tuple[Path, list[dict[str, str]], list[int]]) -> None:
    folder, _, _ = killed
    data = folds.read_data(folder / "state")
    for row in rows_of(folder):
        assert tuple(row) == table.COLUMNS
        path = folder / "state" / "logits" / f"{row['run']}.npz"
        assert table.logits_hash(path) == row["logits"]
        with np.load(path) as arrays:
            assert (arrays["test_rows"] == np.flatnonzero(data.fold == int(row["fold"]))).all()
            assert (arrays["selection_rows"] == np.flatnonzero(data.fold == -1)).all()
            assert arrays["test_logits"].shape == (int(row["test_images"]), len(data.findings))
            assert arrays["test_logits"].dtype == np.float32
    assert [row["arm"] for row in table.read_rows(folder / "results/scales.csv", table.SCALES)] == ["ral"]


@pytest.mark.long
def test_a_row_reruns_to_its_own_numbers(killed: tuple[Path, list[dict[str, str]], list[int]]) -> None:
    folder, _, _ = killed
    row = rows_of(folder)[-1]
    path = folder / "results" / "runs.csv"
    text = path.read_text()
    path.write_text(text.replace(row["logits"], "0" * 16))
    done = subprocess.run(study(folder, "--rerun", row["run"]), cwd=ROOT, capture_output=True, text=True)
    path.write_text(text)
    assert done.returncode == 1
    assert "gave other numbers" in done.stderr
    # Only the changed hash of the row, and what depends on the clock.
    differing = {
        line.split()[0]: line.split()[2] for line in done.stdout.splitlines() if line.endswith("differs")
    }
    assert differing["logits"] == row["logits"]
    assert differing.keys() <= {"logits", "seconds"}


def test_what_was_packed_is_merged_without_what_is_incomplete(
    killed: tuple[Path, list[dict[str, str]], list[int]], tmp_path: Path
) -> None:
    folder, _, _ = killed
    rows = rows_of(folder)
    # As if the study had been killed before it copied the last rows.
    table.write_rows(folder / "pack" / "runs.csv", rows[:2])
    subprocess.run(study(folder, "--pack", str(folder / "pack")), cwd=ROOT, check=True)
    assert archive.merge(folder / "pack", tmp_path / "state", tmp_path / "results") == (4, 0)
    assert rows_of(tmp_path) == rows
    assert archive.merge(folder / "pack", tmp_path / "state", tmp_path / "results") == (0, 0)
    packed = folder / "pack" / "logits-0.tar"
    os.truncate(packed, packed.stat().st_size // 2)
    added, without = archive.merge(folder / "pack", tmp_path / "cut", tmp_path / "cut-results")
    assert added + without == 4
    assert added
    assert without
