"""A folder is written whole or not at all, and by one run at a time."""

import multiprocessing
import os
from pathlib import Path

import pytest

from ral.errors import UserError
from ral.files import new_folder


def _write(path: str, started, go_on) -> None:
    with new_folder(Path(path)) as draft:
        (draft / "a").write_text("first")
        started.set()
        go_on.wait()


def test_second_run_in_the_same_folder_is_told(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    first = context.Process(target=_write, args=(str(tmp_path / "out"), started, go_on), daemon=True)
    first.start()
    assert started.wait()
    with pytest.raises(UserError, match=r"Another run is writing .*out"), new_folder(tmp_path / "out"):
        pytest.fail("two runs write one folder")
    go_on.set()
    first.join()
    assert first.exitcode == 0
    assert (tmp_path / "out/a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_draft_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=os.getpid)
    dead.start()
    dead.join()
    (tmp_path / f".out.{dead.pid}.draft").mkdir()
    with new_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
