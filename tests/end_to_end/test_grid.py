"""The flow compare: killed in the middle, it goes on with what is missing, and ends with the paired comparison."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, copy_project, processes_in, set_params

from flows.workspace import git

GRID = ("loss.name=ral,bce", "train.seed=0,1")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_grid_survives_a_crash_in_the_middle(
    tmp_path: Path,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until,
) -> None:
    project = copy_project(tmp_path / "project")
    set_params(project, SMALL)
    git(project, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "small")
    state = tmp_path / "state"
    env = environment | {"RAL_STATE_DIR": str(state), "PREFECT_HOME": str(tmp_path / "home")}
    workspace = state / "workspaces/compare"

    def experiments() -> list[str]:
        try:
            refs = git(
                workspace, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps"
            ).splitlines()
        except subprocess.CalledProcessError:  # not cloned yet
            return []
        return [ref for ref in refs if ref.count("/") == 4]  # refs/exps/exec is DVC's own

    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.compare", *GRID], cwd=project, env=env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: len(experiments()) >= 1)
    wait_until(lambda: any("ral.training" in line for line in processes_in(workspace)))
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    wait_until(lambda: not processes_in(state))
    kept = experiments()
    assert 1 <= len(kept) < 4
    printed = run(
        "python", "-m", "flows.compare", *GRID, "--out", str(tmp_path / "table.txt"), cwd=project,
        **{name: env[name] for name in ("RAL_STATE_DIR", "PREFECT_HOME")},
    ).stdout  # fmt: skip
    assert set(kept) < set(experiments())
    assert len(experiments()) == 4
    table = (tmp_path / "table.txt").read_text()
    assert table in printed
    assert "test images of" not in printed  # models are chosen on validation
    assert table.startswith("PHANTOM")
    assert "AP, macro, val images, against ral-0-" in table
    assert "Over 2 seeds (bce-0-" in table
    assert git(project, "status", "--short") == ""
    wait_until(lambda: not processes_in(state))
