"""Accepts the connections of a listening socket, and logs when the system has no resources for one.

The servers of event loops drop such connections, some without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from itertools import count
from typing import Final

from polynya.stun.budget import source_of

from . import sockets

logger: Final = logging.getLogger("polynya.aio")

BATCH: Final = 16
"""Connections accepted in a row before other tasks run: an accept that succeeds at once does not yield to the loop."""
PAUSE: Final = 0.2
"""Seconds before the next accept when the system has no resources for another connection."""
QUIET: Final = 10.0
"""Seconds between two log lines about the same fault."""
_ABORTED: Final = frozenset({errno.ECONNABORTED, errno.EPROTO})

AnyProtocol = asyncio.Protocol | asyncio.BufferedProtocol


class Seldom:
    """Counts faults, and decides which of them are logged: one in `QUIET` seconds."""

    def __init__(self, clock: Callable[[], float], quiet: float = QUIET) -> None:
        self._clock = clock
        self._quiet = quiet
        self._again = float("-inf")
        self._count = 0

    def due(self) -> int:
        """Count a fault. Returns the number of faults since the last one that was logged, or 0 if this one is not."""
        self._count += 1
        now = self._clock()
        if now < self._again:
            return 0
        self._again = now + self._quiet
        since, self._count = self._count, 0
        return since


class Acceptor:
    """Passes each accepted socket to `take`, with its source: an IPv4 address or IPv6 /64.

    Closes the listening socket at the end.
    """

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket, str], None]) -> None:
        self._listening = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._faults = Seldom(self._loop.time)
        self._local = sockets.from_sockaddr(listening.getsockname())
        self._task = self._loop.create_task(self._accept(), name=f"accept connections on {self._local}")
        self._task.add_done_callback(lambda _: listening.close())

    def close(self) -> None:
        """Stop listening."""
        self._task.cancel()
        with contextlib.suppress(OSError):  # on Linux, new connections are refused from now on
            self._listening.shutdown(socket.SHUT_RDWR)

    async def wait_closed(self) -> None:
        """Wait until the listening socket is closed."""
        await asyncio.wait([self._task])
        await asyncio.sleep(0)  # the socket is closed by a callback of the task

    async def _accept(self) -> None:
        for number in count(1):
            if number % BATCH == 0:
                await asyncio.sleep(0)
            try:
                accepted, address = await self._loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in _ABORTED:
                    await asyncio.sleep(0)
                    continue
                self._log(error)
                await asyncio.sleep(PAUSE)
                continue
            self._take(accepted, source_of(address[0].partition("%")[0]))

    def _log(self, error: OSError) -> None:
        if since := self._faults.due():
            advice = "; raise the limit of open files" if error.errno in {errno.EMFILE, errno.ENFILE} else ""
            more = f" ({since} times since the last such line)" if since > 1 else ""
            logger.warning(
                "cannot accept connections on tcp %s: %s%s%s", self._local, sockets.explain(error), more, advice
            )


class PlainConnections:
    """Accepts TCP connections without TLS. `make` makes the protocol of each."""

    def __init__(self, listening: socket.socket, make: Callable[[], AnyProtocol]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listening, self._begin)

    def close(self) -> None:
        """Stop accepting. Accepted connections stay open."""
        self._acceptor.close()

    async def wait_closed(self) -> None:
        """Wait until the listening socket is closed."""
        await self._acceptor.wait_closed()
        if self._starting:
            await asyncio.wait(self._starting)

    def _begin(self, accepted: socket.socket, _source: str) -> None:
        async def start() -> None:
            try:
                await self._loop.connect_accepted_socket(self._make, accepted)
            except OSError:
                accepted.close()  # the client has gone

        task = self._loop.create_task(start(), name="start an accepted connection")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
