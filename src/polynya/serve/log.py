"""The log: one line for each record, escaped, of bounded length and at a bounded rate.

A line may contain text from a client. The client must not be able to forge lines, move the cursor or fill the disk.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

LINE_LENGTH: Final = 500
LINES_PER_SECOND: Final = 100


class LineFormatter(logging.Formatter):
    """Formats a record as one line of printable ASCII."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record. A traceback is part of the same line."""
        line = super().format(record).rstrip().encode("unicode_escape").decode("ascii")
        return line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 3]}..."


class FloodFilter(logging.Filter):
    """Passes a limited number of records each second, and counts the records that it drops."""

    def __init__(self, lines: int = LINES_PER_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._clock = clock
        self._second = -1
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record passes. The first record of a second gets the number of dropped records before it."""
        second = int(self._clock())
        if second != self._second:
            dropped = max(0, self._count - self._lines)
            self._second, self._count = second, 0
            if dropped:
                record.msg, record.args = f"{record.getMessage()} [{dropped} lines dropped before this]", None
        self._count += 1
        return self._count <= self._lines

    def has_room(self) -> bool:
        """Whether a record would pass now. If not, it counts as dropped."""
        if int(self._clock()) != self._second or self._count < self._lines:
            return True
        self._count += 1
        return False


def has_room() -> bool:
    """Whether the log accepts one more line now. If not, the line counts as dropped.

    Check this before logging an event that clients can trigger at will: a record costs more than the event itself.
    """
    for handler in logging.getLogger().handlers:
        for each in handler.filters:
            if isinstance(each, FloodFilter) and not each.has_room():
                return False
    return True


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write Polynya's log, and warnings of libraries, to `stream`; by default standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(FloodFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("polynya").setLevel(level)
    # no line shows these fields, and collecting them takes time (see "Optimization" in the manual of logging)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    # clients can trigger warnings of uvicorn at will
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
