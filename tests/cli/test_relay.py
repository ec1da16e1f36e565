"""`polynya relay`: prints an allocation and echoes datagrams."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.aio.turn_house import ECHO, serving
from tests.cli.conftest import Process, polynya
from tests.turn.client.relay import Relay

pytestmark = pytest.mark.slow

USER = "alice:open sesame"


@contextmanager
def a_server(relay: Relay | None = None) -> Iterator[tuple[Relay, str]]:
    """Run the model of a TURN server in a thread."""
    started, ended, found = threading.Event(), asyncio.Event(), []
    loops = []

    async def main() -> None:
        async with serving(relay) as running:
            found.append(running)
            loops.append(asyncio.get_running_loop())
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(60)
        yield found[0]
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_relayed_address_is_printed_and_freed(transport: str) -> None:
    with a_server() as (server, where):
        done = polynya("relay", f"turn:{where}?transport={transport}", "--user", USER, "--once")
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"198.51.100.7:49152\n"
        assert f"over {transport}, lifetime 600 s; our address at the server is 127.0.0.1:" in done.stderr.decode()
        assert server.allocations == {}


def test_json_is_one_document_and_nothing_else() -> None:
    with a_server(Relay(families=(4,))) as (_, where):
        arguments = ("relay", f"turn:{where}", "-u", USER, "--once", "--json", "-f", "4", "-f", "6")
        done = polynya(*arguments)
        document = json.loads(done.stdout)
        assert done.stderr == b"" and document["relayed"] == ["198.51.100.7:49152"]
        assert document["refused"] == [{"family": 6, "code": 440, "reason": "not here"}]


def test_relay_runs_until_interrupted_and_frees_its_allocation(start: Callable[..., Process]) -> None:
    with a_server(Relay(forbidden=("192.0.2.51",))) as (server, where):
        process = start("relay", f"turn:{where}", "-u", USER, "-p", "192.0.2.51:1", "-p", str(ECHO), "--channel")
        assert process.line() == "198.51.100.7:49152\n"
        assert "403" in process.until("192.0.2.51")
        process.until(f"echoing datagrams from {ECHO}\n")
        [allocation] = server.allocations.values()
        assert [peer for peer, _ in allocation.channels.values()] == [ECHO]
        process.signal(signal.SIGINT)
        process.until("0 datagrams echoed")
        assert process.wait() == 130 and server.allocations == {}


def test_a_server_that_refuses_is_exit_code_1_and_one_line() -> None:
    with a_server() as (_, where):
        for user in ((), ("--user", "alice:wrong")):
            done = polynya("relay", f"turn:{where}", *user)
            assert done.returncode == 1 and done.stdout == b""
            [line] = done.stderr.decode().splitlines()
            assert line.startswith("polynya: 401")
            assert "refuses the credentials of 'alice'" in line if user else "asks for a user name" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("stun:127.0.0.1",),
        ("turn:127.0.0.1", "--peer", "bob"),
        ("turn:127.0.0.1", "--peer", "192.0.2.1", "--channel"),
        ("turns:127.0.0.1", "--ca", "/no/such/file"),
        ("turn:127.0.0.1", "--family", "5"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = polynya("relay", *arguments)
    assert done.returncode in (1, 2) and done.stdout == b"" and b"Traceback" not in done.stderr
    assert done.returncode == 2 or "--ca" in arguments
