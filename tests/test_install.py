"""Installing: what is imported is declared, and the pins resolve from plain PyPI with every Python that is
supported.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from base_install import base_requirements, install, new_environment
from conftest import ROOT, copy_project

from ral.errors import UserError
from ral.extras import EXTRAS, PIPELINE, extra_of, missing, require

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = ("ral", "tasks", "flows", "benchmarks", "tests", "docs")
# Imported only where CUDA is, and a CUDA build of torch brings it along.
WITH_CUDA = {"triton"}
PYTHONS = ("3.11", "3.12", "3.13")


def normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(lines: list[str]) -> set[str]:
    """Names of the packages that lines of requirements ask for; `ral[a,b]` stands for the extras a and b."""
    found = set()
    for line in lines:
        if own := re.match(r"ral\[(.*)\]$", line):
            found |= declared(*own[1].split(","))
        else:
            found.add(normal(re.match(r"[\w.-]+", line)[0]))
    return found


def declared(*extras: str) -> set[str]:
    """Names of the packages of some extras."""
    return set().union(*(required(PROJECT["optional-dependencies"][extra]) for extra in extras))


def imports(package: str) -> Iterator[tuple[str, Path]]:
    """Top modules that the files of a folder import, however deep in the code."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0], path


@pytest.mark.parametrize("package", OWN)
def test_what_is_imported_is_declared(package: str) -> None:
    extras = set(PROJECT["optional-dependencies"])
    if package not in ("tests", "docs"):
        extras -= {"dev"} if package == "benchmarks" else {"dev", "bench"}
    allowed = required(PROJECT["dependencies"]) | declared(*extras) | WITH_CUDA
    own = {*OWN, *(path.stem for path in (ROOT / "tests").rglob("*"))}
    distributions = packages_distributions()
    for module, path in imports(package):
        if module in sys.stdlib_module_names or module in own:
            continue
        owners = {normal(name) for name in distributions.get(module, [module])}
        assert owners & allowed, f"{path} imports {module}: declare {' or '.join(owners)} in pyproject.toml"


def test_the_extras_are_those_of_the_package() -> None:
    """`ral.extras` has the modules that each extra adds; kubernetes, bench and dev are not for the package's users."""
    distributions = packages_distributions()
    own = set(PROJECT["optional-dependencies"]) - {"all", "bench", "dev", "kubernetes"}
    assert {name for name in own if PROJECT["optional-dependencies"][name]} == set(EXTRAS)
    for extra, modules in EXTRAS.items():
        owners = {normal(owner) for module in modules for owner in distributions[module]}
        lines = [line for line in PROJECT["optional-dependencies"][extra] if not line.startswith("ral[")]
        # distributed is an extra of its own, and torch is a dependency, which `pipeline` pins.
        assert owners == required(lines) - {"torch"} - ({"distributed"} if extra == "slurm" else set()), extra
    includes = re.match(r"ral\[(.*)\]$", PROJECT["optional-dependencies"]["pipeline"][0])[1].split(",")
    assert set(PIPELINE) == {"pipeline", *includes}
    assert declared(*own) == declared("all")


def test_the_base_package_needs_no_extra() -> None:
    """What the extras bring is not among the dependencies, but for the pin of torch."""
    assert declared(*EXTRAS) & required(PROJECT["dependencies"]) == {"torch"}


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    require("dicom", "reading DICOM")
    assert (extra_of("gto.api"), extra_of("dask.array"), extra_of("json")) == ("pipeline", "data", None)
    monkeypatch.setitem(sys.modules, "gdcm", None)
    assert missing("dicom", "data") == ["gdcm"]
    with pytest.raises(UserError) as caught:
        require("dicom", "`ral predict` on DICOM images")
    assert str(caught.value) == (
        "`ral predict` on DICOM images needs the extra `dicom` (gdcm is not installed). "
        "Install it: pip install -c constraints.txt -e '.[dicom]'"
    )
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"needs the extra `pipeline`.*deepspeed is not installed"):
        require("pipeline", "`ral run`")


def pins() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def test_every_package_that_is_declared_is_pinned_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert len(pins()) == len(lines)
    optional = set(PROJECT["optional-dependencies"])
    assert required(PROJECT["dependencies"]) | declared(*optional) <= set(pins())


def commands(*settings: str) -> list[list[str]]:
    """What make would run to install, without and with the developers' extra."""
    shown = subprocess.run(
        ["make", "-n", "-B", ".venv/installed-dev", *settings],
        cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    ).stdout  # fmt: skip
    return [line.split() for line in shown.splitlines() if " pip install " in line]


