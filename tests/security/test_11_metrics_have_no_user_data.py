"""security.md, line 11: counters and labels contain no text from clients.

Log lines are bounded and escaped; the metrics need a request from this host or a token.
"""

from __future__ import annotations

import io
import logging

import pytest
from starlette.requests import Request

from polynya.core.addresses import Address
from polynya.serve.app import _may_read
from polynya.serve.log import LINE_LENGTH, FloodFilter, LineFormatter
from polynya.serve.relaying import Relaying
from polynya.stun.registry import Method
from polynya.turn.server.commands import Client
from polynya.turn.server.events import RequestRefused
from tests.turn.server.harness import CLIENT, LISTENER, Person, Table, config


def test_counters_have_a_bounded_set_of_names() -> None:
    table = Table(config())

    def visit(first: int) -> None:
        for number in range(first, first + 50):
            person = Person(table, Address(CLIENT.host, 2000 + number), f"user-{number}\u2603", "x")
            person.ask(Method.ALLOCATE, {})
            person.ask(Method.REFRESH, {})
            table.from_client(bytes((number,)) * number, person.address)
            table.run_for(1)

    visit(0)
    names = set(table.server.control.counters) | set(table.server.plane.counters)
    visit(50)
    assert set(table.server.control.counters) | set(table.server.plane.counters) == names
    assert not any("user-" in name or CLIENT.host in name for name in names)


@pytest.mark.parametrize(
    "name",
    ["a\nALLOCATE from 192.0.2.1:1 refused: 401", "\x1b[2J", "x" * 100_000, "\u202egnp.exe", "\0"],
)
def test_a_user_name_cannot_leave_its_log_line(name: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("polynya.serve.turn")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        refused = RequestRefused(
            client=Client(LISTENER, CLIENT), method="REFRESH", code=437, reason="no allocation", user=name
        )
        Relaying.on_event(None, refused)  # type: ignore[arg-type]  # such an event is only logged
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    [line] = stream.getvalue().splitlines()
    assert f"REFRESH from {CLIENT}, user " in line and len(line) <= LINE_LENGTH
    assert line.isascii() and line.isprintable()


def test_the_rate_of_log_lines_is_limited() -> None:
    now = 0.0
    flood = FloodFilter(clock=lambda: now)
    record = logging.LogRecord("polynya.serve.turn", logging.INFO, "x.py", 1, "refused", (), None)
    assert sum(flood.filter(record) for _ in range(100_000)) == 100


@pytest.mark.parametrize(
    ("client", "host", "headers", "token", "may"),
    [
        ("127.0.0.1", "localhost:8080", {}, "", True),
        ("::1", "[::1]:8080", {}, "", True),
        ("198.51.100.1", "localhost:8080", {}, "", False),
        ("127.0.0.1", "attacker.example", {}, "", False),
        ("127.0.0.1", "localhost:8080", {"x-forwarded-for": "198.51.100.1"}, "", False),
        ("127.0.0.1", "localhost:8080", {}, "secret", False),
        ("127.0.0.1", "localhost:8080", {"authorization": "Bearer secrex"}, "secret", False),
        ("198.51.100.1", "stun.example.org", {"authorization": "Bearer secret"}, "secret", True),
    ],
)
def test_the_metrics_need_a_request_from_this_host_or_the_token(
    client: str, host: str, headers: dict[str, str], token: str, may: bool
) -> None:
    """A page with a rebound DNS name (DNS rebinding) and a proxy on this host get no metrics."""
    raw = [(name.encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    request = Request({"type": "http", "client": (client, 4000), "headers": raw})
    assert _may_read(request, token) == may
