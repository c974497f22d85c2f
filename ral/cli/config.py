"""`ral config`: checks a parameter file, or prints the JSON schema of params.yaml."""

import argparse
import json
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the subcommand; returns the exit code.

    Raises:
        UserError: the parameter file is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="ral config", description="Check params.yaml, or print its JSON schema."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    summary = "Check a parameter file and list the keys that differ from their defaults"
    check_parser = commands.add_parser("check", help=summary, description=summary)
    check_parser.add_argument(
        "params", type=Path, nargs="?", default=Path("params.yaml"), help="file to check (params.yaml)"
    )
    summary = "Print the JSON schema of params.yaml, which editors read (docs/params.schema.json)"
    commands.add_parser("schema", help=summary, description=summary)
    options = parser.parse_args(arguments)
    if options.command == "check":
        from ral.config.__main__ import check

        print(check(options.params))
    else:
        from ral.config.keys import json_schema

        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
