"""`python -m benchmarks.gpu` on a CPU: its JSON, and checks that fail, hang or do not apply."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, processes_in


def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and everything printed."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.long
def test_a_check_that_crashes_leaves_the_others_alone(tmp_path: Path) -> None:
    out = tmp_path / "report.txt"
    code, report, printed = run("--backbone", "no_such_net", "--out", str(out), "autocast", "step", "kernel")
    assert code == 1
    assert set(report) == {"device", "torch", "python", "failed", "not_applicable", "checks"}
    assert report["failed"] == ["autocast"]
    assert list(report["not_applicable"]) == ["step"]
    assert "no_such_net" in report["checks"]["autocast"]["reason"]
    kernel = report["checks"]["kernel"]
    assert kernel["result"] == "ok"
    assert 0 < kernel["figures"]["float32 error of a gradient"] <= 2e-6
    assert out.read_text() == printed


def test_a_check_that_runs_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code, report, _ = run("--limit", "0.1", "kernel")
    assert code == 1
    assert report["failed"] == ["kernel"]
    assert "still running after 0.1 s" in report["checks"]["kernel"]["reason"]
    assert not [command for command in processes_in(ROOT) if str(tmp_path) in command]
    assert not list(tmp_path.iterdir())


def test_what_means_nothing_on_a_cpu_fails_nothing() -> None:
    code, report, _ = run("step", "fallback")
    assert code == 0
    assert report["failed"] == []
    assert all(report["not_applicable"].values())


@pytest.mark.long
def test_whatever_a_cpu_can_check_passes() -> None:
    code, report, printed = run()
    assert report["failed"] == [], printed
    assert code == 0
    assert {name for name, check in report["checks"].items() if check["result"] == "ok"} >= {
        "kernel", "autocast", "losses", "reproduce", "compile", "zero", "training", "resume",
    }  # fmt: skip


def test_help_is_instant_and_an_unknown_check_is_refused() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['benchmarks.gpu', '--help']\n"
        "try: runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(str([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "benchmarks.gpu", "kernal"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such check: kernal. Checks: kernel, " in done.stderr
