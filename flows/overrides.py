"""Changed parameters of a flow: words of the command line and `changes` by dotted name, as `dvc exp run -S`
understands them.

flows.compare reads its words here (with DVC's own parser), every flow applies its `changes` here, and what an
experiment gets as `-S` options is written here. Keys are those of the schema, whether params.yaml lists them
or not.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ral.config.keys import fixed_keys, owner, refusal, sections
from ral.errors import UserError
from ral.user_code import is_class_path

# Changed parameters: value by dotted name, whatever the parameter takes.
Changes: TypeAlias = dict[str, Any]

# Keys that may name a class of the user's own.
CLASS_KEYS = ("loss.custom.class_path", "model.backbone")


def flatten(changes: Changes) -> Changes:
    """Changes by fixed key: a section given as a mapping becomes its keys.

    Raises:
        UserError: a key is unknown, was renamed, or is a section with a value that is no mapping; or a value names
            a class to import.
    """
    flat: Changes = {}
    for key, value in changes.items():
        if key in sections() and isinstance(value, Mapping):
            flat |= flatten({f"{key}.{name}": item for name, item in value.items()})
        elif key in fixed_keys() or owner(key) is not None:
            _refuse_code(key, value)
            flat[key] = value
        else:
            raise UserError(refusal(key))
    return flat


def _refuse_code(key: str, value: Any) -> None:
    """Refuse a class of the user's own: changes come through Prefect's API, and importing a class runs its code."""
    if key in CLASS_KEYS and is_class_path(value):
        raise UserError(
            f"{key}: {value} is code, which flows do not take from `changes` or a grid: whoever reaches Prefect's API "
            "could pick what runs here. Set it in params.yaml and commit it; then the flow uses it (a grid may choose "
            "loss.name=ral,custom). `dvc exp run -S` takes it."
        )


def apply_changes(content: Changes, changes: Changes) -> None:
    """Set changed parameters in the content of params.yaml; values are not checked.

    A mapping replaces the old one. A key within a mapping or a section that may be null can be set if it is
    there already.

    Raises:
        UserError: see `flatten`; or a key within a mapping is not there.
    """
    for key, value in flatten(changes).items():
        *parents, name = key.split(".")
        target, path = content, ""
        for parent in parents:
            path = f"{path}.{parent}".lstrip(".")
            if path in sections() and target.get(parent) is None:
                target[parent] = {}
            target = target.get(parent) if isinstance(target, dict) else None  # type: ignore[assignment]
        if not isinstance(target, dict) or (key not in fixed_keys() and name not in target):
            raise UserError(refusal(key))
        target[name] = None if value == {} else value  # as in `to_settings`


def to_settings(changes: Changes) -> list[str]:
    """Changes as values of `dvc exp run -S`, in order.

    DVC merges a mapping into the old one and refuses new keys in it; after a null it takes the mapping as it
    is. An empty one is written as null, which means the same: beside a comment, DVC's YAML writer may put
    `{}` on a line of its own.

    Raises:
        UserError: see `flatten`; or DVC has no way to write a value.
    """
    settings = []
    for key, value in flatten(changes).items():
        if isinstance(value, Mapping):
            settings.append(f"{key}=null")
        if value != {}:
            settings.append(to_setting(key, value))
    return settings


def to_setting(key: str, value: Any) -> str:
    """A parameter as `dvc exp run -S` reads it back.

    Raises:
        UserError: DVC has no way to write this value.
    """
    setting = f"{key}={_written(value)}"
    with contextlib.suppress(UserError):
        if parse_word(setting) == (key, [value]):
            return setting
    raise UserError(f"{key}: {value!r} cannot be given to `dvc exp run -S`; write it into params.yaml.")


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        items = ((re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", str(key)), item) for key, item in value.items())
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item) for item in value) + "]"
    if isinstance(value, str):  # a backslash means itself, but in front of a quotation mark and at the end
        return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value) + '"'
    return json.dumps(value)


def parse_word(word: str) -> tuple[str, list[Any]]:
    """Parameter and values of `loss.name=ral,bce`, read by DVC's own parser: as `dvc exp run -S` would.

    Raises:
        UserError: it is no such word, or sets no values (`~KEY`, `+KEY=…`, `interval(…)`).
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides
    from hydra.errors import HydraException

    problem = ""
    try:
        if word[:1] not in ("~", "+", "=") and "=" in word:
            settings = [part["grid"][0] for part in get_hydra_sweeps({"grid": [word]})]
            read = [to_hydra_overrides([setting])[0] for setting in settings]
            return read[0].key_or_group, [one.value() for one in read]
    except (DvcException, HydraException) as error:
        problem = f" ({str(error).splitlines()[0]})"
    raise UserError(
        f"{word!r}: write PARAMETER=VALUE,VALUE, such as loss.name=ral,bce or data.findings=[Mass,Hernia]{problem}."
    )


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """Words such as `loss.name=ral,bce` as a grid.

    Raises:
        UserError: see `parse_word`; or a parameter stands twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        key, values = parse_word(word)
        if key in grid:
            raise UserError(f"{key} stands twice: write all its values in one word, {key}=A,B.")
        grid[key] = values
    return grid


def parse_changes(words: Sequence[str]) -> Changes:
    """Words such as `train.epochs=5`, one value each.

    Raises:
        UserError: see `parse_grid`; or a parameter has several values.
    """
    grid = parse_grid(words)
    for key, values in grid.items():
        if len(values) > 1:
            raise UserError(f"--set {key}: one value for all experiments; a list is written [A,B].")
    return {key: values[0] for key, values in grid.items()}
