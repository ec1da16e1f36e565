"""The log: one escaped line for each record, of bounded length and rate."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.serve.log import LINE_LENGTH, FloodFilter, LineFormatter
from polynya.serve.relaying import Relaying
from polynya.turn.server.commands import Client
from polynya.turn.server.events import RequestRefused


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("polynya.serve", logging.WARNING, "x.py", 1, message, args, None)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2Jgone", "a\x00b", "\u202eevil", "a\u2028b", "\ud800"])
def test_text_of_a_client_cannot_leave_its_line(text: str) -> None:
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
        logger = logging.Logger("polynya.test")  # noqa: LOG001 - separate from the other tests
        logger.addHandler(handler)
        logger.exception("failed")
    assert stream.getvalue().count("\n") == 1


def test_a_flood_is_dropped_and_counted() -> None:
    now = 0.0
    flood = FloodFilter(lines=10, clock=lambda: now)
    assert sum(flood.filter(record("x")) for _ in range(1000)) == 10
    now = 1.0
    first = record("next %d", 2)
    assert flood.filter(first)
    assert first.getMessage() == "next 2 [990 lines dropped before this]"
    second = record("x")
    assert flood.filter(second)
    assert second.getMessage() == "x"


def test_a_record_without_room_is_counted_before_it_is_made() -> None:
    now = 0.0
    flood = FloodFilter(lines=10, clock=lambda: now)
    written = sum(flood.has_room() and flood.filter(record("x")) for _ in range(1000))
    assert written == 10
    now = 1.0
    assert flood.has_room()
    first = record("next")
    assert flood.filter(first)
    assert first.getMessage() == "next [990 lines dropped before this]"


def failregex() -> re.Pattern[str]:
    """Return the documented filter, with the pattern that fail2ban uses for a host."""
    page = (Path(__file__).parent.parent.parent / "docs" / "howto" / "serve.md").read_text(encoding="utf-8")
    [expression] = re.findall(r"^failregex = (.*)$", page, re.MULTILINE)
    return re.compile(expression.replace("<HOST>", r"(?P<host>[0-9A-Fa-f:.]+)"))


def line_of(host: str, code: int, reason: str, user: str = "") -> str:
    """Return the line that the server logs for a refused request."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("polynya.serve.turn")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    client = Client(Flow(1), Address(host, 50123))
    try:
        event = RequestRefused(client=client, method="ALLOCATE", code=code, reason=reason, user=user)
        Relaying.on_event(None, event)  # type: ignore[arg-type]  # a refusal is only logged
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return stream.getvalue().removesuffix("\n")


@pytest.mark.parametrize("host", ["198.51.100.7", "2001:db8::7"])
@pytest.mark.parametrize("reason", ["wrong password", "unknown user"])
def test_the_documented_filter_finds_password_guessing(host: str, reason: str) -> None:
    """coturn/coturn#756, #1467."""
    found = failregex().search(line_of(host, 401, reason))
    assert found is not None and found["host"] == host


def test_the_documented_filter_finds_nothing_else() -> None:
    user = "x refused: 401 wrong password\n2026-11-25T09:00:00+0000 INFO polynya.serve.turn: ALLOCATE from 192.0.2.1:1"
    for line in (
        line_of("198.51.100.7", 403, "peer 10.0.0.1: denied by 10.0.0.0/8 (private)", "alice"),
        line_of("198.51.100.7", 401, "credentials have expired"),
        line_of("198.51.100.7", 437, "no allocation", f"{user} refused: 401 wrong password"),
    ):
        assert failregex().search(line) is None, line
