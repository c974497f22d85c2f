"""`ral doctor`: checks what the pipeline needs of this machine, and says what to do."""

import argparse
import configparser
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Literal

from ral import __version__, artifacts
from ral.config.base import load
from ral.config.environment import load_environment
from ral.config.params import Params
from ral.errors import UserError
from ral.extras import EXTRAS, PIPELINE, install_command, missing

Status = Literal["OK", "WARNING", "ERROR"]

GB, MB = 10**9, 10**6

# Modules of the base package with external code that may not fit this machine; timm is imported by ral.models.
BASE = ("PIL", "huggingface_hub", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "sklearn")

# Free disk space: below the first limit not even the embedded data set fits, below the second no real one does.
LOW_DISK, MODEST_DISK = 1 * GB, 10 * GB
# Docker's default of 64 MB is too small for several training processes.
SMALL_SHARED_MEMORY = 1 * GB
# Shards, archives and sockets of a run; most systems allow 1024.
OPEN_FILES = 1024

# Environment variable -> whose usage statistics it controls, and the value that disables them.
TELEMETRY = {
    "DO_NOT_TRACK": ("Prefect and others", True),
    "PREFECT_SERVER_ANALYTICS_ENABLED": ("the Prefect server", False),
    "GX_ANALYTICS_ENABLED": ("Great Expectations", False),
    "HF_HUB_DISABLE_TELEMETRY": ("huggingface_hub", True),
}
FALSE = ("", "0", "false", "no", "off", "f", "n")


@dataclass(frozen=True)
class Result:
    """What a check has shown; the text of an ERROR or a WARNING says what to do."""

    status: Status
    subject: str
    text: str


def check_python(minimum: tuple[int, int] = (3, 11)) -> Iterator[Result]:
    """The Python version."""
    found = f"Python {sys.version.split()[0]} ({sys.executable}), ral {__version__}"
    if sys.version_info < minimum:
        yield Result("ERROR", "python", f"{found}. Install Python {'.'.join(map(str, minimum))} or newer.")
    else:
        yield Result("OK", "python", found)


def check_torch() -> Iterator[Result]:
    """torch, timm and the other packages of the base installation, and the device that torch computes on."""
    try:
        import torch

        from ral.models import import_timm

        timm = import_timm()
        for name in BASE:
            import_module(name)
    except Exception as error:  # noqa: BLE001  # a package that does not fit the machine raises anything on import
        text = f"{type(error).__name__}: {error}. Install it again: pip install --force-reinstall ral"
        yield Result("ERROR", "packages", " ".join(text.split()))
        return
    yield Result("OK", "packages", f"torch {torch.__version__}, timm {timm.__version__}")

    from ral.training.device import unused_gpu

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Result("OK", "device", ", ".join(names))
    elif (reason := unused_gpu(torch.__version__, torch.version.cuda)) is not None:
        yield Result("WARNING", "device", reason)
    else:
        yield Result("OK", "device", f"CPU, {os.cpu_count()} cores; no NVIDIA GPU")


def check_extras(in_project: bool) -> Iterator[Result]:
    """Whether each extra is installed, and its modules can be imported.

    Args:
        in_project: whether the working folder is a project folder, which needs `pipeline` and what that includes.
    """
    for extra, modules in EXTRAS.items():
        subject, absent = f"extra {extra}", missing(extra)
        needed = in_project and extra in PIPELINE
        if absent and (needed or len(absent) < len(modules)):
            command = install_command("pipeline" if needed else extra)
            text = f"not installed: {', '.join(absent)}. Install: {command}"
            yield Result("ERROR" if needed else "WARNING", subject, text)
        elif absent:
            yield Result("OK", subject, f"not installed, optional: {install_command(extra)}")
        elif (problem := import_problem(modules)) is not None:
            text = (
                f"cannot be imported: {problem}. Install it again: {install_command(extra)} --force-reinstall"
            )
            yield Result("ERROR" if needed else "WARNING", subject, text)
        else:
            yield Result("OK", subject, ", ".join(map(_with_version, modules)))


def import_problem(modules: Iterable[str]) -> str | None:
    """Import modules in a process of their own; returns the last line of what went wrong, or None."""
    script = f"import {', '.join(modules)}"
    if (
        "torchvision" in modules
    ):  # beside a CPU build of torch it needs the operators that import_timm declares
        script = f"from ral.models import import_timm; import_timm(); {script}"
    command = [sys.executable, "-c", script]
    env = os.environ | {name: str(int(off)) for name, (_, off) in TELEMETRY.items()}
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1] if done.returncode else None


def _with_version(module: str) -> str:
    distributions = packages_distributions().get(module, [])
    return f"{module} {version(distributions[0])}" if distributions else module


