"""The ledger: one line for every decision, promotion and opening of the sealed set, each vouching for the one before.

`state_dir`/ledger.jsonl is only ever appended to. A line holds the SHA-256 of the line before it, so that a line that
was changed or taken out later is noticed; only the newest has nothing after it to vouch for it. Times belong here, for
this is no output of DVC.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ral.errors import UserError
from ral.release.durable import flush, locked

NAME = "ledger.jsonl"

# What the first line has in place of the SHA-256 of the line before.
FIRST = "0" * 64


class Ledger:
    """The ledger of a state_dir.

    Args:
        state_dir: the private folder; made if needed.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._lock = state_dir / ".ledger.lock"

    def entries(self) -> list[dict[str, Any]]:
        """Every entry, oldest first, after the chain was checked and a torn last line was moved aside.

        Returns:
            Dicts with `number` (from 1), `time` (ISO, UTC), `what`, `before` (SHA-256 of the line before) and the
            facts that `append` was given.

        Raises:
            UserError: a line was changed or is missing; names it.
        """
        with locked(self._lock):
            return self._read()

    def append(self, what: str, once: str | None = None, **facts: Any) -> dict[str, Any]:
        """Write an entry, and have the disk keep it before returning.

        Args:
            what: decision, promote, rollback, open-sealed.
            once: name of a fact; if an entry of the same `what` has the same value of it, nothing is written.
            facts: what JSON can hold.

        Returns:
            The entry, or the one that was there.

        Raises:
            UserError: see `entries`; nothing is added to a chain that is broken.
            OSError: the disk is full or fails; the ledger is as it was.
        """
        with locked(self._lock):
            entries = self._read()
            for entry in entries:
                if once is not None and entry["what"] == what and entry.get(once) == facts[once]:
                    return entry
            return self._write(what, facts)

    def _write(self, what: str, facts: dict[str, Any]) -> dict[str, Any]:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        entry = {
            "number": len(lines) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "what": what,
            "before": _digest(lines[-1]) if lines else FIRST,
            **facts,
        }
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        length = os.fstat(handle).st_size
        try:
            rest = memoryview(text.encode())
            while rest:  # a disk that is nearly full takes a part of the line, and says so by the number only
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, length)
            error.filename = str(self.path)
            raise
        finally:
            os.close(handle)
        flush(self.path.parent)
        return entry

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        if torn:
            self._set_aside(len(whole), torn)
        entries, before = [], FIRST
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                fits = entry["before"] == before and entry["number"] == number
            except (ValueError, KeyError, TypeError):
                fits = False
            if not fits:
                # A changed line is whole by itself: the line after it is the first that does not fit.
                raise UserError(
                    f"{self.path}: line {number} does not follow from the line before it: one of the two was changed, or "
                    "a line between them is gone. Find out who wrote to this file, and bring it back from a backup."
                )
            entries.append(entry)
            before = _digest(line)
        if torn:
            entries.append(self._write("repair", {"moved": self._aside(len(whole)).name}))
        return entries

    def _set_aside(self, length: int, torn: bytes) -> None:
        """Keep what a crash left of a line in a file of its own, and take it off the ledger."""
        aside = self._aside(length)
        aside.write_bytes(torn)
        flush(aside)
        os.truncate(self.path, length)
        flush(self.path)

    def _aside(self, length: int) -> Path:
        return self.path.with_name(f"{NAME}.torn-at-{length}")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
