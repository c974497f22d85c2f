"""Fake SLURM: run as sbatch, srun, scontrol or scancel, it does what they do with the script, on one machine.

Its state is in the folder SLURM_STANDIN: job.json, `how` with the failure to simulate (refuse, timeout,
node_fail, pending), and `kill_wait`, the cluster's KillWait in seconds. A job's batch script runs in its own
session, as under slurmd, so it outlives the submitter.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["SLURM_STANDIN"])
NUMBER = "4711"


def how() -> str:
    path = STATE / "how"
    return path.read_text() if path.exists() else ""


def kill_wait() -> float:
    path = STATE / "kill_wait"
    return float(path.read_text()) if path.exists() else 3600.0


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines before the first command, unquoted."""
    lines = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    words = [word for line in lines for word in shlex.split(line)]
    return dict((*word.lstrip("-").split("=", 1), "")[:2] for word in words)


def write_state(**changes: object) -> None:
    path = STATE / "job.json"
    job = (json.loads(path.read_text()) if path.exists() else {}) | changes
    draft = STATE / f".job.{os.getpid()}"
    draft.write_text(json.dumps(job))
    draft.replace(path)


def sbatch(arguments: list[str]) -> int:
    """Submit with --parsable --wait: print the job id, wait for the job, exit with its code."""
    assert {"--parsable", "--wait"} <= set(arguments)
    if how() == "refuse":
        print("sbatch: error: invalid partition specified: gpu", file=sys.stderr)
        return 1
    given = options(Path(arguments[-1]).read_text())
    write_state(state="PENDING", name=given["job-name"], options=given)
    while how() == "pending":
        if json.loads((STATE / "job.json").read_text())["state"] != "PENDING":
            return 1
        time.sleep(0.05)
    write_state(state="RUNNING")
    slurmd = [sys.executable, __file__, "slurmd", arguments[-1]]
    daemon = subprocess.Popen(slurmd, start_new_session=True)
    print(NUMBER, flush=True)
    return daemon.wait()


def slurmd(script: str) -> int:
    """Run the batch script with SLURM's variables, and simulate failures."""
    given = json.loads((STATE / "job.json").read_text())["options"]
    nodes, per_node = int(given["nodes"]), int(given["ntasks-per-node"])
    env = os.environ | {
        "SLURM_JOB_ID": NUMBER,
        "SLURM_JOB_NODELIST": "localhost,node[2-3]",
        "SLURM_NTASKS": str(nodes * per_node),
        "SLURM_NTASKS_PER_NODE": str(per_node),
    }
    with open(given["output"].replace("%j", NUMBER), "ab") as output:
        batch = subprocess.Popen(
            ["bash", script],
            env=env,
            cwd=given["chdir"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    code = batch.wait()
    state = json.loads((STATE / "job.json").read_text())["state"]
    if state == "RUNNING":
        write_state(state={"node_fail": "NODE_FAIL"}.get(how(), "FAILED") if code else "COMPLETED")
    return code if code >= 0 else 128 - code


def srun(arguments: list[str]) -> int:
    """Start a task per rank; if one fails, kill all at once (--kill-on-bad-exit)."""
    assert "--kill-on-bad-exit=1" in arguments
    command = [word for word in arguments if not word.startswith("--")]
    world, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for rank in range(world):
        env = os.environ | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)}
        tasks.append(subprocess.Popen(command, env=env, start_new_session=True))
    write_state(tasks=[task.pid for task in tasks])
    timing_out = how() == "timeout"
    (run,) = [Path(word).parent for word in command if word.endswith(".json")]
    while any(task.poll() is None for task in tasks) and not any(task.poll() for task in tasks):
        if (
            timing_out and len(list(run.glob("rank-*.json"))) == world
        ):  # --signal=TERM@…, once all tasks are running
            end(signal.SIGTERM)
            timing_out = False
        time.sleep(0.05)
    if any(task.poll() for task in tasks):
        end(signal.SIGKILL)
    return max((task.wait() % 256 for task in tasks), default=0)


def end(number: signal.Signals) -> None:
    """Send a signal to every task."""
    for pid in json.loads((STATE / "job.json").read_text()).get("tasks", []):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        assert arguments[2] == "localhost,node[2-3]"
        print("localhost\nnode2\nnode3")
    else:
        assert arguments == ["--oneliner", "show", "job", NUMBER]
        print(f"JobId={NUMBER} JobState={json.loads((STATE / 'job.json').read_text())['state']} Reason=None")
    return 0


def scancel(arguments: list[str]) -> int:
    """By name, and by state if one is given: signal a running job, or end it with SIGTERM and after KillWait SIGKILL."""
    path = STATE / "job.json"
    job = json.loads(path.read_text()) if path.exists() else {"name": "", "state": "COMPLETED"}
    given = dict(word.lstrip("-").split("=", 1) for word in arguments)
    if given["name"] != job["name"] or job["state"] not in ("PENDING", "RUNNING"):
        return 0
    if given.get("state", job["state"]) != job["state"]:
        return 0
    if "signal" in given:
        end(signal.Signals[f"SIG{given['signal']}"])
        return 0
    write_state(state="CANCELLED")
    end(signal.SIGTERM)
    subprocess.Popen([sys.executable, __file__, "kill"], start_new_session=True)
    return 0


def kill(arguments: list[str]) -> int:
    """What slurmd does after KillWait to the tasks of a cancelled job that are still there."""
    deadline = time.monotonic() + kill_wait()
    tasks = json.loads((STATE / "job.json").read_text()).get("tasks", [])
    while time.monotonic() < deadline and any(Path(f"/proc/{task}").exists() for task in tasks):
        time.sleep(0.05)
    end(signal.SIGKILL)
    return 0


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "slurmd":
        sys.exit(slurmd(*arguments))
    commands = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel, "kill": kill}
    sys.exit(commands[name](arguments))
