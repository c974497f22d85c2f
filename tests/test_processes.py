"""Process groups get time to shut down after SIGTERM and are then killed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import processes_in

from ral.launch.base import free_port
from ral.processes import terminate_group

# On SIGTERM the leader exits at once, as DVC does; its child needs longer.
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


def guards(folder: Path) -> list[psutil.Process]:
    """Guards in a folder that have imported what they need: from then on they look for children, and sleep in between."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(folder) and "ral.processes" in (process.info["cmdline"] or []):
            maps = Path(f"/proc/{process.pid}/maps")
            if not maps.exists() or "_psutil" in maps.read_text():
                found.append(process)
    return found


def test_a_child_may_save_though_its_leader_has_left(tmp_path: Path, wait_until) -> None:
    terminate_group(start(tmp_path, SAVES, wait_until), 600)
    assert (tmp_path / "saved").exists()
    assert not processes_in(tmp_path)


def test_what_a_killed_process_left_may_save_as_well(tmp_path: Path, wait_until) -> None:
    code = (
        "import subprocess, sys; from ral.processes import start_guard; start_guard(); "
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    owner = subprocess.Popen([sys.executable, "-c", code, SAVES], cwd=tmp_path, env=env)
    wait_until((tmp_path / "ready").exists)
    wait_until(lambda: guards(tmp_path))
    (guard,) = guards(tmp_path)
    seen = guard.num_ctx_switches().voluntary
    wait_until(lambda: guard.num_ctx_switches().voluntary >= seen + 4)  # it has looked for children since
    owner.kill()
    owner.wait()
    wait_until(lambda: not any("saved" in line for line in processes_in(tmp_path)))
    assert (tmp_path / "saved").exists()


def test_who_does_not_leave_is_killed(tmp_path: Path, wait_until) -> None:
    terminate_group(start(tmp_path, DEAF, wait_until), 1)
    wait_until(lambda: not processes_in(tmp_path))


# Rank 1 exits while a gloo thread waits for the interpreter, to release the tensor of a finished collective.
# Without `exit_now` it ends with SIGABRT.
RANK = """
import sys, time
import torch
import torch.distributed as dist
from ral.processes import exit_now
rank, port = int(sys.argv[1]), int(sys.argv[2])
store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
group = dist.new_group([0, 1])
if rank == 0:
    time.sleep(0.5)
    dist.all_reduce(torch.ones(1), group=group)
    sys.stdin.read()
else:
    tensor = torch.ones(1)
    tensor.kept = True
    work = dist.all_reduce(tensor, group=group, async_op=True)
    del tensor, work
    sys.setswitchinterval(1000)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        pass
print("done")
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("exit_now(0)", 0), ("exit_now(3)", 3)])
def test_a_rank_leaves_although_threads_of_gloo_are_not_done(end: str, code: int) -> None:
    port = str(free_port())
    command = [sys.executable, "-c", RANK.replace("{end}", end)]
    with subprocess.Popen([*command, "0", port], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as peer:
        rank = subprocess.run([*command, "1", port], capture_output=True, text=True)
        peer.communicate(b"")
    assert (rank.returncode, rank.stdout) == (code, "done\n"), rank.stderr
