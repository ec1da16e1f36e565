"""One epoll for all UDP sockets of an event loop, which the loop itself watches as one file.

What a loop keeps for each watched socket (a handle, a key, tuples) is half a kilobyte, a tenth of what an idle agent
takes; here it is an entry of a dict. It also makes loops alike: libuv stops watching a socket that has an error
pending, as every ICMP error is, while an epoll around it is merely readable.

Where there is no epoll, sockets are watched by the loop one by one.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Final, Protocol

from .features import EPOLL

AT_ONCE: Final = 256
"""Sockets that are read in one turn of the loop."""


class Readable(Protocol):
    """What is told that its socket has something to read, or an error pending; or, rarely, that it may have."""

    def read(self) -> None: ...


_pollers: dict[asyncio.AbstractEventLoop, Poller] = {}


class Poller:
    """Watches sockets for one loop. It is there while it watches any."""

    __slots__ = ("_epoll", "_loop", "_readers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: dict[int, Readable] = {}
        self._epoll = select.epoll()
        try:
            loop.add_reader(self._epoll.fileno(), self._on_ready)
        except BaseException:
            self._epoll.close()
            raise

    def add(self, descriptor: int, reader: Readable) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._readers[descriptor] = reader

    def remove(self, descriptor: int) -> None:
        """Watch it no more; to be called before the socket is closed."""
        if self._readers.pop(descriptor, None) is None:
            return
        self._epoll.unregister(descriptor)
        if not self._readers:
            del _pollers[self._loop]
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _on_ready(self) -> None:
        readers = self._readers
        if len(readers) == 1:  # whose turn it is need not be asked
            next(iter(readers.values())).read()
            return
        for descriptor, _ in self._epoll.poll(0, AT_ONCE):
            reader = readers.get(descriptor)  # an earlier one may have closed it
            if reader is not None:
                reader.read()


def watch(loop: asyncio.AbstractEventLoop, sock: socket.socket, reader: Readable) -> None:
    """Call `reader.read` whenever `sock` has something to read, until `unwatch`.

    NotImplementedError where the loop cannot watch sockets.
    """
    if not EPOLL:
        loop.add_reader(sock, reader.read)
        return
    poller = _pollers.get(loop)
    if poller is None:
        poller = _pollers[loop] = Poller(loop)
    poller.add(sock.fileno(), reader)


def unwatch(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Undo `watch`. Safe to call twice, while the socket is open."""
    if not EPOLL:
        loop.remove_reader(sock)
    elif (poller := _pollers.get(loop)) is not None:
        poller.remove(sock.fileno())


def loops() -> tuple[asyncio.AbstractEventLoop, ...]:
    """The event loops that watch sockets by an epoll at present."""
    return tuple(_pollers)
