"""Log lines: one line each, bounded, escaped, and not too many."""

from __future__ import annotations

import io
import logging

import pytest

from polynya.serve.log import LINE_LENGTH, FloodFilter, LineFormatter


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("polynya.serve", logging.WARNING, "x.py", 1, message, args, None)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2Jgone", "a\x00b", "\u202eevil", "a\u2028b", "\ud800"])
def test_what_a_client_sent_cannot_leave_its_line(text: str) -> None:
    line = LineFormatter().format(record("link from %s", text))
    assert line.isascii() and line.isprintable()


def test_a_line_is_bounded() -> None:
    line = LineFormatter().format(record("%s", "x" * 100_000))
    assert len(line) == LINE_LENGTH
    assert line.endswith("...")


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        handler = logging.StreamHandler(stream := io.StringIO())
        handler.setFormatter(LineFormatter())
        logger = logging.Logger("polynya.test")  # noqa: LOG001 - of its own, so that no other test sees it
        logger.addHandler(handler)
        logger.exception("failed")
    assert stream.getvalue().count("\n") == 1


def test_a_flood_is_cut_and_counted() -> None:
    now = 0.0
    flood = FloodFilter(lines=10, clock=lambda: now)
    assert sum(flood.filter(record("x")) for _ in range(1000)) == 10
    now = 1.0
    first = record("next %d", 2)
    assert flood.filter(first)
    assert first.getMessage() == "next 2 [990 lines left out before this]"
    second = record("x")
    assert flood.filter(second)
    assert second.getMessage() == "x"
