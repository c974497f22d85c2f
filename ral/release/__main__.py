"""Manage releases: list, promote, roll back and use registered models. Research software, not a medical device.

    ral release list
    ral release rollback --reason "misses pneumothorax since Monday"
    ral release predict data/prepared --out logits.parquet

`python -m ral.release` is the same. The registry, the bundles and the ledger are in the state_dir of ral.toml
(RAL_STATE_DIR). See docs/release.md.
"""

import argparse
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ral.errors import exit_with_message


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(
        prog="ral release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=summary, description=summary)
        subparser.add_argument(
            "--state", type=Path, help="folder with registry and ledger (state_dir of ral.toml)"
        )
        return subparser

    _add_release_commands(command)
    _add_run_commands(command)
    subparser = command(
        "prune", "Remove old bundles; keeps the gate.keep newest, the last two champions and the anchor"
    )
    _add_params(subparser, "gate")
    return main_parser


def _add_release_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that read, change or use releases."""
    command("list", "Print the releases, oldest first")
    command("show", "Show the content of a release's bundle").add_argument("version")
    subparser = command("promote", "Make a release the champion")
    subparser.add_argument("version")
    _add_person(subparser)
    subparser = command("rollback", "Make an earlier champion the champion again")
    subparser.add_argument("--to", metavar="VERSION", help="release to restore (the previous champion)")
    _add_person(subparser)
    command("ledger", "Print the ledger and verify its hash chain")
    subparser = command(
        "open-sealed", "Score a release on the sealed test images; each use is recorded in the ledger"
    )
    subparser.add_argument("version")
    subparser.add_argument(
        "--prepared", type=Path, required=True, help="output folder of the step preprocess"
    )
    _add_params(subparser, "evaluate")
    _add_person(subparser)
    subparser = command("predict", "Write a release's raw logits of prepared images (not probabilities)")
    subparser.add_argument("prepared", type=Path, help="output folder of the step preprocess")
    subparser.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    subparser.add_argument("--version", help="release to use (the champion)")


def _add_run_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that work on the project folder after a run."""
    subparser = command(
        "rescore", "Write the champion's logits to baseline/test_logits.parquet for the step evaluate"
    )
    _add_workspace(subparser)
    subparser = command("judge", "Run the release gate on the model of a run")
    _add_workspace(subparser)
    subparser.add_argument("--run-id", required=True, help="id of the run; there is one decision per run")
    subparser.add_argument("--out", type=Path, required=True, help="JSON file to write the decision to")
    subparser = command(
        "register", "Register the model of a run as a release, and record the decision in the ledger"
    )
    _add_workspace(subparser)
    subparser.add_argument(
        "--commit", required=True, help="commit of the run, already pushed into the registry's repository"
    )
    subparser.add_argument("--decision", type=Path, required=True, help="JSON file written by judge")
    subparser.add_argument("--run-id", required=True, help="id of the run, as for judge")
    subparser.add_argument(
        "--promote", action="store_true", help="promote the model if the decision is PROMOTE"
    )
    subparser.add_argument("--approved-by", metavar="NAME", help="promote the model, approved by this person")
    subparser = command(
        "forget",
        "Compare the model that was retrained without the patients of data.exclude_patients with a release on their "
        "images, and record it in the ledger; or list or remove what is still kept of them",
    )
    _add_workspace(subparser)
    what = subparser.add_mutually_exclusive_group()
    what.add_argument(
        "--list", action="store_true", help="list what still has these patients; removes nothing"
    )
    what.add_argument("--prune", action="store_true", help="remove what --list lists; never the data folder")
    subparser.add_argument("--against", metavar="VERSION", help="release to compare with (the champion)")
    _add_person(subparser, required=False)


def _add_person(subparser: argparse.ArgumentParser, required: bool = True) -> None:
    text = "reason, recorded in the ledger" + ("" if required else " (not needed for --list)")
    subparser.add_argument("--reason", required=required, help=text)
    subparser.add_argument("--by", default=None, help="your name, recorded in the ledger (login name)")


def _add_params(subparser: argparse.ArgumentParser, section: str) -> None:
    text = f"file with the section {section} (params.yaml)"
    subparser.add_argument("--params", type=Path, default=Path("params.yaml"), help=text)


def _add_workspace(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "--workspace", type=Path, default=Path(), help="project folder after a complete run (.)"
    )


def person() -> str:
    """Login name of the user for the ledger, or the numeric id if the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code.

    Args:
        arguments: what follows `ral release`; None: those of this process.

    Raises:
        UserError: the subcommand cannot be carried out.
    """
    options = parser().parse_args(arguments)
    from ral.config.environment import check_state_dir, load_environment
    from ral.release import commands

    if options.state is None:
        options.state = load_environment().state_dir
    options.state = options.state.absolute()
    check_state_dir(options.state)
    if getattr(options, "by", "") is None:
        options.by = person()
    getattr(commands, "do_" + options.command.replace("-", "_"))(options)
    return 0


if __name__ == "__main__":
    with exit_with_message():
        sys.exit(main())
