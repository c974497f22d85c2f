"""Log lines of the pipeline's processes: one format for people, JSON lines for the flow that runs them.

    RAL_LOG_FORMAT=json python -m tasks.train

prints {"level": "INFO", "logger": "ral.training", "message": "…"}, and with progress {"progress": {"done":
100, "total": 400, "unit": "images"}} in it. All lines go to standard error.
"""

import errno
import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

# `json` for JSON lines; anything else for people.
LOG_FORMAT = "RAL_LOG_FORMAT"

TEXT = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

# The packages of this project; others are shown from WARNING on.
OURS = ("ral", "tasks")


@dataclass(frozen=True)
class Line:
    """A log line of a process, as the flow reads it."""

    level: int
    """Level of `logging`."""
    message: str
    progress: float | None
    """Percent that is done; None if the line is not about progress."""


def configure() -> None:
    """Send the log lines of this process to standard error, in the format that RAL_LOG_FORMAT names."""
    handler = _Handler()
    handler.addFilter(_is_shown)
    handler.setFormatter(_Json() if os.environ.get(LOG_FORMAT) == "json" else TEXT)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def parse(text: str) -> Line | None:
    """A line that `configure` has written as JSON; None for any other text."""
    if not text.startswith('{"level"'):
        return None
    try:
        content = json.loads(text)
        level = logging.getLevelNamesMapping()[content["level"]]
        progress = content.get("progress")
        share = 100 * progress["done"] / max(progress["total"], 1) if progress else None
        return Line(level, str(content["message"]), share)
    except (ValueError, KeyError, TypeError):
        return None


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether a record is ours, or a warning of somebody else (some libraries set their own level to INFO)."""
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in OURS


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "level": record.levelname, "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            content["message"] += "\n" + self.formatException(record.exc_info)
        if hasattr(record, "progress"):
            content["progress"] = record.progress
        return json.dumps(content, ensure_ascii=False)


class _Handler(logging.Handler):
    """Writes to standard error as it is at that moment, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        try:
            if sys.stderr.isatty():
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The terminal is gone. SIGHUP or SIGTERM follows in a moment, and training must live to save.
