"""Atomic writes of files and directories, by one run at a time."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ral.errors import UserError
from ral.files import atomic_directory, atomic_write, private_file, private_folder, write_json
from ral.training.outputs import write_weights

ROOT = Path(__file__).parent.parent


def _write(path: str, started, go_on) -> None:
    with atomic_directory(Path(path)) as draft:
        (draft / "a").write_text("first")
        started.set()
        go_on.wait()


def test_second_run_in_the_same_folder_is_told(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    first = context.Process(target=_write, args=(str(tmp_path / "out"), started, go_on), daemon=True)
    first.start()
    assert started.wait()
    with pytest.raises(UserError, match=r"Another run is writing .*out"), atomic_directory(tmp_path / "out"):
        pytest.fail("two runs write one folder")
    go_on.set()
    first.join()
    assert first.exitcode == 0
    assert (tmp_path / "out/a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITER = """
import sys, time
from pathlib import Path
from ral.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as draft:
    (draft / "a").write_text("torn")
    print("started", flush=True)
    time.sleep(3600)
"""


def test_draft_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"started\n"
    killed.kill()
    killed.communicate()
    assert list(tmp_path.glob(".*.draft"))
    with atomic_directory(tmp_path / "out") as draft:
        (draft / "a").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


FILE_WRITER = """
import os, signal, sys
from pathlib import Path
from ral import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as draft:
    draft.write_text("torn")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("write", [atomic_write, private_file])
def test_temporary_file_of_a_killed_writer_is_removed(tmp_path: Path, write) -> None:
    """The next writer of that file removes it; other files, and files being written, stay."""
    for name in ("out.json", "out"):
        command = [sys.executable, "-c", FILE_WRITER, write.__name__, str(tmp_path / name)]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    (stale_json,), (stale,) = list(tmp_path.glob(".out.json.*")), list(tmp_path.glob(".out.????????"))
    for name in (".out.json.0123456g", ".out.1.01234567", "out.01234567"):
        (tmp_path / name).write_text("other")
    with write(tmp_path / "out") as first, write(tmp_path / "out") as second:
        assert first.exists()
        assert not stale.exists()
        assert stale_json.exists()
        first.write_text("first")
        second.write_text("second")
    names = [".out.1.01234567", ".out.json.0123456g", stale_json.name, "out", "out.01234567"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "out").read_text() == "first"


def _race_for_a_file(path: str, number: int) -> None:
    for turn in range(200):
        with atomic_write(Path(path)) as draft:
            draft.write_text(f"{number} {turn}")


def test_writers_of_one_file_never_take_each_other_for_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_race_for_a_file, args=(str(tmp_path / "out"), n)) for n in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_process_id_again_is_no_other_run(tmp_path: Path) -> None:
    """In a container each run has the same process ids as the killed one before it."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no process id namespace can be made here")
    write = "import sys; from pathlib import Path; from ral.files import atomic_directory\n"
    write += "with atomic_directory(Path(sys.argv[1])) as draft:\n    (draft / 'a').write_text('x')\n"
    die = "    import os, signal; print(os.getpid()); sys.stdout.flush(); os.kill(0, signal.SIGKILL)\n"
    ids = []
    for body in (write + die, write + "print(os.getpid())\n".replace("os", "__import__('os')")):
        command = [
            "unshare",
            "--pid",
            "--fork",
            "sh",
            "-c",
            'python -c "$0" "$1"; true',
            body,
            str(tmp_path / "out"),
        ]
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        }  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=env, start_new_session=True)
        ids.append(done.stdout.strip())
    assert ids[0] == ids[1] != ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"], done.stderr


def test_neighbours_with_a_longer_name_are_left_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out.b") as neighbour, atomic_directory(tmp_path / "out") as draft:
        (neighbour / "a").write_text("b")
        (draft / "a").write_text("a")
    assert (tmp_path / "out.b/a").read_text() == "b"


def _race(path: str, number: int) -> None:
    for turn in range(50):
        with contextlib.suppress(UserError), atomic_directory(Path(path)) as draft:
            assert not list(draft.iterdir()), "two runs in one draft"
            (draft / "a").write_text(f"{number} {turn}")
            assert [entry.name for entry in draft.iterdir()] == ["a"]


def test_writers_that_race_never_share_a_draft(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_race, args=(str(tmp_path / "out"), number)) for number in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2)}, "phantom")
        with atomic_directory(tmp_path / "out") as draft:
            (draft / "a").write_text("x")
    finally:
        os.umask(before)
    for name in ("a.json", "w.safetensors", "out/a"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask, name
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match=rf"others \(mode {mode:04o}\).*chmod go-w"):
        private_folder(folder)
    assert folder.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_the_mode_of_a_folder_that_exists_stays(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    private_folder(folder)
    assert folder.stat().st_mode & 0o7777 == mode


def test_missing_folders_are_made_private(tmp_path: Path) -> None:
    private_folder(tmp_path / "a/b")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700, 0o700]