def check_disk(folders: Mapping[str, Path]) -> Iterator[Result]:
    """Free space of the file systems of some folders, each once.

    Args:
        folders: name of each folder for the message -> its path, which need not exist.
    """
    by_device: dict[int, list[str]] = {}
    free: dict[int, int] = {}
    for name, path in folders.items():
        parent = _existing(path)
        device = parent.stat().st_dev
        by_device.setdefault(device, []).append(f"{name} {path}")
        free[device] = shutil.disk_usage(parent).free
    for device, names in by_device.items():
        text = f"{free[device] / GB:.1f} GB free ({', '.join(names)})"
        if free[device] < MODEST_DISK:
            text += ". Free some space, or set RAL_STATE_DIR (or TMPDIR) to a folder on a larger disk."
        status: Status = "OK" if free[device] >= MODEST_DISK else "WARNING"
        yield Result("ERROR" if free[device] < LOW_DISK else status, "disk", text)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Result]:
    """Size of the shared memory, which several training processes use."""
    if not folder.is_dir():
        yield Result("OK", "shared memory", f"this system has no {folder}")
        return
    total = shutil.disk_usage(folder).total
    if total < SMALL_SHARED_MEMORY:
        text = f"{folder} has {total / MB:.0f} MB, too little for several training processes. "
        text += (
            "In a container: docker run --shm-size=8g (compose: shm_size; Kubernetes: an emptyDir in memory)."
        )
        yield Result("WARNING", "shared memory", text)
    else:
        yield Result("OK", "shared memory", f"{folder}: {total / GB:.1f} GB")


def check_open_files() -> Iterator[Result]:
    """The limit of open files of this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        text = f"at most {soft}. Raise the limit: ulimit -n {OPEN_FILES} (the hard limit is {hard})."
        yield Result("WARNING", "open files", text)
    else:
        yield Result("OK", "open files", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def check_telemetry(project: Path, variables: Mapping[str, str]) -> Iterator[Result]:
    """Settings that enable usage statistics, which the project disables by default.

    Args:
        project: the working folder.
        variables: environment variables.
    """
    problems = []
    for name, (whose, off) in TELEMETRY.items():
        # Without the variable, the code sets it (and prefect.toml that of the server).
        if name in variables and (variables[name].lower() not in FALSE) != off:
            problems.append(f"{name}={variables[name]} enables those of {whose}: unset it")
    if (project / ".dvc").is_dir() and not variables.get("DVC_NO_ANALYTICS"):
        config = configparser.ConfigParser()
        config.read([project / ".dvc/config", project / ".dvc/config.local"])
        if config.get("core", "analytics", fallback="true").lower() not in FALSE:
            problems.append("DVC sends them: dvc config core.analytics false")
    text = "; ".join(problems) if problems else "disabled"
    yield Result("WARNING" if problems else "OK", "usage statistics", text)


def check_folders(project: Path, in_project: bool) -> Iterator[Result]:
    """The state folder with the released models; in a project folder also its parameters, data and model.

    Args:
        project: the working folder.
        in_project: whether it is a project folder.
    """
    try:
        environment = load_environment(project)
    except UserError as error:
        yield Result("ERROR", "state folder", str(error))
        return
    state = environment.state_dir
    yield from _writable(
        "state folder", state, "Set RAL_STATE_DIR (or state_dir in ral.toml) to a folder of your own"
    )
    champion = state / "champion"
    released = f"champion {champion.resolve().name}" if champion.is_dir() else "no champion"
    yield Result("OK", "released models", f"{released} in {state}")
    if not in_project:
        yield Result(
            "OK", "project folder", f"{project} is none; needed for `ral run` and `ral compare` only"
        )
        return
    yield from _writable("project folder", project, "Work in a folder of your own")
    try:
        params = load(project / "params.yaml", Params)
    except UserError as error:
        yield Result("ERROR", "parameters", str(error))
        return
    root = project / environment.located(params.data).root
    if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
        yield Result("OK", "data folder", str(root))
    elif root.resolve() == (project / artifacts.PHANTOM).resolve():
        yield Result("OK", "data folder", f"{root}: the embedded data set, which the first run creates")
    else:
        problem = "is no folder" if not root.is_dir() else "cannot be read by this user"
        text = f"{root} {problem}. Correct RAL_DATA_ROOT (data_root in ral.toml, data.root in params.yaml)."
        yield Result("ERROR", "data folder", text)
    trained = (project / "models/weights").is_dir()
    yield Result("OK", "model folder", f"{project / 'models'}{'' if trained else ': no trained model yet'}")


def _writable(subject: str, path: Path, remedy: str) -> Iterator[Result]:
    parent = _existing(path)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        yield Result("OK", subject, str(path) if path.exists() else f"{path}, created when needed")
    else:
        yield Result("ERROR", subject, f"{path}: this user cannot write to {parent}. {remedy}.")


def _existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def results() -> Iterator[Result]:
    """The results of all checks, one by one as they are known."""
    project = Path.cwd()
    in_project = all((project / name).exists() for name in ("params.yaml", "dvc.yaml", "flows/train_ral.py"))
    yield from check_python()
    yield from check_torch()
    yield from check_extras(in_project)
    folders = {"working folder": project, "temporary files": Path(tempfile.gettempdir())}
    with contextlib.suppress(UserError):  # check_folders reports it
        folders["state folder"] = load_environment(project).state_dir
    yield from check_disk(folders)
    yield from check_shared_memory()
    yield from check_open_files()
    yield from check_telemetry(project, os.environ)
    yield from check_folders(project, in_project)


def main(arguments: list[str]) -> int:
    """Print the results; returns 1 if something must be mended, else 0."""
    argparse.ArgumentParser(
        prog="ral doctor",
        description="Check Python, packages, device, disk, limits, usage statistics and folders. OK: nothing to do. "
        "WARNING: works, with a disadvantage. ERROR: must be mended; the exit code is then 1.",
    ).parse_args(arguments)
    failed = False
    for result in results():
        print(f"{result.status:<8} {result.subject:<18} {result.text}", flush=True)
        failed |= result.status == "ERROR"
    return 1 if failed else 0
