"""Every command in README and docs is tagged, and names modules, targets, options, parameters and files that exist."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from conftest import ROOT
from dvc.cli import DvcParserError
from dvc.cli import parse_args as parse_dvc_arguments
from forks import forks
from pages import BLOCK, SHELL, blocks, commands, inline_commands, pages, read
from prefect.cli import app as prefect_app
from ruamel.yaml import YAML

from flows.overrides import CLASS_KEYS, flatten, parse_word
from flows.settings import FlowsEnvironment
from ral.config.environment import keys
from ral.errors import UserError

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
MAKE_VARIABLES = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
# Settings from the environment that are no keys of ral.toml: of the runs' id, and of the tests.
OTHER_VARIABLES = {"RAL_RUN_ID", "RAL_REAL_IMAGES"}
PROJECT_FILE = re.compile(r"(?:deploy|docs|tests|tasks|flows|ral|benchmarks|\.ci)/[\w*./-]+")


def every_block() -> Iterator:
    for page in pages():
        yield from blocks(page, read(page))


def is_command(words: list[str]) -> bool:
    return words[:2] == ["python", "-m"] or words[0] in ("make", "dvc", "prefect", "pytest")


@cache
def help_of(*command: str) -> str:
    """What a command says with --help.

    Raises:
        ValueError: there is no such command.
    """
    program, *arguments = [*command, "--help"]
    if program in ("dvc", "prefect"):  # here, since each start of theirs takes seconds
        code, text = call(parse_dvc_arguments if program == "dvc" else prefect, arguments)
    else:
        words = arguments if program == "python" else [program, *arguments]
        module, *arguments = words[1:] if words[0] == "-m" else words
        done = subprocess.run(
            [*forks().command(module), *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )  # fmt: skip
        code, text = done.returncode, done.stdout
    if code:
        raise ValueError(f"`{' '.join(command)} --help` exits with {code}: {text[-500:]}")
    return text


def call(main: Callable[[list[str]], object], arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of a command line program in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue()
        except DvcParserError:
            return 254, printed.getvalue()
    return 0, printed.getvalue()


def prefect(arguments: list[str]) -> None:
    """Prefect's command line."""
    before = sys.argv
    sys.argv = ["prefect", *arguments]
    try:
        prefect_app()
    finally:
        sys.argv = before


def check(words: list[str]) -> None:
    """Check a command, word by word.

    Raises:
        ValueError: it names what does not exist.
        UserError: it sets a parameter that does not exist.
    """
    if words[0] == "make":
        unknown = [word for word in words[1:] if word.partition("=")[0] not in TARGETS | MAKE_VARIABLES]
        if unknown:
            raise ValueError(f"the Makefile has no {unknown[0]}")
        return
    if is_command(words):
        end = next((i for i, word in enumerate(words) if i > 1 and word.startswith("-")), len(words))
        # Arguments such as v0.1.0 or train-ral/train-ral are no part of what is asked for help.
        named = words[:2] + [word for word in words[2:end] if re.fullmatch(r"[a-z_.-]+", word)]
        text = help_of(*named)
        for option in (word.partition("=")[0] for word in words[end:] if word.startswith("-")):
            if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
                raise ValueError(f"`{' '.join(named)}` has no option {option}")
    for word in words:
        check_parameters(word)
        if PROJECT_FILE.fullmatch(word) and not list(ROOT.glob(word)):
            raise ValueError(f"there is no {word}")


def check_parameters(word: str) -> None:
    """Check the parameters that a word sets: `loss.name=bce`, `changes={…}`, `grid={…}`.

    Raises:
        UserError: there is no such parameter, or the word cannot be read.
    """
    if word.startswith(("changes={", "grid={")):
        flatten(json.loads(word.partition("=")[2]))
    elif re.match(r"[a-z_]+(\.[a-z_]+)+=", word) and "…" not in word:
        key, values = parse_word(word)
        for value in values:
            # Flows refuse a class of the user's own; `dvc exp run` takes it, and so do these blocks.
            flatten({key: "x" if key in CLASS_KEYS else value})


