"""The command `ral`, also as `python -m ral.cli`."""

import argparse
import os
import sys

from ral import __version__
from ral.cli.commands import BROKEN_PIPE, COMMANDS, EXIT_CODES, FAILED, INTERRUPTED
from ral.errors import UserError, for_user
from ral.extras import explain_missing, extra_of
from ral.wording import RESEARCH

ABOUT = f"Long-tailed chest X-ray classifiers: use, release and train them. {RESEARCH}."


def parser() -> argparse.ArgumentParser:
    """The parser of the first argument; each command parses its own arguments."""
    width = max(map(len, COMMANDS))
    lines = ["commands:", *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())]
    lines += ["", "`ral COMMAND --help` describes a command.", "", "exit codes:"]
    lines += [f"  {code:<{width}}  {meaning}" for code, meaning in EXIT_CODES.items()]
    main_parser = argparse.ArgumentParser(
        prog="ral",
        usage="ral [--help | --version] COMMAND …",
        description=ABOUT,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"ral {__version__}")
    main_parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return main_parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code. An error that the user can fix is one message, without a traceback.

    Args:
        arguments: what follows `ral` on the command line; None: those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = parser().parse_args(arguments[:1]).command
    try:
        code = COMMANDS[name].load()(arguments[1:])
        sys.stdout.flush()  # a closed pipe shows here rather than at exit
        return code
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        return _failed(explain_missing(extra, f"`ral {name}`", [str(error.name).split(".")[0]]))
    except BrokenPipeError:
        # Python flushes standard output once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (UserError, OSError) as error:
        return _failed(for_user(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
