"""The ledger: an append-only, hash-chained log of all decisions, promotions and openings of the sealed set.

Each line of `state_dir`/ledger.jsonl has the SHA-256 of the line before it, so later changes and deletions
are detected, except in the last line. Lines have timestamps: the ledger is not a DVC output.
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

# The field `before` of the first line.
FIRST = "0" * 64


class Ledger:
    """The ledger of a state_dir.

    Args:
        state_dir: the private folder; created if needed.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._lock = state_dir / ".ledger.lock"

    def entries(self) -> list[dict[str, Any]]:
        """All entries, oldest first. Verifies the chain and moves a truncated last line to a separate file.

        Returns:
            Dicts with `number` (from 1), `time` (ISO, UTC), `what`, `before` (SHA-256 of the line before) and the
            fields passed to `append`.

        Raises:
            UserError: a line was changed or is missing; the message names it.
        """
        with locked(self._lock):
            return self._read()

    def append(self, what: str, once: str | None = None, **fields: Any) -> dict[str, Any]:
        """Write an entry and fsync it.

        Args:
            what: decision, promote, rollback, open-sealed.
            once: name of a field; if an entry of the same `what` has the same value in it, nothing is written.
            fields: JSON-compatible values.

        Returns:
            The new entry, or the existing one.

        Raises:
            UserError: see `entries`; nothing is appended to a broken chain.
            OSError: the disk is full or fails; the ledger is unchanged.
        """
        with locked(self._lock):
            entries = self._read()
            for entry in entries:
                if once is not None and entry["what"] == what and entry.get(once) == fields[once]:
                    return entry
            return self._write(what, fields)

    def _write(self, what: str, fields: dict[str, Any]) -> dict[str, Any]:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        entry = {
            "number": len(lines) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "what": what,
            "before": _digest(lines[-1]) if lines else FIRST,
            **fields,
        }
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        length = os.fstat(handle).st_size
        try:
            remaining = memoryview(text.encode())
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

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        complete, truncated = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        if truncated:
            self._move_truncated_line(len(complete), truncated)
        entries, before = [], FIRST
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                entry = json.loads(line)
                is_valid = entry["before"] == before and entry["number"] == number
            except (ValueError, KeyError, TypeError):
                is_valid = False
            if not is_valid:
                # A changed line is valid JSON itself: the mismatch shows in the line after it.
                raise UserError(
                    f"{self.path}: the hash in line {number} does not match line {number - 1}: one of the "
                    "two was changed, "
                    "or a line between them was removed. Find out who wrote to this file, and restore it from a backup."
                )
            entries.append(entry)
            before = _digest(line)
        if truncated:
            entries.append(self._write("repair", {"moved": self._truncated_line_path(len(complete)).name}))
        return entries

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
