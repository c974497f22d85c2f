"""The times that a checkpoint on a GPU needs fit together, in the code, the examples of deploy/ and the docs."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from flows.stage_runner import terminate_timeout
from ral.config.environment import SlurmConfig, TrainingTarget
from ral.launch.base import GRACE_GPU, grace_seconds

DEPLOY = ROOT / "deploy"


def test_whoever_ends_a_run_lets_training_save_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TrainingTarget(launcher="slurm", slurm=SlurmConfig(gpus_per_node=1))
    assert grace_seconds(target) == GRACE_GPU
    assert terminate_timeout(target) == GRACE_GPU + 7  # of the flow, which must end before its worker
    monkeypatch.setenv("RAL_TRAINING_GRACE", "100")
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path))
    assert terminate_timeout() == 107
    unit = (DEPLOY / "slurm/ral-worker.service").read_text()
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    services = YAML(typ="safe").load(DEPLOY / "compose.yaml")["services"]
    grace = json.loads((DEPLOY / "kubernetes/job-template.json").read_text())["variables"]["properties"][
        "grace"
    ]
    assert [stop, services["worker"]["stop_grace_period"], grace["default"]] == ["90", "90s", 90]
    assert GRACE_GPU + 30 == 90


def test_the_docs_name_these_times() -> None:
    text = (ROOT / "docs/launching.md").read_text()
    for seconds in (GRACE_GPU, GRACE_GPU + 7, GRACE_GPU + 10, GRACE_GPU + 30, GRACE_GPU + 60):
        assert f"| {seconds:g} s |" in text, seconds
