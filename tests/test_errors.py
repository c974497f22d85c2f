"""Messages hold no password and nothing that a terminal obeys."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from flows.settings import load_flows_environment
from ral.errors import UserError, exit_with_message, for_user, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:token@host/x.git", "https://host/x.git"),
        ("https://token@host/x.git", "https://host/x.git"),
        ("HTTPS://user:token@host:8443", "HTTPS://host:8443"),
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://user:a/b?c#d@host/x", "https://host/x"),
        ("https://user:@host/x https://user:it's@host/x", "https://host/x https://host/x"),
        ("fatal: unable to access 'http://u:t@h/x/': no", "fatal: unable to access 'http://h/x/': no"),
        ("['git', 'push', 'https://u:t@h/x']", "['git', 'push', 'https://h/x']"),
        ("postgresql+asyncpg://u:t@h/d", "postgresql+asyncpg://h/d"),
        ("ssh://git:t@h/x", "ssh://h/x"),
        ("ssh://git@h/x git@h:x", "ssh://git@h/x git@h:x"),
        ("https://h:8080/a@b and https://h/a@b, x@y", "https://h:8080/a@b and https://h/a@b, x@y"),
        ("https://h/x?a=1&private_token=t-1#y 'z'", "https://h/x?a=1&private_token=***#y 'z'"),
        ("azure://h/x?sv=2&sig=a%2Fb", "azure://h/x?sv=2&sig=***"),
        ("file:///data/a@b", "file:///data/a@b"),
    ],
)
def test_addresses_lose_user_and_password(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_nothing_in_a_message_steers_a_terminal() -> None:
    cell = "a\x1b]0;owned\x07\x1b[2Jb\r\x9bc\u202egnp.\n\tüé\u200d文"
    assert plain(cell) == r"a\x1b]0;owned\x07\x1b[2Jb\r\x9bc\u202egnp." + "\n\tüé\u200d文"


def test_every_error_for_people_is_plain(tmp_path) -> None:
    error = UserError("row 3: \x1b[31m of https://u:t@h/x", "disk", True)
    assert str(error) == r"row 3: \x1b[31m of https://h/x"
    with pytest.raises(UserError) as refused:
        load_flows_environment(tmp_path, {"RAL_FLOWS_RETRIES": "https://u:hunter2@h/x"})
    assert "hunter2" not in str(refused.value)


def test_what_the_user_can_fix_ends_in_one_line_and_a_bug_in_its_trace() -> None:
    full, broken = OSError(errno.ENOSPC, "", "/disk"), OSError(errno.EBADF, "", "/disk")
    assert for_user(UserError("row 3 is empty.")) == "row 3 is empty."
    assert for_user(full).startswith("/disk: No space left on device. Free some space")
    for error in (UserError("row 3 is empty."), full):
        with (
            pytest.raises(SystemExit, match=r"^error: (row 3 is empty\.|/disk: No space)"),
            exit_with_message(),
        ):
            raise error
    for bug in (broken, ValueError("x"), KeyError("x")):
        with pytest.raises(type(bug)) as raised, exit_with_message():
            raise bug
        assert raised.value is bug
    with pytest.raises(SystemExit) as left, exit_with_message():
        sys.exit(3)
    assert left.value.code == 3


COMMANDS = [
    "ral.config params.yaml", "ral.config --params params.yaml", "ral.reporting.summary file/metrics.json",
    "ral.training.user_classes params.yaml", "ral.release list --state file",
    "ral.data.sources.table file/table.csv", "ral.data.hash_patients file/ids --salt salt --out out",
    "ral.data.baseline profile --validated file", "flows.recipe file/recipe.yaml", "tasks.manifest",
]  # fmt: skip
# They import torch or DVC, or start git.
SLOW = [
    "ral.evaluation.compare a b", "flows.experiments a b", "ral.training.refit features --models file",
    "ral.export timm --model file --out x", "ral.inference.predict file --model file -o file/out.csv",
    "ral.cli evaluate --data file/labels.csv --model file -o file/out", "benchmarks.study.results --state file/state --out file/out",
]  # fmt: skip


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(pytest.param(command, marks=pytest.mark.long) for command in SLOW)]
)
def test_a_file_in_the_place_of_a_folder_is_no_trace(tmp_path: Path, command: str) -> None:
    """Each command ends its own way; none may show the user a traceback for what the user can fix."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "params.yaml").mkdir()
    (tmp_path / "ral.toml").write_text(f'state_dir = "{tmp_path}/file/state"\n')
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr


def test_tidy_names_what_is_wrong_in_ral_toml(tmp_path: Path) -> None:
    (tmp_path / "ral.toml").write_text("[flows]\nkeep = 0\n")
    done = subprocess.run(
        [sys.executable, "-m", "flows.tidy"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "flows.keep" in done.stderr
