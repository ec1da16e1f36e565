"""Connections are accepted again after the system had no resources for them, and the log says so, seldom."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from polynya.aio import accepting
from polynya.aio.accepting import Acceptor, PlainConnections, Seldom
from tests.free_ports import free_port
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")


class Full(socket.socket):
    """A listening socket of a process that has no more file descriptors for a while."""

    number = errno.EMFILE
    failures = 0

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(self.number, "no")
        return super().accept()


def listening(number: int, failures: int) -> Full:
    made = Full()
    made.setblocking(False)
    made.bind(("127.0.0.1", free_port()))
    made.listen()
    made.number, made.failures = number, failures
    return made


@pytest.mark.parametrize(("number", "lines"), [(errno.EMFILE, 1), (errno.ENOBUFS, 1), (errno.ECONNABORTED, 0)])
async def test_failures_are_logged_seldom_and_accepting_goes_on(
    number: int, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.01)
    listener = listening(number, 5)
    local = listener.getsockname()
    taken: list[str] = []

    def take(accepted: socket.socket, source: str) -> None:
        accepted.close()
        taken.append(source)

    acceptor = Acceptor(listener, take)
    with socket.create_connection(local):
        await until(lambda: taken == ["127.0.0.1"])
    acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(local)
    await acceptor.wait_closed()
    assert listener.fileno() == -1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == lines
    if number == errno.EMFILE:
        assert f"cannot accept connections on tcp 127.0.0.1:{local[1]}" in said[0] and "raise the limit" in said[0]


async def test_plain_connections_get_their_protocols() -> None:
    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")  # type: ignore[attr-defined]
            transport.close()

    listener = listening(errno.EMFILE, 0)
    connections = PlainConnections(listener, Greeter)
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
    connections.close()
    await connections.wait_closed()


def test_one_fault_in_ten_seconds_is_logged_with_the_number_of_those_before() -> None:
    now = 0.0
    faults = Seldom(lambda: now)
    assert faults.due() == 1
    assert [faults.due() for _ in range(3)] == [0, 0, 0]
    now = 9.9
    assert faults.due() == 0
    now = 10.0
    assert faults.due() == 5
