"""The command `ral`: one screen of help without heavy imports, exit codes, errors without tracebacks, completion."""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

import ral
from ral.cli.commands import COMMANDS, EXIT_CODES, RELEASE
from ral.cli.completion import bash
from ral.config.base import read_yaml
from ral.config.keys import HEAD, SCHEMA, json_schema
from ral.release.__main__ import parser as release_parser

HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "dask",
    "deepspeed",
    "great_expectations",
    "prefect",
    "dvc",
)


def ral_command(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ral` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "ral.cli", *arguments],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True,
    )  # fmt: skip


def test_help_is_one_screen_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom ral.cli.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        f"sys.exit(str([m for m in {HEAVY!r} if m in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    "modules", ["ral", "ral.losses, ral.models, ral.evaluation.metrics", "ral.inference.score"]
)
def test_importing_the_library_loads_no_extra(modules: str) -> None:
    extras = ("prefect", "dvc", "dask", "great_expectations", "deepspeed", "matplotlib", "gto")
    script = f"import sys, {modules}; sys.exit(str([m for m in {extras!r} if m in sys.modules] or '') or 0)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    done = ral_command("--version")
    assert (done.returncode, done.stdout) == (0, f"ral {ral.__version__}\n")


def test_a_checkout_that_is_not_installed_has_a_version_too(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "ral", tmp_path / "ral", ignore=shutil.ignore_patterns("__pycache__"))
    # -S: no site-packages, so no metadata of the package.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import ral; print(ral.__version__)"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "0+unknown\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name: str) -> None:
    module = COMMANDS[name].entry.split(":")[0]
    assert importlib.util.find_spec(module), module
    assert callable(COMMANDS[name].load())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("run", "compare")])
def test_every_command_describes_itself_under_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        COMMANDS[name].load()(["--help"])
    assert end.value.code == 0
    assert f"usage: ral {name} " in capsys.readouterr().out


def test_wrong_arguments_exit_with_2() -> None:
    for arguments in ([], ["predikt"], ["config", "chek"], ["doctor", "--now"]):
        done = ral_command(*arguments)
        assert done.returncode == 2, done.stdout
        assert "usage: ral" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_error_is_one_message_and_exits_with_1(tmp_path: Path) -> None:
    done = ral_command("config", "check", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere.yaml does not exist.")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m ral.cli config schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == "{"
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "141"


def test_the_page_lists_every_command_and_exit_code() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    for name in COMMANDS:
        assert f"| `ral {name}" in page, name
    listed = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)}
    assert listed == dict(EXIT_CODES)


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    (tmp_path / "gto.py").write_text("raise ModuleNotFoundError(\"No module named 'gto'\", name='gto')\n")
    done = ral_command(
        "release",
        "list",
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        RAL_STATE_DIR=str(tmp_path / "state"),
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: `ral release` needs the extra `pipeline` (gto is not installed). "
        "Install it: pip install -c constraints.txt -e '.[pipeline]'\n"
    )


def test_release_is_the_same_under_both_names(tmp_path: Path) -> None:
    env = {"RAL_STATE_DIR": str(tmp_path / "state")}
    done = ral_command("release", "list", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"No release in {tmp_path / 'state'}.\n"
    missing = ral_command("release", "show", "v9.0.0", **env)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: There is no release v9.0.0.")


@pytest.mark.parametrize("name", ["run", "compare"])
def test_flows_run_in_a_project_folder_only(name: str, tmp_path: Path) -> None:
    done = ral_command(name, cwd=tmp_path)
    assert done.returncode == 1
    for word in (
        f"error: `ral {name}` works in a project folder",
        str(tmp_path),
        "dvc.yaml",
        "clone",
        "make run",
    ):
        assert word in done.stderr
    inside = ral_command(name, "--help")
    assert inside.returncode == 0, inside.stderr
    assert "python -m flows." in inside.stdout


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, signal\ndef main(arguments):\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
    code = (
        "import sys, types\nfrom ral.cli import __main__, commands\nmodule = types.ModuleType('stopped')\n"
        f"exec({script!r}, module.__dict__)\nsys.modules['stopped'] = module\n"
        "__main__.COMMANDS = {'stopped': commands.Command('stopped:main', '')}\n"
        "sys.exit(__main__.main(['stopped']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def complete(*words: str) -> list[str]:
    """What bash offers after these words."""
    script = (
        'eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ral; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", bash(), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_bash_completes_commands_and_subcommands() -> None:
    assert complete("ral", "") == [*COMMANDS, "--help", "--version"]
    assert complete("ral", "co") == ["config", "compare", "completion"]
    assert complete("ral", "config", "") == ["check", "schema"]
    assert complete("ral", "release", "pr") == ["promote", "predict", "prune"]
    assert complete("ral", "doctor", "") == []  # then bash offers files
    assert ral_command("completion", "bash").stdout == bash()


def test_the_table_has_the_subcommands_of_release() -> None:
    (subparsers,) = [a for a in release_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert tuple(subparsers.choices) == RELEASE


def test_the_committed_schema_is_what_the_command_prints() -> None:
    assert HEAD.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    assert (ROOT / "params.yaml").read_text().startswith(HEAD)
    printed = ral_command("config", "schema").stdout
    assert (ROOT / SCHEMA).read_text() == printed, f"{SCHEMA} is out of date: ral config schema > {SCHEMA}"
    jsonschema.Draft202012Validator.check_schema(json.loads(printed))


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("train.epochs", "ten", "train.epochs"),
        ("train.augment.flip", 2, "train.augment.flip"),
        ("loss.name", "lar", "loss.name"),
        ("train.epoch", 3, "train"),
        ("evaluat", {}, ""),
    ],
)
def test_the_schema_refuses_what_the_check_refuses(key: str, value: object, where: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    content = read_yaml(ROOT / "params.yaml")
    assert not list(validator.iter_errors(content))
    *sections, name = key.split(".")
    part = content
    for section in sections:
        part = part[section]
    part[name] = value
    assert [".".join(map(str, error.path)) for error in validator.iter_errors(content)] == [where]


def test_the_schema_takes_null_for_an_empty_mapping() -> None:
    content = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    content["model"]["options"] = content["train"]["deepspeed_config"] = None
    assert not list(jsonschema.Draft202012Validator(json_schema()).iter_errors(content))
