"""Reading params.yaml: strict, frozen models, and errors that name the key and its allowed values."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from ral.errors import UserError
from ral.suggest import did_you_mean

# Top-level sections of params.yaml; a test checks them against `ral.config.params.Params`.
SECTIONS = (
    "phantom",
    "data",
    "split",
    "preprocess",
    "model",
    "loss",
    "train",
    "explain",
    "evaluate",
    "robustness",
    "report",
    "gate",
    "features",
)

# Keys of earlier versions -> their names of today.
RENAMED = {
    "phantom.films": "phantom.images",
    "data.missing_films": "data.missing_images",
    "preprocess.shard_films": "preprocess.shard_images",
    "preprocess.on_bad_film": "preprocess.on_bad_image",
    "explain.films": "explain.show_images",
    "explain.geometry_films": "explain.geometry_images",
    "report.show_films": "report.show_images",
    "train.average_decay": "train.ema_decay",
    "train.max_bad_steps": "train.max_consecutive_skips",
}


def below(path: str) -> str:
    """Return a path of params.yaml unchanged if it is relative and stays inside its folder.

    Raises:
        ValueError: it leaves the folder. params.yaml may be untrusted, and files it names are opened and
            quoted in messages.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(
            "the path must be relative and must not contain `..`: copy the file into that folder"
        )
    return path


# A file inside the folder that the documentation of the key names.
FileBelow = Annotated[str, Field(min_length=1), AfterValidator(below)]


def _empty_if_null(value: Any) -> Any:
    return {} if value is None else value


# For a mapping with keys of the user's choice: null is the empty mapping. `dvc exp run -S` replaces null by a
# mapping, but only merges a mapping into a mapping, and only keys that are already there.
NullIsEmpty = BeforeValidator(_empty_if_null)


class Section(BaseModel):
    """A group of parameters: immutable, no unknown keys, no implicit conversion ("5" is not 5)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Parameters = TypeVar("Parameters", bound=Section)


def load(path: Path, model: type[Parameters]) -> Parameters:
    """Read the sections of params.yaml that `model` has as fields; other sections are ignored.

    A step therefore reruns only when a section that it reads changes.
    `python -m ral.config` checks the whole file.

    Raises:
        UserError: the file is missing or not YAML; a key is unknown, missing or has a wrong value.
    """
    content = read_yaml(path)
    unknown = sorted(set(content) - set(SECTIONS))
    if unknown:
        raise UserError(f"{path}: {_unknown_key(unknown[0], SECTIONS)}")
    try:
        return model.model_validate({name: content[name] for name in model.model_fields if name in content})
    except ValidationError as error:
        raise UserError(explain(error, model, path)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML 1.2 file whose top level is a mapping, as DVC parses it (PyYAML would read 1e-3 as text).

    Raises:
        UserError: the file is missing, not YAML, or not a mapping.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Run from the project folder, or pass --params.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a parameter file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level must be the sections {', '.join(SECTIONS)}.")
    return content


def explain(error: ValidationError, model: type[BaseModel], path: Path) -> str:
    """Format a pydantic error as one line per key: dotted name, allowed values, actual value."""
    lines = []
    problems = [(".".join(str(part) for part in item["loc"]), item) for item in error.errors()]
    renamed = {RENAMED.get(key) for key, item in problems if item["type"] == "extra_forbidden"}
    for key, item in problems:
        if item["type"] == "extra_forbidden":
            owner, _, name = key.rpartition(".")
            where = f"{owner}: " if owner else ""
            if key in RENAMED:
                lines.append(f"{key} is now called {RENAMED[key]}. Rename the key; its values mean the same.")
            else:
                lines.append(f"{where}{_unknown_key(name, _fields(model, item['loc'][:-1]))}")
        elif item["type"] == "missing":
            if key in renamed:
                continue
            lines.append(f"{key}: this key is missing; every key is listed in docs/parameters.md")
        elif item["type"] == "value_error":
            lines.append(f"{key}: {item['ctx']['error']}")
        else:
            lines.append(
                f"{key}: {item['msg'].removeprefix('Input ').removeprefix('List ')}, but it is {item['input']!r}"
            )
    return "\n".join(f"{path}: {line}" for line in lines)


def _unknown_key(name: str, allowed: tuple[str, ...]) -> str:
    return f"unknown key `{name}`.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}."


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Field names of the submodel of `model` at `location`."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        model = annotation
    return tuple(model.model_fields)
