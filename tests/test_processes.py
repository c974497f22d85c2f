"""Processes that are asked to end get the time to do so, and then are killed, whoever started them."""

import subprocess
import sys
from pathlib import Path

from conftest import processes_in

from ral.processes import end_group

# The leader ends at once when asked, as DVC does; its child takes its time.
LEADER = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
child.wait()
"""
SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(1); Path("saved").touch(); sys.exit()
signal.signal(signal.SIGTERM, save)
Path("ready").touch()
time.sleep(3600)
"""
DEAF = """
import signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("ready").touch()
time.sleep(3600)
"""


def start(folder: Path, child: str, wait_until) -> subprocess.Popen:
    leader = subprocess.Popen([sys.executable, "-c", LEADER, child], cwd=folder, start_new_session=True)
    wait_until((folder / "ready").exists)
    return leader


def test_a_child_may_save_though_its_leader_has_left(tmp_path: Path, wait_until) -> None:
    end_group(start(tmp_path, SAVES, wait_until), 600)
    assert (tmp_path / "saved").exists()
    assert not processes_in(tmp_path)


def test_who_does_not_leave_is_killed(tmp_path: Path, wait_until) -> None:
    end_group(start(tmp_path, DEAF, wait_until), 1)
    wait_until(lambda: not processes_in(tmp_path))
