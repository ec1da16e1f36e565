"""Log lines on one stream: one line each, bounded, escaped, and not more of them than anybody can read.

What a client sends may end up in a line; it must not be able to forge lines, to move the cursor, or to fill the disk.
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
    """One record is one line of printable ASCII."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        """The record's line; a traceback follows in the same line."""
        line = super().format(record).rstrip().encode("unicode_escape").decode("ascii")
        return line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 3]}..."


class FloodFilter(logging.Filter):
    """Lets so many records through in each second, and says how many it did not."""

    def __init__(self, lines: int = LINES_PER_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._clock = clock
        self._second = -1
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether there is room for this record; the first of a new second tells what was left out before."""
        second = int(self._clock())
        if second != self._second:
            left_out = max(0, self._count - self._lines)
            self._second, self._count = second, 0
            if left_out:
                record.msg, record.args = f"{record.getMessage()} [{left_out} lines left out before this]", None
        self._count += 1
        return self._count <= self._lines

    def has_room(self) -> bool:
        """Whether a record of now would be let through; if not, it counts as one that was left out."""
        if int(self._clock()) != self._second or self._count < self._lines:
            return True
        self._count += 1
        return False


def has_room() -> bool:
    """Whether there is room for one more line; if not, it counts as one that was left out.

    For lines that clients can have as many of as they like: to make a record costs more than what it tells of.
    """
    for handler in logging.getLogger().handlers:
        for each in handler.filters:
            if isinstance(each, FloodFilter) and not each.has_room():
                return False
    return True


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send Polynya's log, and the warnings of the libraries, to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(FloodFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("polynya").setLevel(level)
    # what no line shows need not be looked for: each client makes lines (see "Optimization" in logging's manual)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    # a client can make uvicorn warn at will: what matters of it is counted
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
