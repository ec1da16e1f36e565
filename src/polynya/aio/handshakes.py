"""TLS handshakes of a listener: connections are accepted one at a time, limited in number and in time.

    accepted --too many in progress, in all or from this source--> closed
    accepted --> SHAKING --complete in time--> the protocol's `connection_made`
                 SHAKING --error, timeout, the listener closes--> closed

A connection that never completes its handshake costs little memory, and the machine does not learn of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import sockets
from .accepting import Acceptor, AnyProtocol, Seldom, logger
from .tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeLimits:
    """Limits of one TLS listener's handshakes."""

    timeout: float = 10.0
    """Seconds for each handshake."""
    at_once: int = 512
    """Handshakes in progress, in all."""
    at_once_per_source: int = 64
    """Handshakes in progress from one IPv4 address or IPv6 /64, so that one host cannot keep all others out."""


class Handshakes:
    """Accepts connections from a listening socket, which it closes at the end. `make` makes each one's protocol."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[], AnyProtocol],
        tally: Tally,
        limits: HandshakeLimits,
    ) -> None:
        self.closed = False
        self.limits = limits
        """Applies to connections that are accepted from now on."""
        self._tally = tally
        self._context = context
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._by_source: dict[str, int] = {}
        self._faults = Seldom(self._loop.time)
        self._acceptor = Acceptor(listening, self._take)

    @property
    def in_progress(self) -> Mapping[str, int]:
        """The number of handshakes in progress, by source (an IPv4 address or IPv6 /64)."""
        return self._by_source

    def close(self) -> None:
        """Stop accepting and end the handshakes in progress. Accepted streams stay open."""
        self.closed = True
        self._acceptor.close()
        for task in self._shaking:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until no handshake is in progress."""
        await self._acceptor.wait_closed()
        if self._shaking:
            await asyncio.wait(self._shaking)

    def _take(self, accepted: socket.socket, source: str) -> None:
        limits, from_source = self.limits, self._by_source.get(source, 0)
        if len(self._shaking) >= limits.at_once or from_source >= limits.at_once_per_source:
            self._tally.handshakes_refused += 1
            accepted.close()
            return
        self._begin(accepted, source)

    def _log(self, source: str, error: OSError) -> None:
        if since := self._faults.due():
            more = f" ({since} since the last such line)" if since > 1 else ""
            reason = getattr(error, "reason", None) or sockets.explain(error) or type(error).__name__
            logger.info("a TLS handshake with %s failed: %s%s", source, reason, more)

    def _begin(self, accepted: socket.socket, source: str) -> None:
        begun = False
        self._by_source[source] = self._by_source.get(source, 0) + 1

        async def shake() -> None:
            nonlocal begun
            begun = True
            try:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.connect_accepted_socket(
                    self._make, accepted, ssl=self._context, ssl_handshake_timeout=self.limits.timeout
                )
            except OSError as error:  # includes SSLError and the timeout; the loop has closed the socket
                self._tally.handshakes_failed += 1
                self._log(source, error)

        def dispose(task: asyncio.Task[None]) -> None:
            self._shaking.discard(task)
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]
            if not begun:  # canceled before its first step
                accepted.close()

        task = self._loop.create_task(shake(), name="TLS handshake")
        self._shaking.add(task)
        task.add_done_callback(dispose)
