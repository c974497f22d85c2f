"""`ral completion`: prints a completion script, generated from the table of commands."""

import argparse

from ral.cli.commands import COMMANDS

BASH = """\
# Completion of `ral` for bash: commands and subcommands, then files. Add to ~/.bashrc:
#     eval "$(ral completion bash)"
_ral() {{
    local words=
    case $COMP_CWORD in
        1) words='{commands} --help --version' ;;
        2) case ${{COMP_WORDS[1]}} in
{cases}
            *) ;;
        esac ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -o default -F _ral ral
"""


def bash() -> str:
    """The script for bash."""
    cases = [f"            {name}) words='{' '.join(c.words)}' ;;" for name, c in COMMANDS.items() if c.words]
    return BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))


def main(arguments: list[str]) -> int:
    """Print the script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ral completion",
        description='Print the completion script of a shell. In ~/.bashrc: eval "$(ral completion bash)"',
    )
    parser.add_argument("shell", choices=["bash"])
    parser.parse_args(arguments)
    print(bash(), end="")
    return 0
