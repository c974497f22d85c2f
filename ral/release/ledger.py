"""The ledger: an append-only, hash-chained log of all decisions, promotions and openings of the sealed set.

Each line of `state_dir`/ledger.jsonl has the SHA-256 of the line before it, so later changes and deletions
are detected, except in the last line. Lines have timestamps: the ledger is not a DVC output.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

from ral.errors import UserError
from ral.files import flush, locked
from ral.records import Record, problem
from ral.release.decision import GateSet, Outcome

NAME = "ledger.jsonl"

# The field `before` of the first line.
FIRST = "0" * 64


class Event(Record):
    """What an entry of the ledger records."""

    what: ClassVar[str]
    """The kind of event, as the ledger has it."""
    once: ClassVar[str | None] = None
    """A field with a value of its own in every entry of this kind: a second one of the same value is not written."""

    def repeats(self, other: "Event") -> bool:
        """Whether this is an event that the ledger has already as `other`."""
        return (
            self.once is not None
            and self.what == other.what
            and getattr(self, self.once) == getattr(other, self.once)
        )


class Decision(Event):
    """The gate decided on the model of a run, which was registered."""

    what = "decision"
    once = "run_id"

    run_id: str
    decision: Outcome
    version: str
    commit: str
    champion: str | None
    set: GateSet
    sentence: str


class Promotion(Event):
    """A release became the champion."""

    what = "promote"
    once = "tag"

    tag: str
    """The tag of the registry that says so."""
    version: str
    by: str
    reason: str


class Rollback(Promotion):
    """A release became the champion again."""

    what = "rollback"


class Opening(Event):
    """A release was scored on the sealed test images."""

    what = "open-sealed"

    version: str
    by: str
    reason: str
    opened_before: int
    """Number of openings before this one."""


class Forgetting(Event):
    """A model retrained without some patients was compared with a release on their images."""

    what = "forget"

    version: str
    """The release, which was trained on the patients."""
    model: str
    """SHA-256 of the weights of the retrained model."""
    by: str
    reason: str
    patients: int
    """Forgotten patients on whose images the release was trained."""
    images: int
    test_images: int
    """Images that neither model was trained on."""
    numbers: Mapping[str, Sequence[float | None]]
    """Name -> value, and lower and upper end of its interval; `ral.release.forget.Audit` has the names."""
    sentence: str


class Pruning(Event):
    """What was still kept of excluded patients was removed."""

    what = "forget-prune"

    by: str
    reason: str
    removed: Mapping[str, int]
    """What it was -> number of files and folders."""
    bytes: int


class Repair(Event):
    """The last line was incomplete after a crash, and was moved to a file."""

    what = "repair"

    moved: str
    """Name of the file."""


EVENTS: dict[str, type[Event]] = {
    kind.what: kind for kind in (Decision, Promotion, Rollback, Opening, Forgetting, Pruning, Repair)
}


@dataclass(frozen=True)
class Entry:
    """A line of the ledger."""

    number: int
    """From 1."""
    time: str
    """ISO 8601, UTC."""
    before: str
    """SHA-256 of the line before."""
    event: Event

    def to_line(self) -> bytes:
        """The line, with its newline."""
        chain = {"number": self.number, "time": self.time, "what": self.event.what, "before": self.before}
        text = json.dumps(chain | self.event.to_json(), ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Entry":
        """Read a line.

        Raises:
            ValueError, KeyError, TypeError: it is not a line of a ledger (ValidationError: of another version).
        """
        content = dict(json.loads(line))
        chain = {name: content.pop(name) for name in ("number", "time", "before")}
        return cls(event=EVENTS[content.pop("what")].model_validate(content), **chain)


class Ledger:
    """The ledger of a state_dir.

    Args:
        state_dir: the private folder; created if needed.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._lock = state_dir / ".ledger.lock"

    def entries(self) -> list[Entry]:
        """All entries, oldest first. Verifies the chain and moves a truncated last line to a separate file.

        Raises:
            UserError: a line was changed, is missing or is of another version; the message names it.
        """
        with locked(self._lock):
            return self._read()

    def append(self, event: Event) -> Entry:
        """Write an entry and fsync it, unless there is one of the same event (`Event.once`).

        Returns:
            The new entry, or the existing one.

        Raises:
            UserError: see `entries`; nothing is appended to a broken chain.
            OSError: the disk is full or fails; the ledger is unchanged.
        """
        with locked(self._lock):
            same = [entry for entry in self._read() if event.repeats(entry.event)]
            return same[0] if same else self._write(event)

    def _write(self, event: Event) -> Entry:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(len(lines) + 1, time, _digest(lines[-1]) if lines else FIRST, event)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        length = os.fstat(handle).st_size
        try:
            remaining = memoryview(entry.to_line())
            while remaining:  # os.write may write only a part of the line on a nearly full disk
                remaining = remaining[os.write(handle, remaining) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, length)
            error.filename = str(self.path)
            raise
        finally:
            os.close(handle)
        flush(self.path.parent)
        return entry

    def _read(self) -> list[Entry]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        complete, truncated = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        if truncated:
            self._move_truncated_line(len(complete), truncated)
        lines = complete.splitlines()
        before = FIRST
        for number, line in enumerate(lines, start=1):
            self._check_chain(number, line, before)
            before = _digest(line)
        entries = [self._entry(number, line) for number, line in enumerate(lines, start=1)]
        if truncated:
            entries.append(self._write(Repair(moved=self._truncated_line_path(len(complete)).name)))
        return entries

    def _check_chain(self, number: int, line: bytes, before: str) -> None:
        """Refuse a line that does not follow on the line with the hash `before`."""
        try:
            content = json.loads(line)
            is_valid = content["before"] == before and content["number"] == number
        except (ValueError, KeyError, TypeError):
            is_valid = False
        if not is_valid:
            # A changed line is valid JSON itself: the mismatch shows in the line after it.
            raise UserError(
                f"{self.path}: the hash in line {number} does not match line {number - 1}: one of the two was changed, "
                "or a line between them was removed. Find out who wrote to this file, and restore it from a backup."
            )

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            return Entry.from_line(line)
        except (ValidationError, KeyError) as error:
            told = problem(error) if isinstance(error, ValueError) else f"no or unknown key {error}"
            raise UserError(
                f"{self.path}, line {number}: another version of the project wrote this entry ({told}). Use that "
                "version."
            ) from None

    def _move_truncated_line(self, length: int, truncated: bytes) -> None:
        """Move a line that a crash left incomplete from the ledger to a separate file."""
        path = self._truncated_line_path(length)
        path.write_bytes(truncated)
        flush(path)
        os.truncate(self.path, length)
        flush(self.path)

    def _truncated_line_path(self, length: int) -> Path:
        return self.path.with_name(f"{NAME}.torn-at-{length}")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
