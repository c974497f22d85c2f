"""Classes of the user's own, named `package.module:Class`: found in the project folder, hashed and imported.

The hash covers the file of the class and the project's files that it imports, so that a change of any of them retrains.
Code is only taken from the project folder, never from a model's files.
"""

import ast
import importlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ral.errors import UserError
from ral.files import sha256
from ral.suggest import did_you_mean

# Value of loss.name that selects the user's own loss.
CUSTOM = "custom"

# The project's own packages, whose files are dependencies of the stages anyway.
PROJECT = ("ral", "tasks", "flows")

_NAME = r"[A-Za-z_]\w*"
_PATH = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")

Base = TypeVar("Base")


def is_class_path(name: object) -> bool:
    """Whether a value has the form `package.module:Class`."""
    return isinstance(name, str) and _PATH.fullmatch(name) is not None


def check_class_path(name: str) -> str:
    """Return a class path unchanged.

    Raises:
        ValueError: it is not of the form `package.module:Class`.
    """
    if not is_class_path(name):
        raise ValueError(f"write `package.module:Class`, such as own.losses:SmoothBCE, not {name!r}")
    return name


def files_in_use(params: Mapping[str, Any], project: Path = Path()) -> dict[str, dict[str, str]]:
    """The user's files that a training with these parameters uses.

    Args:
        params: the sections model and loss, as in params.yaml.
        project: the project folder.

    Returns:
        "loss" and "network" -> file, relative to the project -> SHA-256; empty for a class of this project or timm.

    Raises:
        UserError: see `source_files`.
    """
    loss, backbone = params["loss"], params["model"]["backbone"]
    used = {"loss": loss[CUSTOM]["class_path"] if loss["name"] == CUSTOM else None, "network": None}
    used["network"] = backbone if is_class_path(backbone) else None
    keys = {"loss": "loss.custom.class_path", "network": "model.backbone"}
    return {part: source_files(keys[part], name, project) if name else {} for part, name in used.items()}


def source_files(key: str, name: str, project: Path = Path()) -> dict[str, str]:
    """SHA-256 of the file of a class and of the project's files that it imports, wherever in the code; by path.

    Args:
        key: the parameter, for messages.
        name: `package.module:Class`.
        project: the project folder.

    Raises:
        UserError: the project has no such file, or one is not Python.
    """
    module = name.partition(":")[0]
    if _file(module, project) is None:
        raise UserError(
            f"{key}: {name}: there is no file {module.replace('.', '/')}.py in the project folder {project.resolve()}. "
            "Write it there, and commit it: experiments in copies and the flows have committed files only."
        )
    found: dict[str, str] = {}
    queue, seen = [module], set()
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.partition(".")[0] in PROJECT and current != module:
            continue
        if "." in current:
            queue.append(current.rpartition(".")[0])
        path = _file(current, project)
        if path is not None:
            found[path.relative_to(project).as_posix()] = sha256(path)
            queue += _imports(key, path, current)
    return dict(sorted(found.items()))


def _file(module: str, project: Path) -> Path | None:
    base = project / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(key: str, path: Path, module: str) -> Iterator[str]:
    """Modules that a file may import; a name after `from x import` may be one."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{key}: {path}: {_describe(error, path)}.") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            source = ".".join(filter(None, [*parents, node.module or ""]))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def load_class(key: str, name: str, base: type[Base], project: Path = Path()) -> type[Base]:
    """Import a class from the project folder. This runs the code of its file.

    Args:
        key: the parameter, for messages.
        name: `package.module:Class`.
        base: the class that it must be a subclass of.
        project: the project folder.

    Raises:
        UserError: there is no such file or class, the file fails, imports files in a way that their hash misses, or the
            class is no subclass of `base`.
    """
    files = source_files(key, name, project)
    module_name, _, class_name = name.partition(":")
    module = _import(key, module_name, files, project.resolve())
    found = getattr(module, class_name, None)
    if found is None:
        hint = did_you_mean(class_name, vars(module))
        raise UserError(f"{key}: {module.__file__} has no class {class_name}.{hint}")
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(
            f"{key}: {class_name} in {module.__file__} is not a subclass of {base.__module__}.{base.__name__}: write "
            f"`class {class_name}({base.__name__}):` (docs/own_loss_or_network.md)."
        )
    return found


def _import(key: str, name: str, files: Mapping[str, str], project: Path) -> ModuleType:
    before = set(sys.modules)
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise UserError(f"{key}: {name} cannot be imported: {failure(error, project)}") from error
    expected = {(project / file).resolve() for file in files}
    if _path(module) not in expected:
        raise UserError(
            f"{key}: the name {name} belongs to {module.__file__ or 'a module of Python'}. Give your file another name."
        )
    for other in sorted(set(sys.modules) - before):
        path = _path(sys.modules[other])
        if (
            path is not None and path.is_relative_to(project) and path not in expected
            and other.partition(".")[0] not in PROJECT and "site-packages" not in path.parts
        ):  # fmt: skip
            raise UserError(
                f"{key}: {name} loads {path} in a way that its text does not show, so a change of that file would "
                f"retrain nothing. Write a plain `import {other}`."
            )
    return module


def _path(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def failure(error: BaseException, project: Path = Path()) -> str:
    """What an exception of the user's code says, with the last line of the project's files that it passed through."""
    folder = project.resolve()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(folder) and not path.is_relative_to(Path(__file__).parent):
            return f"{path}, line {frame.lineno}: {_describe(error, path)}."
    return f"{_describe(error, None)}."


def _describe(error: BaseException, path: Path | None) -> str:
    if isinstance(error, SyntaxError):
        where = (
            f" in line {error.lineno}" if path is not None else f" in {error.filename}, line {error.lineno}"
        )
        return f"{type(error).__name__}{where}: {error.msg}"
    return f"{type(error).__name__}: {error}"
