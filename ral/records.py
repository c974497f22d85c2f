"""Typed contents of JSON files and lines that one part of the pipeline writes and another reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ral.errors import Kind, UserError
from ral.files import read_json, write_json

T = TypeVar("T")

# What JSON can hold.
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"


class Record(BaseModel):
    """Immutable content of a JSON file. Fields that were not given are not written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    if_damaged: ClassVar[str] = "Make the file again."
    """What to do then, for messages."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote.

        Raises:
            UserError: the file is damaged, or another version wrote it.
            FileNotFoundError: there is no such file.
        """
        return read_validated(path, cls.model_validate, cls.if_damaged)

    def write(self, path: Path) -> None:
        """Write the file atomically, as deterministic JSON."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Json]:
        """The content as JSON-compatible values, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_validated(path: Path, validate: Callable[[object], T], remedy: str) -> T:
    """Read a JSON file whose content `validate` checks.

    Raises:
        UserError: the content is not valid; the message ends with `remedy`, what to do then.
        FileNotFoundError: there is no such file.
    """
    try:
        return validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: {problem(error)}. {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). {remedy}") from None


class Failure(Record):
    """Why a rank failed, as the first one to fail writes it."""

    kind: Kind
    retry: bool
    """Whether rerunning the same command may succeed."""
    message: str
    """For people."""


class StepFailure(Failure):
    """Content of runs/<id>/failure.json: why a step failed."""

    step: str


def problem(error: ValueError) -> str:
    """The first problem with the content of a file: the key and what is wrong with it, or that it is no JSON."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
