"""Shared by all tests: small phantom data, copies of the project to run in, real images where there are any."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from forks import forks
from hypothesis import HealthCheck, settings
from ruamel.yaml import YAML

from ral.launch.gpus import count_gpus

ROOT = Path(__file__).parent.parent

Once = Callable[[str, Callable[[Path], object]], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]

# Two workers that compute with two threads each on two cores spend most of their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests send these; under nohup, or behind `&`, processes would be started that ignore them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Property tests: the examples follow from the test, not from a random seed, and no test fails because the machine is busy.
settings.register_profile(
    "ral",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ral")

# NIH ChestX-ray14 as NIH ships it, or a part of it; never inside the project.
REAL_IMAGES = Path(os.environ.get("RAL_REAL_IMAGES", ROOT.parent / "shared/data/nih-chestxray14-64px"))

# A chain that a test can afford: small images, a tiny network, few epochs.
SMALL = {
    "phantom": {"images": 400, "size": 48},
    "preprocess": {"size": 32},
    "model": {"backbone": "test_resnet", "options": {}},
    "train": {"epochs": 2, "batch_size": 32, "threads": 1},
    "evaluate": {"replicates": 100, "min_positives": 1},
}


# Folders of tests that take minutes: begun first, so that no worker is left alone with one at the end.
SLOW = ("training", "end_to_end", "flows")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of the machine from the tests and every process that they start, except in `pytest -m gpu`.

    The tests start more processes than a machine has GPUs, and compare digits that only a CPU reproduces.
    """
    if not _gpu_tests_selected(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slow folders first; else the order stays. Skip tests of the GPU where it is hidden or there is none."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = ""
    if marked and not _gpu_tests_selected(config):
        reason = "GPUs are hidden from the other tests: pytest -m gpu"
    elif marked and not count_gpus():
        reason = "torch finds no GPU here"
    for item in marked if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))


def _gpu_tests_selected(config: pytest.Config) -> bool:
    return config.option.markexpr == "gpu"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Folder of real images; without it the test is skipped."""
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"no real images at {REAL_IMAGES}: set RAL_REAL_IMAGES to a folder of NIH ChestX-ray14")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which `python` and `dvc` are the ones that run the tests, and the user's own state is
    left alone.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAL_", "PREFECT_", "MAKE", "MFLAGS"))
    }
    state = str(tmp_path_factory.mktemp("state"))
    # Prefect's own limits, which a busy machine may break.
    patient = {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
        "PREFECT_API_REQUEST_TIMEOUT": "600",
    }
    return keep | patient | {"PATH": path, "DO_NOT_TRACK": "1", "RAL_STATE_DIR": state}


def completed(
    command: tuple[str, ...], environment: dict[str, str], cwd: Path, code: int | None = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; it must exit with `code`."""
    done = subprocess.run(
        command, cwd=cwd, env=environment | env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert code is None or done.returncode == code, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done


@pytest.fixture(scope="session")
def run(environment: dict[str, str]) -> Run:
    """Run a command in a folder and return what it printed; it must exit with `code`."""
    return lambda *command, **settings: completed(command, environment, **settings)


@pytest.fixture(scope="session")
def fork(environment: dict[str, str]) -> Run:
    """As `run` for `python -m`: run a module in a fork of a process that has imported the slow libraries."""
    settings = environment | {"PYTHONPATH": str(ROOT)}
    return lambda module, *arguments, **others: completed(
        (*forks().command(module), *arguments), settings, **others
    )


def copy_project(folder: Path) -> Path:
    """Copy the project's files (tracked, or new and not ignored) to `folder`, as a git repository of its own."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file() and Path(name).name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def set_params(folder: Path, changes: dict) -> None:
    """Change params.yaml in `folder`; nested sections are merged; `options`, and what is null, is replaced."""
    yaml = YAML()
    content = yaml.load((folder / "params.yaml").read_text())

    def merge(target: dict, values: dict) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(target[key], dict) and key != "options":
                merge(target[key], value)
            else:
                target[key] = value

    merge(content, changes)
    with (folder / "params.yaml").open("w") as stream:
        yaml.dump(content, stream)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the project with small parameters, nothing run yet."""
    folder = copy_project(tmp_path / "project")
    set_params(folder, SMALL)
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once per test run, by whichever worker of pytest-xdist asks first; do not change it, copy it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the workers' folders are inside

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / f"once-{name}", base / f"once-{name}.done"
        with (base / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a try that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def small_phantom(once: Once) -> Path:
    """A phantom data folder of 400 images; do not change it, copy it."""
    from ral.config.data import PhantomConfig
    from ral.phantom.archive import write_phantom

    config = PhantomConfig(images=400, size=48, floor=0.009, seed=1)
    return once("phantom", lambda folder: write_phantom(folder, config))


@pytest.fixture(scope="session")
def phantom_prepared(small_phantom: Path, once: Once) -> Path:
    """`small_phantom`, prepared at 32 pixels in shards of 100; do not change it, copy it."""
    from trainings import prepare_phantom

    return once("prepared", lambda folder: prepare_phantom(small_phantom, folder))


@pytest.fixture(scope="session")
def phantom_trained(phantom_prepared: Path, once: Once) -> Path:
    """Outputs of a training of two epochs on `phantom_prepared`, with batch norm and without EMA; do not change it, copy it."""
    from trainings import BATCH_NORM, train

    return once("trained", lambda folder: train(phantom_prepared, folder, model=BATCH_NORM, ema_decay=None))


@pytest.fixture(scope="session")
def phantom_evaluated(phantom_prepared: Path, phantom_trained: Path, once: Once) -> Path:
    """A project folder after prepare, train and evaluate; report and card are stubs; do not change it, copy it."""
    from trainings import evaluate_phantom

    return once("evaluated", lambda folder: evaluate_phantom(folder, phantom_prepared, phantom_trained))


@pytest.fixture(scope="session")
def chain_done(once: Once, run: Run) -> Path:
    """A copy of the project with small parameters in which the chain has run and is committed; do not change it, copy it."""

    def make(folder: Path) -> None:
        copy_project(folder)
        set_params(folder, SMALL)
        run("dvc", "repro", cwd=folder)
        run("git", "add", "-A", cwd=folder)
        run(
            "git",
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@example.org",
            "commit",
            "-qm",
            "run",
            cwd=folder,
        )

    return once("chain", make)


@pytest.fixture
def phantom_copy(small_phantom: Path, tmp_path: Path) -> Path:
    """A phantom data folder that a test may damage."""
    return Path(shutil.copytree(small_phantom, tmp_path / "images"))


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds, however busy the machine is; in vain, until pytest's own limit for a test."""

    def wait(holds: Callable[[], object], every: float = 0.2) -> None:
        while not holds():
            time.sleep(every)

    return wait


def processes_in(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        inside = (process.info["cwd"] or "").startswith(str(folder))
        if inside and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or []))
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the project, built from a copy since the build writes beside its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for package in ("ral", "tasks", "flows"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--quiet", "-w", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a folder that is a file system of a given size, such as 256k; skipped where none can be mounted."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
