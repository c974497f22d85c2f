"""New environments that have the base dependencies of the package and nothing else, made from those that run the tests.

Each distribution's files are linked, so nothing is downloaded; pip then installs the package itself, and refuses to
if a dependency is missing. Never upgrade or uninstall anything in such an environment: the files are those of
the tests' own environment.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def base_requirements() -> list[str]:
    """The dependencies of pyproject.toml, without extras."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that some requirements need, with all that those need on this machine."""
    found: dict[tuple[str, str], None] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            try:
                lines = distribution(name).requires or []
            except PackageNotFoundError:
                continue  # CUDA's packages beside a CPU build of torch; pip will complain of others
            found[name, extra] = None
            needed = map(Requirement, lines)
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def new_environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment with what some requirements need; returns its Python.

    Args:
        folder: the environment's folder, created.
        requirements: lines as in pyproject.toml.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(requirements):
        installed = distribution(name)
        home = Path(str(installed.locate_file("")))
        tops = {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(home / top)
    return folder / "bin/python"


def install(python: Path, *what: str | Path) -> None:
    """Install with the pip that runs the tests, without an index: all dependencies must be there already."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-build-isolation",
         *what],
        check=True, env=own_environment() | {"PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip


def own_environment() -> dict[str, str]:
    """Environment variables without those that lead Python to this checkout or pip to packages."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "RAL_"))
    }
