"""Progress of a long step with its rate and the time left: a bar on a terminal, a log line every ten seconds
elsewhere.
"""

import logging
import sys
import threading
import time
from types import TracebackType
from typing import NoReturn, Self, TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

# Seconds between two lines where the output is no terminal (a log file, Prefect, CI).
LINE_EVERY = 10.0


class Progress:
    """Counts work done out of a total, from any thread; use it as a context manager.

    Args:
        what: what is being done, such as "reading images".
        total: how much there is to do, in `unit`s; None if that is not known.
        unit: what is counted, such as "images" or "B" (bytes are shown in MB).
        stream: where to show it; standard error by default.
    """

    def __init__(self, what: str, total: int | None, unit: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._started = self._last_line = time.monotonic()
        self._lines = 0
        self._lock = threading.Lock()
        self._note = ""
        self._bar: tqdm[NoReturn] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                desc=what,
                unit=" " + unit,
                unit_scale=unit == "B",
                file=self._stream,
                dynamic_ncols=True,
                leave=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and (self._lines or time.monotonic() - self._started > LINE_EVERY):
            self._log()

    def add(self, amount: int = 1, note: str = "") -> None:
        """Report `amount` more units done; `note` is shown at the end of the line (loss, metric)."""
        with self._lock:
            self._done += amount
            self._note = note or self._note
            if self._bar is not None:
                if note:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(amount)
            elif time.monotonic() - self._last_line >= LINE_EVERY:
                self._log()

    def _log(self) -> None:
        self._last_line = time.monotonic()
        self._lines += 1
        elapsed = max(self._last_line - self._started, 1e-9)
        rate = self._done / elapsed
        scale, unit = (1e6, "MB") if self._unit == "B" else (1, self._unit)
        tail = f", {self._note}" if self._note else ""
        if self._total is None:
            logger.info(f"{self._what}: {self._done / scale:,.0f} {unit}, {rate / scale:,.1f} {unit}/s{tail}")
            return
        left = (self._total - self._done) / rate if rate else float("inf")
        share = 100 * self._done / self._total if self._total else 100
        progress = {"done": self._done, "total": self._total, "unit": self._unit}
        logger.info(
            f"{self._what}: {share:.0f} % ({self._done / scale:,.0f} of {self._total / scale:,.0f} {unit}), "
            f"{rate / scale:,.1f} {unit}/s, {clock(left)} left{tail}",
            extra={"progress": progress},
        )


def clock(seconds: float) -> str:
    """A duration as people write it: 0:07, 12:40, 3:05:00; "?" where it is not known."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
