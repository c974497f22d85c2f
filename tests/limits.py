"""The project's own limits on the size of files and functions, and on untyped dictionaries; part of `make lint`.

python tests/limits.py            # exit code 1, and a line for each place beyond a limit
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("ral", "tasks", "flows", "benchmarks")

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7

# Occurrences of `dict[str, Any]` in all packages together: content that other programs define, such as params.yaml.
UNTYPED = 60

# A GPU kernel takes each pointer, stride and constant as a parameter of its own.
KERNELS = ("ral/losses/kernel.py",)


def modules(*folders: str) -> Iterator[tuple[str, str]]:
    """Path from the project's root and text of every module in some folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def long_files(path: str, text: str) -> Iterator[str]:
    """The file, if it is too long."""
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{path}: {lines} lines; at most {FILE_LINES}"


def long_functions(path: str, text: str) -> Iterator[str]:
    """Functions of a file that are too long or have too many parameters."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines; at most {FUNCTION_LINES}"
            given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            count = len(given) + len(node.args.kwonlyargs) - (given[:1] in (["self"], ["cls"]))
            if count > PARAMETERS and path not in KERNELS:
                yield f"{path}:{node.lineno}: {node.name} has {count} parameters; at most {PARAMETERS}"


def untyped(path: str, text: str) -> Iterator[str]:
    """Occurrences of `dict[str, Any]` in a file."""
    for number, line in enumerate(text.splitlines(), 1):
        for _ in re.finditer(r"\bdict\[str, Any\]", line, re.IGNORECASE):
            yield f"{path}:{number}: dict[str, Any]"


def violations() -> list[str]:
    """All places beyond a limit; the untyped dictionaries only if there are too many."""
    found = [line for module in modules(*PACKAGES, "docs", "tests") for line in long_files(*module)]
    found += [line for module in modules(*PACKAGES, "docs") for line in long_functions(*module)]
    loose = [line for module in modules(*PACKAGES) for line in untyped(*module)]
    if len(loose) > UNTYPED:
        found += [f"dict[str, Any] occurs {len(loose)} times; at most {UNTYPED}:", *loose]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(violations()) or 0)
