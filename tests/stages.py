"""The stages of dvc.yaml and the project's own modules that each imports; writes those dependencies into dvc.yaml.

    python tests/stages.py            # exit code 1 if dvc.yaml does not list what the stages import
    python tests/stages.py --write    # after a change of imports: write it; then `dvc repro`

The reader of the raw tables is listed as `ral/data/sources/${data.source}.py`: only the source that is chosen counts.
"""

import argparse
import ast
import re
import sys
from functools import cache
from pathlib import Path
from typing import get_args

from ruamel.yaml import YAML

from ral.labels import SourceName

ROOT = Path(__file__).parent.parent
PACKAGES = ("ral", "tasks", "flows")
# In the order of the graph.
GRAPH = ("tasks/dvc.yaml", "dvc.yaml")


@cache
def stages() -> dict[str, dict]:
    """The stages of both files in their order; do not change them."""
    yaml = YAML(typ="safe", pure=True)
    return {
        name: stage
        for path in GRAPH
        for name, stage in yaml.load((ROOT / path).read_text())["stages"].items()
    }


@cache
def code_files(stage: str, source: str) -> frozenset[str]:
    """Files a stage's module imports, however deep and wherever in the code, as paths from the project's root.

    A module that is started by its name (`-m ral.training`) counts as imported. An `__init__.py` of nothing but a
    docstring is no code.

    Args:
        stage: its name.
        source: the value of data.source, which is the name of the module that reads the raw tables.
    """
    found: set[str] = set()
    queue = [f"tasks.{stage}"]
    seen: set[str] = set()
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        path = _file(module)
        if path is None:
            continue
        parent = module.rpartition(".")[0]
        if parent:
            queue.append(parent)
        tree = ast.parse(path.read_text())
        if not (path.name == "__init__.py" and len(tree.body) <= 1):
            found.add(path.relative_to(ROOT).as_posix())
            found |= {item.relative_to(ROOT).as_posix() for item in _read_beside(tree, path)}
        # The block of a module's own command is no part of a stage that imports the module.
        runs = module == f"tasks.{stage}" or path.name == "__main__.py"
        command = (
            set()
            if runs
            else {id(part) for node in tree.body if _is_command(node) for part in ast.walk(node)}
        )
        for node in ast.walk(tree):
            if id(node) in command:
                continue
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.JoinedStr) and _is_source(node):
                queue.append(f"ral.data.sources.{source}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _has_main(node.value):
                queue.append(f"{node.value}.__main__")
    return frozenset(found)


def sources() -> list[str]:
    """Every value of data.source; dvc.yaml names the file of the one that is chosen by `${data.source}`."""
    return list(get_args(SourceName))


def declared_code(stage: str, source: str) -> set[str]:
    """The project's own files that dvc.yaml lists as dependencies of a stage."""
    deps = [path.replace("${data.source}", source) for path in stages()[stage].get("deps", ())]
    return {path for path in deps if path.split("/")[0] in PACKAGES}


def with_dependencies() -> str:
    """dvc.yaml with the code dependencies that the imports of each stage give; all else as it stands."""
    text = (ROOT / "dvc.yaml").read_text()
    readers = {f"ral/data/sources/{source}.py" for source in sources()}
    for name, stage in stages().items():
        if stage.get("always_changed"):
            continue
        code = set().union(*(code_files(name, source) for source in sources()))
        if code & readers:
            code = code - readers | {"ral/data/sources/${data.source}.py"}
        others = [path for path in stage["deps"] if path.split("/")[0] not in PACKAGES]
        start = text.index("    deps:\n", text.index(f"\n  {name}:\n")) + len("    deps:\n")
        lines = re.compile(r"(?:      - .*\n)+").match(text, start)
        assert lines, name
        text = (
            text[:start]
            + "".join(f"      - {path}\n" for path in [*others, *sorted(code)])
            + text[lines.end() :]
        )
    return text


def _is_command(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _is_source(node: ast.JoinedStr) -> bool:
    """Whether a text is the name of the module of a source that is chosen by a parameter."""
    start = node.values[0]
    return isinstance(start, ast.Constant) and start.value == "ral.data.sources."


def _file(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = ROOT / module.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _has_main(text: str) -> bool:
    return text.split(".")[0] in PACKAGES and (ROOT / text.replace(".", "/") / "__main__.py").is_file()


def _read_beside(tree: ast.AST, path: Path) -> set[Path]:
    """Files beside a module whose name it holds as text, such as a template."""
    names = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {
        path.parent / name
        for name in names
        if name.endswith((".html", ".css")) and (path.parent / name).is_file()
    }


def main() -> None:
    """Compare dvc.yaml with the imports, or write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write dvc.yaml")
    if parser.parse_args().write:
        (ROOT / "dvc.yaml").write_text(with_dependencies())
    elif (ROOT / "dvc.yaml").read_text() != with_dependencies():
        sys.exit("dvc.yaml does not list what the stages import: python tests/stages.py --write")


if __name__ == "__main__":
    main()
