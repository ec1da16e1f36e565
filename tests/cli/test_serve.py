"""`polynya serve`: the ready line, errors, and a stop in time."""

from __future__ import annotations

import re
import signal
import socket
import urllib.request
from collections.abc import Callable

import pytest

from polynya.core.addresses import Address
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from tests.cli.conftest import Process, Running, polynya

pytestmark = pytest.mark.slow

Start = Callable[..., Process]


def test_the_listeners_of_the_ready_line_answer_at_once(server: Running) -> None:
    with urllib.request.urlopen(f"{server.url}/healthz", timeout=30) as answer:
        assert answer.read() == b"ok\n"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect(tuple(Address.parse(server.stun.removeprefix("stun:")))[:2])
        client.send(Message.request(Method.BINDING, bytes(12)).encode())
        assert decode(client.recv(2048))[XOR_MAPPED_ADDRESS] == Address.of(*client.getsockname())


def test_the_ready_line_names_every_listener_in_order(start: Start) -> None:
    process = start(
        "serve", "--listen", "localhost:0", "--listen", "[::1]:0", "--http", "127.0.0.1:0", "--http", "[::1]:0"
    )
    line = process.line()
    assert re.fullmatch(
        r"ready stun=127\.0\.0\.1:\d+ stun=\[::1\]:\d+ http=http://127\.0\.0\.1:\d+ http=http://\[::1\]:\d+\n", line
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_stops_in_time_with_open_connections(own_server: Running, start: Start, number: signal.Signals) -> None:
    port = int(own_server.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    member = start("connect", "waiting", server=own_server.url)
    member.until("waiting for the other side")
    own_server.process.signal(number)
    assert own_server.process.wait() == 0
    for connection in idle:
        connection.close()
    assert own_server.process.read(-1) == b"", "only the ready line"


def test_a_used_port_is_one_line_and_exit_code_2(server: Running) -> None:
    address = server.url.removeprefix("http://")
    done = polynya("serve", "--http", address)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().startswith(
        f"polynya: cannot listen on tcp {address}: Address already in use; another program"
    )
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "nonsense"], "no port"),
        (["--listen", "example.org:3478"], "not an IP address"),
        (["--http", "127.0.0.1:99999"], "not within"),
        (["--listen", "127.0.0.1:0", "--log-level", "loud"], "the level must be"),
        (["--listen", "192.0.2.77:0"], "cannot listen on udp"),
    ],
)
def test_an_invalid_option_is_an_error_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = polynya("serve", *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr


def test_a_hostile_client_cannot_write_lines_into_the_log(own_server: Running) -> None:
    port = int(own_server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /\x1b[31m\r\nX: y\r\n\r\n")
        client.recv(1000)
    own_server.process.signal(signal.SIGTERM)
    assert own_server.process.wait() == 0
    own_server.process.end()
    while (line := own_server.process.lines.get(timeout=30)) is not None:
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ \S+: ", line) and line.rstrip("\n").isprintable()
