"""`ral doctor`: each check tells what is wrong and what to do, and what must be mended makes the exit code 1."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, copy_project

from ral.cli import doctor
from ral.cli.doctor import Result
from ral.extras import EXTRAS

SUBJECTS = ("python", "packages", "device", "disk", "shared memory", "open files", "usage statistics")


def one(results: Iterator[Result], subject: str) -> Result:
    """The only result about a subject."""
    (result,) = [result for result in results if result.subject == subject]
    return result


@pytest.mark.long  # imports every extra in a process of its own; the next test, one of them
def test_a_sound_project_folder_has_nothing_to_mend(tmp_path: Path) -> None:
    project, state = copy_project(tmp_path / "project"), str(tmp_path / "state")
    done = subprocess.run(
        [sys.executable, "-m", "ral.cli", "doctor"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT), "RAL_STATE_DIR": state}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    for subject in (*SUBJECTS, *(f"extra {extra}" for extra in EXTRAS)):
        assert f" {subject} " in done.stdout
    assert not Path(state).exists()  # it only looks


def test_what_must_be_mended_makes_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copy_project(tmp_path / "project"))
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(doctor, "EXTRAS", {"cluster": EXTRAS["cluster"]})  # all of them take half a minute
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert not [line for line in printed.splitlines() if line.startswith("ERROR")]
    for subject in (*SUBJECTS, "extra cluster"):
        assert f" {subject} " in printed
    assert not (tmp_path / "state").exists()  # it only looks
    monkeypatch.setenv("RAL_DATA_ROOT", str(tmp_path / "nowhere"))
    capsys.readouterr()
    assert doctor.main([]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ERROR")]
    assert "nowhere is no folder. Correct RAL_DATA_ROOT" in line


def test_an_old_python_is_an_error() -> None:
    assert one(doctor.check_python(), "python").status == "OK"
    result = one(doctor.check_python((99, 0)), "python")
    assert result.status == "ERROR"
    assert "Install Python 99.0 or newer" in result.text


def test_a_gpu_that_torch_cannot_use_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this build of torch has CUDA")
    assert one(doctor.check_torch(), "device").status == "OK"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    result = one(doctor.check_torch(), "device")
    assert result.status == "WARNING"
    assert "is a build without CUDA" in result.text
    assert "pip install" in result.text


def test_a_base_package_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = one(doctor.check_torch(), "packages")
    assert result.status == "ERROR"
    assert "safetensors" in result.text
    assert "pip install" in result.text


@pytest.mark.parametrize(
    ("absent", "in_project", "status", "words"),
    [
        (("pydicom", "gdcm"), False, "OK", "not installed, optional: pip install"),
        (("gdcm",), False, "WARNING", "not installed: gdcm. Install: pip install"),
        (("gdcm",), True, "WARNING", "not installed: gdcm. Install: pip install"),
    ],
)
def test_an_optional_extra(
    absent: tuple[str, ...], in_project: bool, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"dicom": EXTRAS["dicom"]})
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    result = one(doctor.check_extras(in_project), "extra dicom")
    assert (result.status, words in result.text) == (status, True), result.text


def test_a_project_folder_needs_the_extras_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"train": EXTRAS["train"]})
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert one(doctor.check_extras(False), "extra train").status == "OK"
    result = one(doctor.check_extras(True), "extra train")
    assert result.status == "ERROR"
    assert result.text == "not installed: deepspeed. Install: pip install -c constraints.txt -e '.[pipeline]'"


def test_an_extra_that_is_installed_but_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydicom.py").write_text("raise ImportError('libbroken.so.1: cannot open')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(doctor, "EXTRAS", {"dicom": EXTRAS["dicom"]})
    result = one(doctor.check_extras(False), "extra dicom")
    assert result.status == "WARNING"
    assert "cannot be imported: ImportError: libbroken.so.1" in result.text


def test_a_full_disk_is_an_error(small_disk, tmp_path: Path) -> None:
    folder = small_disk("10m")
    result = one(doctor.check_disk({"state folder": folder / "not/there"}), "disk")
    assert result.status == "ERROR"
    assert "RAL_STATE_DIR" in result.text
    both = [
        *doctor.check_disk({"state folder": folder, "working folder": folder / "work", "others": Path("/")})
    ]
    assert len(both) == 2  # one per file system
    (small,) = [result for result in both if "working folder" in result.text]
    assert "state folder" in small.text


def test_small_shared_memory_is_a_warning(small_disk, tmp_path: Path) -> None:
    result = one(doctor.check_shared_memory(small_disk("64m")), "shared memory")
    assert result.status == "WARNING"
    assert "--shm-size" in result.text
    assert one(doctor.check_shared_memory(tmp_path / "none"), "shared memory").status == "OK"


def test_few_open_files_are_a_warning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (doctor.OPEN_FILES - 1, hard))
        result = one(doctor.check_open_files(), "open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.status == "WARNING"
    assert "ulimit -n" in result.text


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ""),
        ({"DO_NOT_TRACK": "1", "GX_ANALYTICS_ENABLED": "False"}, ""),
        ({"DO_NOT_TRACK": "0"}, "DO_NOT_TRACK=0 enables those of Prefect"),
        ({"GX_ANALYTICS_ENABLED": "true"}, "Great Expectations"),
        ({"PREFECT_SERVER_ANALYTICS_ENABLED": "1"}, "the Prefect server"),
        ({"HF_HUB_DISABLE_TELEMETRY": "no"}, "huggingface_hub"),
    ],
)
def test_enabled_usage_statistics_are_a_warning(variables: dict[str, str], words: str) -> None:
    result = one(doctor.check_telemetry(ROOT, variables), "usage statistics")
    assert result.status == ("WARNING" if words else "OK"), result.text
    assert words in result.text


def test_dvc_of_another_project_may_send_usage_statistics(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    assert "dvc config" in one(doctor.check_telemetry(tmp_path, {}), "usage statistics").text
    assert one(doctor.check_telemetry(tmp_path, {"DVC_NO_ANALYTICS": "1"}), "usage statistics").status == "OK"
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    assert one(doctor.check_telemetry(tmp_path, {}), "usage statistics").status == "OK"


def test_folders_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    state = tmp_path / "state"
    monkeypatch.setenv("RAL_STATE_DIR", str(state))
    assert "which the first run creates" in one(doctor.check_folders(tmp_path, True), "data folder").text
    assert "no trained model yet" in one(doctor.check_folders(tmp_path, True), "model folder").text
    assert "no champion" in one(doctor.check_folders(tmp_path, True), "released models").text
    assert "`ral run`" in one(doctor.check_folders(tmp_path, False), "project folder").text

    (state / "releases/v1.2.0").mkdir(parents=True)
    (state / "champion").symlink_to("releases/v1.2.0")
    (tmp_path / "models/weights").mkdir(parents=True)
    assert "champion v1.2.0" in one(doctor.check_folders(tmp_path, True), "released models").text
    assert "no trained model" not in one(doctor.check_folders(tmp_path, True), "model folder").text

    (tmp_path / "params.yaml").write_text("a: 1\n")
    assert one(doctor.check_folders(tmp_path, True), "parameters").status == "ERROR"


def test_a_state_folder_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path / "file/state"))
    result = one(doctor.check_folders(tmp_path, False), "state folder")
    assert result.status == "ERROR"
    assert "RAL_STATE_DIR" in result.text
    monkeypatch.setenv("RAL_STATE_DIR", "not/absolute")
    assert "is relative" in one(doctor.check_folders(tmp_path, False), "state folder").text
