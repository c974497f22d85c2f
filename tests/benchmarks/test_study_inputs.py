"""What the statistics of the loss study read: copies of logits, and inputs that are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from study_inputs import CONFIG, StudyInputs, study_of

from benchmarks.study.inputs import read_data, read_logits
from benchmarks.study.results import write
from ral.errors import UserError


def test_a_float16_copy_is_read_and_counted(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    run = inputs.run("main", "bce", 0)
    path = inputs.state / "logits" / f"{run}.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    copy = {
        name: value.astype(np.float16) if name.endswith("logits") else value for name, value in arrays.items()
    }
    np.savez_compressed(path, **copy)
    assert (study_of(inputs).read, study_of(inputs).copies) == (1, 1)
    np.savez_compressed(path, **arrays)  # neither the file that was written nor a copy of half the size
    with pytest.raises(UserError, match=r"not the file that its row of runs\.csv names"):
        study_of(inputs)
    other = copy | {"test_logits": -copy["test_logits"]}
    np.savez_compressed(path, **other)
    with pytest.raises(UserError, match="macro AP"):
        study_of(inputs)


def damage(change: Callable[[StudyInputs, Path], None], inputs: StudyInputs) -> None:
    run = inputs.run("main", "bce", 0)
    inputs.write()
    change(inputs, inputs.state / "logits" / f"{run}.npz")


def _no_logits(inputs: StudyInputs, path: Path) -> None:
    path.unlink()


def _cut_logits(inputs: StudyInputs, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def _no_data(inputs: StudyInputs, path: Path) -> None:
    (inputs.state / "data.npz").unlink()


def _run_twice(inputs: StudyInputs, path: Path) -> None:
    inputs.rows *= 2
    inputs.write()


def _patient_in_two_folds(inputs: StudyInputs, path: Path) -> None:
    inputs.patient[inputs.fold == 1] = inputs.patient[inputs.fold == 0][0]
    inputs.write()


def _text_for_a_number(inputs: StudyInputs, path: Path) -> None:
    inputs.rows[0]["fold"] = "zero"
    inputs.write()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_logits, r"logits.*does not exist"),
        (_cut_logits, r"logits.*(cannot be read|not the file)"),
        (_no_data, r"data\.npz does not exist"),
        (_run_twice, "is there 2 times"),
        (_patient_in_two_folds, "in more than one fold"),
        (_text_for_a_number, r"runs\.csv.*zero"),
    ],
)
def test_damaged_inputs_are_refused(
    tmp_path: Path, change: Callable[[StudyInputs, Path], None], message: str
) -> None:
    inputs = StudyInputs(tmp_path)
    damage(change, inputs)
    with pytest.raises(UserError, match=message):
        write(inputs.state, inputs.out, CONFIG)


def test_logits_of_other_images_are_refused(tmp_path: Path) -> None:
    inputs = StudyInputs(tmp_path)
    run = inputs.run("main", "bce", 0)
    inputs.write()
    data = read_data(inputs.state / "data.npz", CONFIG)
    with pytest.raises(UserError, match="not of the images"):
        read_logits(inputs.state / "logits" / f"{run}.npz", 1, data, str(inputs.rows[0]["logits"]))
