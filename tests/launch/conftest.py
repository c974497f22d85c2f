"""Fixtures for the launchers: a run folder, fake ranks, and a check for remaining processes."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ral.config.environment import TrainingTarget
from ral.errors import UserError
from ral.launch import launch

HERE = Path(__file__).parent
RANK = (sys.executable, str(HERE / "rank.py"))


class Run:
    """A run folder, and launches in it."""

    def __init__(self, base: Path, environment: dict[str, str]) -> None:
        self.folder = base / f"run-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir()
        self.environment = environment | {"PYTHONPATH": str(HERE.parent.parent)}

    def specify(self, mode: str) -> Path:
        spec = self.folder / "train.json"
        content = {"mode": mode, "run": str(self.folder), "failure": str(self.folder / "rank_failure.json")}
        spec.write_text(json.dumps(content | {"state_dir": str(self.folder / "state")}))
        return spec

    def launch(self, mode: str, target: TrainingTarget) -> UserError | None:
        """Launch in this process; the error, if there is one."""
        try:
            launch(self.specify(mode), target, self.folder, RANK)
        except UserError as error:
            return error
        return None

    def start(self, mode: str, target: TrainingTarget) -> subprocess.Popen:
        """Launch in a process of its own."""
        self.specify(mode)
        path = self.folder / "target.json"
        path.write_text(target.model_dump_json())
        return subprocess.Popen(
            [sys.executable, str(HERE / "launcher.py"), str(self.folder), str(path)],
            env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def ranks(self) -> list[dict]:
        """Environment variables of the started ranks, by rank."""
        ranks = [json.loads(path.read_text()) for path in self.folder.glob("rank-*.json")]
        return sorted(ranks, key=lambda rank: int(rank["RANK"]))

    def remaining(self) -> list[str]:
        """Commands of running processes that contain this run's folder."""
        commands = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = " ".join(process.info["cmdline"] or [])
            dead = process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid()
            if str(self.folder) in command and not dead:
                commands.append(command)
        return commands


@pytest.fixture
def job(tmp_path: Path, environment: dict[str, str]) -> Iterator[Run]:
    """A run folder; processes left over from a failed test are killed."""
    job = Run(tmp_path, environment)
    yield job
    for process in psutil.process_iter(["cmdline"]):
        if str(job.folder) in " ".join(process.info["cmdline"] or []):
            process.kill()
