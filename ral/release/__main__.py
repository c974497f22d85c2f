"""Releases: which models there are, which one is in use, and why. Research software, not a medical device.

    python -m ral.release list
    python -m ral.release rollback --reason "misses pneumothorax since Monday"
    python -m ral.release predict data/prepared --out logits.parquet

The registry, the bundles and the ledger are in the state_dir of ral.toml (RAL_STATE_DIR). docs/release.md has more.
"""

import argparse
import getpass
import os
import sys
from pathlib import Path

from ral.errors import REMEDIES, UserError, explain_os_error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="python -m ral.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=what)
        one.add_argument("--state", type=Path, help="folder of registry and ledger (state_dir of ral.toml)")
        return one

    def person(one: argparse.ArgumentParser) -> None:
        one.add_argument("--reason", required=True, help="why; kept in the ledger")
        one.add_argument("--by", default=None, help="who (your login name)")

    def workspace(one: argparse.ArgumentParser) -> None:
        one.add_argument(
            "--workspace", type=Path, default=Path(), help="the project's folder after a run (.)"
        )

    command("list", "Print the releases, oldest first")
    command("show", "Print what a release's bundle says").add_argument("version")
    one = command("promote", "Make a release the champion")
    one.add_argument("version")
    person(one)
    one = command("rollback", "Make an earlier champion the champion again")
    one.add_argument("--to", metavar="VERSION", help="which (the champion before this one)")
    person(one)
    command("ledger", "Print the ledger, and check that no line was changed")
    one = command("open-sealed", "Score a release on the sealed test images; every opening is written down")
    one.add_argument("version")
    one.add_argument("--prepared", type=Path, required=True, help="what the step preprocess wrote")
    one.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="parameters of evaluate (params.yaml)"
    )
    person(one)
    one = command("predict", "Write a release's raw logits of prepared images; they are no probabilities")
    one.add_argument("prepared", type=Path, help="what the step preprocess wrote")
    one.add_argument("--out", type=Path, required=True, help="Parquet table to write")
    one.add_argument("--version", help="which release (the champion)")
    one = command(
        "rescore", "Write the champion's logits to baseline/test_logits.parquet, for the step evaluate"
    )
    workspace(one)
    one = command("judge", "Let the gate decide on the model of a run")
    workspace(one)
    one.add_argument("--run-id", required=True, help="id of the run; one decision is taken for each")
    one.add_argument("--out", type=Path, required=True, help="decision to write (JSON)")
    one = command("register", "Make the model of a run a release, and write the decision into the ledger")
    workspace(one)
    one.add_argument(
        "--commit", required=True, help="of the run; pushed into the registry's repository before"
    )
    one.add_argument("--decision", type=Path, required=True, help="what judge wrote")
    one.add_argument("--run-id", required=True, help="as for judge")
    one.add_argument("--promote", action="store_true", help="make it the champion if the decision is PROMOTE")
    one.add_argument("--approved-by", metavar="NAME", help="make it the champion: a person has looked")
    one = command("prune", "Remove old bundles: gate.keep newest stay, and all that may be needed")
    one.add_argument("--params", type=Path, default=Path("params.yaml"), help="section gate (params.yaml)")
    return whole


def person() -> str:
    """Name of the user, for the ledger; the number of one that the system does not know."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def main() -> None:
    """Do what the command line asks for."""
    options = parser().parse_args()
    try:
        from ral.config.environment import check_state_dir, load_environment
        from ral.release import commands

        if options.state is None:
            options.state = load_environment().state_dir
        options.state = options.state.absolute()
        check_state_dir(options.state)
        if getattr(options, "by", "") is None:
            options.by = person()
        getattr(commands, "do_" + options.command.replace("-", "_"))(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        sys.exit(f"error: {explain_os_error(error)}")


if __name__ == "__main__":
    main()