def test_make_takes_the_pins_and_an_index_for_torch_only_if_there_is_one() -> None:
    for command in commands():
        assert command[command.index("-c") + 1] == "constraints.txt"
        assert not [word for word in command if "index" in word]
    for command in commands("TORCH_INDEX=https://example.org/cpu"):
        assert command[command.index("--extra-index-url") + 1] == "https://example.org/cpu"


def test_make_installs_what_the_pipeline_uses() -> None:
    pipeline, developers = commands()
    assert pipeline[-2:] == ["-e", "'.[pipeline]'"]
    assert developers[-2:] == ["-e", "'.[dev]'"]
    assert declared("pipeline") <= declared("dev")


def test_an_editable_install_finds_stages_and_flows_from_any_folder(tmp_path: Path) -> None:
    """Workers start in folders of their own; only the project's folder has tasks and flows."""
    project = copy_project(tmp_path / "project")
    python = new_environment(tmp_path / "venv", [*base_requirements(), "setuptools"])
    install(python, "-e", project)
    script = "import ral, tasks.step, importlib.util as u; print(ral.__file__, u.find_spec('flows.train_ral').origin)"
    found = subprocess.run(
        [python, "-c", script], cwd="/", env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(project / "ral/__init__.py"), str(project / "flows/train_ral.py")]
    assert (python.parent / "ral").is_file()


def interpreter(version: str) -> str:
    """A Python of that version: on PATH, or among those of pyenv; without one the test is skipped."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    places = [
        shutil.which(f"python{version}"),
        *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python"))),
    ]
    for place in filter(None, places):
        done = subprocess.run([place, "-c", "import ensurepip, venv"], capture_output=True)
        if done.returncode == 0:  # what pyenv puts on PATH may stand for a version that is not chosen
            return place
    pytest.skip(f"no Python {version} on PATH or in {pyenv}")


@pytest.fixture(scope="module", params=PYTHONS)
def pip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A new pip of each Python; older ones load whole packages where they only look."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([interpreter(request.param), "-m", "venv", folder], check=True)
    command = [str(folder / "bin/python"), "-m", "pip", "--isolated"]
    done = subprocess.run(
        [*command, "install", "--quiet", "--upgrade", "pip"], env=plain(), capture_output=True, text=True
    )
    if done.returncode and re.search("connection|resolution|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"PyPI does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return command


def plain() -> Mapping[str, str]:
    """The environment without what this machine tells pip: its files, folders, indexes, constraints."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return keep | {"PIP_CONFIG_FILE": os.devnull}


def resolve(pip: list[str], folder: Path, extra: str, *options: str) -> dict[str, str]:
    """Package -> version that pip would install; nothing is installed, and of a wheel only its metadata is read."""
    for name in ("pyproject.toml", "LICENSE", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run(
        [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--no-cache-dir", "--use-feature=fast-deps",
         "--report", folder / "report.json", "-c", folder / "constraints.txt", *options, f"{folder}{extra}"],
        env=plain(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {
        normal(item["metadata"]["name"]): item["metadata"]["version"]
        for item in json.loads((folder / "report.json").read_text())["install"]
    }
    del found["ral"]
    return found


@pytest.mark.long
@pytest.mark.parametrize("extra", ["", "[pipeline]", "[dev]", "[kubernetes]"])
def test_pins_resolve_from_plain_pypi_and_leave_nothing_open(
    pip: list[str], tmp_path: Path, extra: str
) -> None:
    found = resolve(pip, tmp_path, extra)
    print(f"{len(found)} packages")
    assert found.items() <= pins().items(), dict(found.items() - pins().items())


def write_wheel(folder: Path, name: str, version: str) -> None:
    """Put a wheel with nothing but metadata into an index of packages that is a folder."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    links = (f'<a href="{file.name.replace("+", "%2B")}">{file.name}</a>' for file in place.glob("*.whl"))
    (place / "index.html").write_text("\n".join(links))


@pytest.mark.long
def test_builds_without_cuda_are_preferred_where_an_index_has_them(pip: list[str], tmp_path: Path) -> None:
    """PyTorch's own index cannot be reached from everywhere: this one has as little, under the same names."""
    for name in ("torch", "torchvision"):
        write_wheel(tmp_path / "index", name, f"{pins()[name]}+cpu")
    setting = f"TORCH_INDEX={(tmp_path / 'index').as_uri()}"
    options = commands(setting)[0]
    place = options.index("--extra-index-url")
    found = resolve(pip, tmp_path, "[dev]", *options[place : place + 2])
    for name in ("torch", "torchvision"):
        assert found.pop(name) == f"{pins()[name]}+cpu"
    assert found.items() <= pins().items()
    assert not [name for name in found if name.startswith(("nvidia-", "cuda-"))]
