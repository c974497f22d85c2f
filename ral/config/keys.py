"""The fixed keys of params.yaml, with their documentation and defaults; writes the file's layout: a key and a
comment a line.

A fixed key is one that `dvc exp run -S`, flows.compare and `changes` of the flows can set. A section that may be null
(train.classifier) and a mapping with keys of the user's choice (model.options) are one key each, set whole.
"""

import io
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from ral.config.base import RENAMED, Section
from ral.config.params import Params, ReportParams
from ral.suggest import did_you_mean

# The committed JSON schema, relative to params.yaml; editors with a YAML language server read the first line.
SCHEMA = "docs/params.schema.json"

HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# All parameters of the pipeline, in full in docs/parameters.md. `python -m ral.config` checks this file;
# `python -m ral.config --params` prints it with all keys and comments.
"""

# Column of the comments, and the length above which one is cut at its first colon.
COLUMN, LONG = 40, 100


def subsection(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds; None for a value, and for a section that may be null."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


@cache
def fixed_keys() -> dict[str, FieldInfo]:
    """Dotted name -> field of every fixed key, in the order of the schema; do not change it."""
    return dict(_walk(Params, ""))


@cache
def sections() -> frozenset[str]:
    """Dotted names of the sections that are always there, such as train.sampler."""
    parts = (key.split(".")[:-1] for key in fixed_keys())
    return frozenset(".".join(part[:end]) for part in parts for end in range(1, len(part) + 1))


def _walk(model: type[Section], prefix: str) -> list[tuple[str, FieldInfo]]:
    found = []
    for name, field in model.model_fields.items():
        inner = subsection(field)
        found += _walk(inner, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", field)]
    return found


def optional_section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds if it is not null."""
    parts = get_args(field.annotation)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def set_whole(field: FieldInfo) -> bool:
    """Whether the key is a mapping, or a section that may be null: it is set with all that it holds."""
    return get_origin(field.annotation) is dict or optional_section(field) is not None


def default(field: FieldInfo) -> Any:
    """The default as params.yaml writes it: null for an empty mapping."""
    value = field.get_default(call_default_factory=True)
    return None if value == {} else value


def refusal(key: str) -> str:
    """Why `key`, which is none of the fixed keys, cannot be set: it was renamed, is misspelt, or part of a whole."""
    if key in RENAMED:
        return f"{key} is now called {RENAMED[key]}; its values mean the same."
    if key in sections():
        example = next(name for name in fixed_keys() if name.startswith(f"{key}."))
        return f"{key} is a section: set its keys, such as {example}."
    whole = owner(key)
    if whole and set_whole(fixed_keys()[whole]):
        return f"{key} cannot be set alone: set {whole} whole, as a mapping."
    # A misspelt section is no nearer to the key that is meant than the same name in another one.
    hint = did_you_mean(key, fixed_keys(), similar=0.75)
    return f"{key} is not a parameter.{hint} docs/parameters.md lists all."


def owner(key: str) -> str | None:
    """The fixed key that `key` lies in: model.options for model.options.channels; None if there is none."""
    parts = key.split(".")
    names = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((name for name in names if name in fixed_keys()), None)


def differences(params: ReportParams) -> dict[str, tuple[str, str]]:
    """Key -> default and value as YAML, of each key that has a default and another value."""
    content = params.model_dump()
    found = {}
    for key, field in fixed_keys().items():
        if key.split(".")[0] not in content:
            continue
        value: Any = content
        for name in key.split("."):
            value = value[name]
        value = None if value == {} else value
        if not field.is_required() and value != default(field):
            found[key] = as_yaml(default(field)), as_yaml(value)
    return found


def layout(content: Mapping[str, Any]) -> str:
    """params.yaml with the values of `content`, which is valid, and the defaults of the keys that it lacks."""
    blocks = []
    for name, field in Params.model_fields.items():
        blocks.append("\n".join(_lines(name, field, content.get(name), "")))
    return "\n\n".join([HEAD.rstrip("\n"), *blocks]) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml: keys, types, limits, documentation. Checks across keys are not part of it."""
    schema = Params.model_json_schema()
    for definition in (schema, *schema["$defs"].values()):
        for part in definition.get("properties", {}).values():
            if part.get("type") == "object":  # keys of the user's choice: null is the empty mapping
                part["type"] = ["object", "null"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | schema | {"title": "params.yaml of ral"}


def _lines(name: str, field: FieldInfo, value: Any, indent: str) -> list[str]:
    inner = subsection(field)
    if inner is None:
        return [_line(f"{indent}{name}: {as_yaml(None if value == {} else value)}", comment(field))]
    about = _first_clause(inner.__doc__ or "")
    if not inner.model_fields:
        return [_line(f"{indent}{name}: {{}}", about)]
    lines = [_line(f"{indent}{name}:", about)]
    for part, part_field in inner.model_fields.items():
        given = value or {}
        lines += _lines(
            part, part_field, given[part] if part in given else default(part_field), indent + "  "
        )
    return lines


def _line(setting: str, text: str) -> str:
    return f"{setting:<{COLUMN - 2}}  # {text}"


def comment(field: FieldInfo) -> str:
    """What a key is, in one line: the first clause of its documentation, and the values that it leaves out."""
    text = _first_clause(field.description or "")
    choices = [str(choice) for choice in get_args(field.annotation)] if _is_choice(field) else []
    if any(text.startswith(f"{choice}:") for choice in choices):
        text = ""
    missing = any(not re.search(rf"\b{re.escape(choice)}\b", text) for choice in choices)
    if set_whole(field):
        text += " (set whole)"
    return ": ".join(filter(None, [text, ", ".join(choices) if missing else ""]))


def _is_choice(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal


def _first_clause(text: str) -> str:
    """The text up to the first full stop or semicolon outside parentheses; if that is long, up to the first colon."""
    text = " ".join(text.split())
    clause = _until(text, ".;")
    return _until(clause, ":") if len(clause) > LONG else clause


def _until(text: str, marks: str) -> str:
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character in marks and not depth and text[index + 1 : index + 2] in ("", " "):
            return text[:index]
    return text


def as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = True, 10**6, False
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").rstrip("\n")
