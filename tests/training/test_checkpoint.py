"""Checkpoints: atomic, checksummed, private; the newest valid one is loaded, a second run is locked out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.errors import UserError
from ral.training.checkpoint import Checkpoints, training_fingerprint

TENSORS = {"weights/a": torch.arange(6.0).reshape(2, 3), "ema/a": torch.ones(2, 3)}


def saved(folder: Path, steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder / "run", keep)
    for step in range(1, steps + 1):
        checkpoints.save(step, {name: tensor + step for name, tensor in TENSORS.items()}, {"step": step})
    return checkpoints


def newest(checkpoints: Checkpoints, log: Callable[[str], None]) -> tuple[dict[str, torch.Tensor], Any]:
    step = checkpoints.newest_valid_step(log)
    assert step is not None
    return checkpoints.load(step)


def test_newest_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, keep=3)
    assert sorted(path.name for path in checkpoints.folder.glob("step-*")) == [
        "step-000000003",
        "step-000000004",
        "step-000000005",
    ]
    tensors, state = newest(checkpoints, print)
    assert state == {"step": 5}
    assert all((tensors[name] == tensor + 5).all() for name, tensor in TENSORS.items())


def test_nothing_is_there_at_first_and_after_success(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 0)
    assert checkpoints.newest_valid_step(print) is None
    checkpoints.save(1, TENSORS, {})
    checkpoints.remove()
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sums.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = saved(tmp_path, 2)
    path = checkpoints.folder / "step-000000002" / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    messages: list[str] = []
    assert newest(checkpoints, messages.append)[1] == {"step": 1}
    assert len(messages) == 1
    assert "step-000000002 is corrupt" in messages[0]
    checkpoints.save(2, TENSORS, {"step": 2})
    assert newest(checkpoints, messages.append)[1] == {"step": 2}


@pytest.mark.parametrize("name", list(TENSORS))
def test_one_with_weights_that_are_not_finite_is_passed_over(tmp_path: Path, name: str) -> None:
    checkpoints = saved(tmp_path, 1)
    checkpoints.save(2, TENSORS | {name: torch.full((2, 3), torch.nan)}, {"step": 2})
    messages: list[str] = []
    assert newest(checkpoints, messages.append)[1] == {"step": 1}
    assert f"step-000000002 is corrupt (6 of 6 values of {name} are not finite" in messages[0]


def test_one_that_this_machine_does_not_see_is_an_error(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(UserError, match="must be visible to all machines"):
        checkpoints.load(2)


def test_a_draft_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (checkpoints.folder / ".draft").mkdir()
    (checkpoints.folder / ".draft" / "tensors.safetensors").write_bytes(b"half")
    assert newest(checkpoints, print)[1] == {"step": 1}
    checkpoints.save(2, TENSORS, {"step": 2})
    assert not (checkpoints.folder / ".draft").exists()


def test_only_the_user_may_look(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    assert checkpoints.folder.stat().st_mode & 0o777 == 0o700
    assert (checkpoints.folder / "step-000000001").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_keeps_the_older_checkpoints(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("128k")
    checkpoints = saved(folder, 2)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save(3, {"weights/a": torch.ones(50_000)}, {"step": 3})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "filler").write_bytes(bytes(80_000))
    with pytest.raises(OSError, match="No space left on device"):  # not the tensors but the state
        checkpoints.save(3, TENSORS, {"step": 3, "losses": "x" * 50_000})
    assert not (checkpoints.folder / ".draft").exists()


def test_a_second_run_is_kept_out_and_a_dead_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom ral.training.checkpoint import Checkpoints\n"
        f"with Checkpoints(Path({str(folder)!r}), 1).lock():\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=rf"running already \(process {holder.pid} on "),
        Checkpoints(folder, 1).lock(),
    ):
        pass
    holder.kill()
    holder.wait()
    with Checkpoints(folder, 1).lock():
        pass


def test_key_is_of_what_decides_the_result(prepared: Path, tmp_path: Path) -> None:
    params = {"model": {"backbone": "a"}, "loss": {"name": "ral"}, "train": {"seed": 0, "micro_batch": None}}
    first = training_fingerprint(params, prepared)
    assert first == training_fingerprint(params, prepared)
    assert first == training_fingerprint(params | {"train": {"seed": 0, "micro_batch": 4}}, prepared)
    assert first != training_fingerprint(params | {"train": {"seed": 1, "micro_batch": None}}, prepared)
    assert first != training_fingerprint(params | {"loss": {"name": "bce"}}, prepared)
    assert first == training_fingerprint(params | {"loss": {"name": "ral", "bce": {"a": 1}}}, prepared)
    assert first != training_fingerprint(params | {"loss": {"name": "ral", "ral": {"a": 1}}}, prepared)
    for key in ("adjust", "adjust_tau"):
        assert first != training_fingerprint(params | {"loss": {"name": "ral", key: 1}}, prepared)
    copy = tmp_path / "prepared"
    copy.mkdir()
    for name in ("dataset.json", "class_counts.json", "studies.parquet"):
        (copy / name).write_bytes((prepared / name).read_bytes())
    assert first == training_fingerprint(params, copy)
    metadata = json.loads((copy / "dataset.json").read_text())
    metadata["shards"][0]["sha256"] = "0"
    (copy / "dataset.json").write_text(json.dumps(metadata))
    assert first != training_fingerprint(params, copy)
