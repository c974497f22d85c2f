"""Check params.yaml before a long run, or print the documentation of its keys.

python -m ral.config [params.yaml]
python -m ral.config --markdown > docs/parameters.md
"""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ral.config.base import load
from ral.config.params import Params
from ral.errors import UserError


def markdown() -> str:
    """Markdown page of all parameters: type, limits, default, meaning."""
    lines = [
        "# Parameters",
        "",
        "All keys of `params.yaml`. Generated from the code: "
        "`python -m ral.config --markdown > docs/parameters.md`.",
    ]
    for name, field in Params.model_fields.items():
        lines += _section(name, field.annotation)
    return "\n".join(lines) + "\n"


def _section(path: str, model: Any) -> list[str]:
    lines = ["", f"## {path}", "", " ".join((model.__doc__ or "").split()), ""]
    table, nested = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"], []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested += _section(f"{path}.{name}", field.annotation)
            continue
        default = "" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        table.append(f"| `{name}` | {_allowed(field)} | {default} | {meaning} |")
    return [*lines, *(table if len(table) > 2 else []), *nested]


def _allowed(field: FieldInfo) -> str:
    """Type and limits as text: `int, ≥ 1`, or the values of a Literal."""
    limits = []
    for item in field.metadata:
        for attribute, sign in (
            ("ge", "≥"),
            ("gt", ">"),
            ("le", "≤"),
            ("lt", "<"),
            ("min_length", "length ≥"),
        ):
            value = getattr(item, attribute, None)
            if value is not None:
                limits.append(f"{sign} {value}")
    return ", ".join([_type(field.annotation), *limits])


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type(arguments[0])
    if not arguments:
        return {"NoneType": "null"}.get(annotation.__name__, annotation.__name__)
    if all(isinstance(argument, str | int) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    inner = " or ".join(_type(argument) for argument in arguments)
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return f"list of {inner}"
    return "mapping" if origin is dict else inner


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "params", type=Path, nargs="?", default=Path("params.yaml"), help="file to check (params.yaml)"
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/parameters.md")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(), end="")
    else:
        try:
            load(options.params, Params)
        except UserError as error:
            sys.exit(f"error: {error}")
