"""Check params.yaml before a long run, print it with all keys, or print the documentation of its keys.

python -m ral.config [params.yaml]
python -m ral.config --params [params.yaml]
python -m ral.config --markdown > docs/parameters.md
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ral.config.base import load, read_yaml
from ral.config.keys import as_yaml, default, differences, fixed_keys, layout, optional_section, subsection
from ral.config.params import Params
from ral.errors import UserError, exit_with_message
from ral.user_code import CUSTOM, is_class_path

# Exits with the message if timm has no such model.
CHECK_BACKBONE = """
import sys
from ral.errors import UserError
from ral.models import import_timm, require_backbone
try:
    require_backbone(sys.argv[1], import_timm())
except UserError as error:
    sys.exit(str(error))
"""

# Models that timm is known to have, so that checking the usual parameters does not import timm and torch (3 seconds).
KNOWN_BACKBONES = ("resnet10t", "resnet18", "resnet50", "convnext_tiny", "convnext_small", "test_resnet")

INTRODUCTION = """\
# Parameters

All keys of `params.yaml`. Generated from the code: `python -m ral.config --markdown > docs/parameters.md`.

`python -m ral.config` checks `params.yaml` and lists the keys that differ from their defaults; `--params` prints the
file with all keys, a comment each. Every key can be set in three ways, which take the same keys and values, except that
flows refuse [code of your own](own_loss_or_network.md):

- in `params.yaml`;
- on the command line: `dvc exp run -S model.head=csra`, or with several values in a grid,
  `python -m flows.compare model.head=linear,csra`;
- in `changes` of a flow:
  `prefect deployment run train-ral/train-ral --param 'changes={"model.head": "csra"}'`.

Keys that allow a mapping, and sections that may be null, are set whole. DVC merges a mapping into the one that is
there and refuses new keys in it, so set null first (not needed if the key is null already; null alone empties it):

<!-- run: "Ran experiment(s)" -->
```bash
dvc exp run -S model.options=null -S 'model.options={drop_path_rate: 0.1}'
dvc exp run -S 'train.classifier={epochs: 2, learning_rate: 1e-3}'
dvc exp run -S data.source=table -S data.root=/data/ours -S split.method=stratified \\
    -S 'data.table={file: ours.csv, image_id: id, findings: {Effusion: effusion}}'
```

flows.compare and `changes` need no null: a mapping replaces the old one.
"""


def markdown() -> str:
    """Markdown page of all parameters: how to set them; type, limits, default, meaning."""
    lines = INTRODUCTION.splitlines()
    for name, field in Params.model_fields.items():
        lines += _section(name, field.annotation)
    return "\n".join(lines) + "\n"


def _section(path: str, model: Any, whole: bool = False) -> list[str]:
    """Heading and table of a section, then those of its sections; one that is set `whole` has a table only."""
    note = f" `{path}` is set whole." if whole else ""
    lines = ["", f"## {path}", "", " ".join((model.__doc__ or "").split()) + note, ""]
    table, nested = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"], []
    for name, field in model.model_fields.items():
        inner = subsection(field)
        if inner is not None and not whole:
            nested += _section(f"{path}.{name}", inner)
            continue
        optional = optional_section(field)
        if optional is not None:
            nested += _section(f"{path}.{name}", optional, whole=True)
        shown = "" if field.is_required() else f"`{_default(field)}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        table.append(f"| `{name}` | {_allowed(field)} | {shown} | {meaning} |")
    return [*lines, *(table if len(table) > 2 else []), *nested]


def _default(field: FieldInfo) -> str:
    value = default(field)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    return value if isinstance(value, str) else as_yaml(value)


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
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if not arguments:
        name: str = annotation.__name__
        return {"NoneType": "null"}.get(name, name)
    if all(isinstance(argument, str | int) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    inner = " or ".join(_type(argument) for argument in arguments)
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return f"list of {inner}"
    return "mapping or null" if origin is dict else inner


def check(path: Path) -> str:
    """What to say of a valid parameter file: the keys that differ from their defaults.

    Raises:
        UserError: the file is invalid, timm has no such backbone, or a class of the user's own cannot be used.
    """
    params = load(path, Params)
    commands = []
    if is_class_path(params.model.backbone) or params.loss.name == CUSTOM:
        commands.append(["-m", "ral.training.user_classes", str(path)])
    if not is_class_path(params.model.backbone) and params.model.backbone not in KNOWN_BACKBONES:
        commands.append(["-c", CHECK_BACKBONE, params.model.backbone])
    for command in commands:
        # In a process of its own: the schema knows nothing of the packages that read it.
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{path}: {done.stderr.strip()}")
    changed = differences(params)
    count = f"{len(changed)} of {len(fixed_keys())} keys differ from their defaults"
    lines = [f"  {key}: {old} -> {new}" for key, (old, new) in changed.items()]
    return "\n".join([f"{path} is valid; {count}{':' if changed else '.'}", *lines])


def main() -> None:
    """Check, or print what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "params", type=Path, nargs="?", default=Path("params.yaml"), help="file to check (params.yaml)"
    )
    parser.add_argument("--params", action="store_true", dest="layout", help="print the file with all keys")
    parser.add_argument("--markdown", action="store_true", help="print docs/parameters.md")
    options = parser.parse_args()
    with exit_with_message():
        if options.markdown:
            print(markdown(), end="")
        elif options.layout:
            load(options.params, Params)
            print(layout(read_yaml(options.params)), end="")
        else:
            print(check(options.params))


if __name__ == "__main__":
    main()