def test_every_block_says_what_it_is_and_every_block_of_commands_is_tagged() -> None:
    for block in every_block():
        assert block.language, f"{block.where}: write ```{SHELL}, ```text, ```toml … above the block"
        if block.language == SHELL:
            assert block.kind in ("run", "serve", "not run"), (
                f"{block.where}: a tag says whether the test of the commands runs this block (tests/pages.py)"
            )
        else:
            assert block.kind in ("", "output", "file"), f"{block.where}: only ```{SHELL} blocks can be run"
    assert sum(block.kind in ("run", "serve") for block in every_block()) > 10


@pytest.mark.parametrize("page", pages())
def test_no_command_stands_outside_of_a_tagged_block(page: str) -> None:
    outside = BLOCK.sub("", read(page))
    assert "```" not in outside, f"{page}: a fence that is not closed, or not indented as its end"
    assert not re.findall(r"^(?: {4}|\t)(?:python -m|make|dvc|prefect|git|pip) .*", outside, re.MULTILINE), (
        page
    )


@pytest.mark.parametrize("page", pages())
def test_every_command_of_a_page_exists(page: str) -> None:
    content = read(page)
    for block in blocks(page, content):
        for words in commands(block.text) if block.language == SHELL else ():
            try:
                check(words)
            except (ValueError, UserError) as error:
                raise AssertionError(f"{block.where}: {' '.join(words)}: {error}") from error
    for words in inline_commands(content):
        try:
            check(words)
        except (ValueError, UserError) as error:
            raise AssertionError(f"{page}: `{' '.join(words)}`: {error}") from error


def test_every_setting_from_the_environment_is_a_key() -> None:
    known = {f"RAL_{key.replace('.', '_').upper()}" for key, _ in keys(FlowsEnvironment)} | OTHER_VARIABLES
    for page in pages():
        assert set(re.findall(r"\bRAL_[A-Z_]+\b", read(page))) <= known, page


@pytest.mark.parametrize(
    "line",
    [
        "make runn",
        "make run TORCH_INDX=x",
        "python -m flows.nightlyy",
        "python -m flows.tidy --dry-runn",
        "python -m ral.release rolback --reason x",
        "dvc exp rn",
        "dvc exp run --quue",
        "dvc exp run -S loss.nam=bce",
        "python -m flows.compare loss.nam=bce,ral",
        "prefect deployment run a/b --param 'changes={\"train.epoch\": 5}'",
        "prefect deplooy -n nightly",
        "cp deploy/slurm/*.servce x",
    ],
)
def test_a_command_that_does_not_exist_is_refused(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((ValueError, UserError)):
        check(words)


def test_commands_of_a_block_are_read_as_a_shell_does() -> None:
    text = "cd a && A=1 make run  # b\ncat > x <<'E'\nmake nothing\nE\ndvc exp run \\\n  -S 'a.b={c:\n1}' | less\n"
    assert list(commands(text)) == [
        ["cd", "a"], ["make", "run"], ["cat", ">", "x"], ["dvc", "exp", "run", "-S", "a.b={c:\n1}"], ["less"],
    ]  # fmt: skip


def test_a_tag_is_read_and_another_comment_is_refused() -> None:
    (file,) = blocks("p.md", "<!-- file: own/a.py -->\n```python\nx\n```\n")
    assert (file.kind, file.rest, file.text) == ("file", "own/a.py", "x\n")
    page = '  <!-- run: "a b"\n  "c" -->\n  ```bash\n  make run\n  ```\n\n```bash\nx\n```\n'
    first, second = blocks("p.md", page)
    assert (first.kind, first.expected, first.text, first.where) == (
        "run",
        ("a b", "c"),
        "make run\n",
        "p.md:3",
    )
    assert (second.kind, second.line) == ("", 7)
    for comment in ("run", "run: a", "not run:", 'runs: "a"'):
        with pytest.raises(ValueError, match=r"p\.md:2"):
            blocks("p.md", f"<!-- {comment} -->\n```bash\nx\n```\n")


def test_prefect_deploy_asks_nothing() -> None:
    """In a terminal it asks for the schedules of a deployment that has no list of them, with yes as default."""
    deployments = YAML(typ="safe", pure=True).load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert not [deployment["name"] for deployment in deployments if "schedules" not in deployment]
