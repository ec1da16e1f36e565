"""The one epoll that watches the UDP sockets of a loop."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator

import pytest

from polynya.aio import poller

pytestmark = [
    pytest.mark.loops("asyncio", "uvloop"),
    pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll"),
]


class Reader:
    """Receives one datagram, and then closes the sockets of `closes`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got: list[bytes] = []
        self.closes: list[Reader] = []
        self.read_once = asyncio.get_running_loop().create_future()

    def read(self) -> None:
        self.got.append(self.sock.recv(100))
        for other in self.closes:
            poller.unwatch(asyncio.get_running_loop(), other.sock)
            other.sock.close()
        if not self.read_once.done():
            self.read_once.set_result(None)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for sock in made:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
    yield made
    for sock in made:
        sock.close()


async def test_each_socket_has_its_reader_and_a_loop_without_sockets_has_no_poller(
    sockets: list[socket.socket],
) -> None:
    loop = asyncio.get_running_loop()
    readers = [Reader(sock) for sock in sockets]
    for reader in readers:
        poller.watch(loop, reader.sock, reader)
    for number, sock in enumerate(sockets):
        sockets[0].sendto(b"%d" % number, sock.getsockname())
    await asyncio.wait_for(asyncio.gather(*(reader.read_once for reader in readers)), 10)
    assert [reader.got for reader in readers] == [[b"0"], [b"1"], [b"2"]]
    for sock in sockets:
        assert loop in poller.loops()
        poller.unwatch(loop, sock)
        poller.unwatch(loop, sock)
    assert loop not in poller.loops()


async def test_a_socket_that_is_closed_in_the_same_turn_is_not_read(sockets: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    one, two, last = (Reader(sock) for sock in sockets)
    one.closes, two.closes = [two], [one]
    for reader in (one, two, last):
        last.sock.sendto(b"data", reader.sock.getsockname())
        poller.watch(loop, reader.sock, reader)
    await asyncio.wait_for(last.read_once, 10)
    assert sorted([len(one.got), len(two.got)]) == [0, 1], "the first reader closed the other socket"
    for reader in (one, two, last):
        if reader.sock.fileno() >= 0:
            poller.unwatch(loop, reader.sock)


async def test_a_second_socket_may_be_added_and_removed(
    sockets: list[socket.socket],
) -> None:
    loop = asyncio.get_running_loop()
    one, two = Reader(sockets[0]), Reader(sockets[1])
    poller.watch(loop, one.sock, one)
    for turn in range(3):
        one.read_once = loop.create_future()
        sockets[2].sendto(b"%d" % turn, one.sock.getsockname())
        await asyncio.wait_for(one.read_once, 10)
        if turn == 1:
            poller.watch(loop, two.sock, two)
            sockets[2].sendto(b"two", two.sock.getsockname())
            await asyncio.wait_for(two.read_once, 10)
            poller.unwatch(loop, two.sock)
    assert (one.got, two.got) == ([b"0", b"1", b"2"], [b"two"])
    poller.unwatch(loop, one.sock)
    assert loop not in poller.loops()
