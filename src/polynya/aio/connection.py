"""A connection: datagrams between two programs, over the pair that ICE selected.

What arrives takes the short way: the socket hands it straight to `_deliver`, and `recv` hands it on. The queue between
them is bounded; what finds it full is dropped and counted, as on any link.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from polynya.core.empty import NOTHING
from polynya.core.errors import ConnectionClosed, UsageError
from polynya.ice.candidates import Candidate

if TYPE_CHECKING:
    from .endpoint import Endpoint

QUEUE_LENGTH = 1024
"""Datagrams that wait for `recv` before more are dropped."""

MINIMUM_PATH_MTU = {4: 576, 6: 1280}
HEADERS = {4: 20 + 8, 6: 40 + 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The pair that a connection uses at this moment."""

    local: Candidate
    """As the other side sees it; behind a NAT not the socket's own address."""
    remote: Candidate
    nominated: bool
    relayed: bool
    rtt: float | None
    """Seconds, of the last check or consent check that was answered."""
    reason: str
    """Why this pair."""
    datagrams_sent: int = 0
    datagrams_received: int = 0
    datagrams_dropped: int = 0
    """Of the connection, over all its paths; dropped are those that found the receive queue full."""

    def __str__(self) -> str:
        kind = "relayed" if self.relayed else "direct"
        settled = "nominated" if self.nominated else "not yet nominated"
        return f"{self.local.label} -> {self.remote.label} ({kind}, {settled})"


class Traffic(NamedTuple):
    """Application data of a connection, or of one of its pairs."""

    packets_sent: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    bytes_received: int = 0
    packets_discarded: int = 0
    """What the system did not take; it is not among what was sent."""
    bytes_discarded: int = 0
    sent_at: float = 0.0
    """When something was sent last, in seconds since 1970; 0 where nothing was."""
    received_at: float = 0.0

    def since(self, then: Traffic, before: Traffic) -> Traffic:
        """What came to `before` from `then` to this moment."""
        sent, sent_bytes, received, received_bytes, discarded, discarded_bytes = (
            old + now - start for old, now, start in zip(before[:6], self[:6], then[:6], strict=True)
        )
        return Traffic(
            sent,
            sent_bytes,
            received,
            received_bytes,
            discarded,
            discarded_bytes,
            self.sent_at if self.sent_at != then.sent_at else before.sent_at,
            self.received_at if self.received_at != then.received_at else before.received_at,
        )


_NONE: Final = Traffic()


class ConnectionOwner(Protocol):
    """Who is told that a connection ends."""

    async def connection_closed(self) -> None:
        """A connection was closed by its user."""


class Connection:
    """Datagrams to and from the other side: `send`, `recv`, `async for`. Made by `Agent.connect`.

    Messages keep their bounds, may be lost, and are not encrypted. Both calls raise ConnectionClosed, with the reason,
    once the connection is over; `recv` first hands out what had arrived.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_moved_at",
        "_pair",
        "_path_waiters",
        "_queue",
        "_queue_length",
        "_reason",
        "_receiver",
        "_send",
        "_settled",
        "agent",
        "bytes_discarded",
        "bytes_received",
        "bytes_sent",
        "component",
        "datagrams_discarded",
        "datagrams_dropped",
        "datagrams_received",
        "datagrams_sent",
        "deliver",
        "owner",
        "pair_changes",
        "received_at",
        "sent_at",
        "stream",
    )

    def __init__(
        self,
        *,
        stream: int,
        component: int,
        agent: Endpoint,
        queue_length: int = QUEUE_LENGTH,
    ) -> None:
        self.stream = stream
        self.component = component
        self.datagrams_sent = 0
        self.datagrams_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.datagrams_discarded = 0
        """Of those that were sent, what the system did not take."""
        self.bytes_discarded = 0
        self.sent_at = self.received_at = 0.0
        """When the last datagram was sent and came, in seconds since 1970; 0 where there was none."""
        self.datagrams_dropped = 0
        """Arrived while `queue_length` others waited for `recv`."""
        self._queue: list[bytes] | tuple[()] = ()  # then a list: a tenth of an empty deque, as fast at these lengths
        self._queue_length = queue_length
        self._receiver: asyncio.Future[None] | None = None
        self._path_waiters: tuple[asyncio.Future[None], ...] = ()
        self.pair_changes = 0
        """How often data was moved to another pair, the first one included."""
        self._pair = 0
        """The pair that data goes on, by its id, and what was counted when it was moved there."""
        self._moved_at = _NONE
        self._settled: Mapping[int, Traffic] = NOTHING
        """What went over the pairs before it."""
        self._reason = ""
        self._send: Callable[[bytes], bool] | None = None
        self.agent = agent
        """The agent whose connection it is: it knows `why`, counts (`stats`) and begins anew (`restart`)."""
        self.owner: ConnectionOwner = agent
        """Who is told of the end: its agent, or who was put in its place."""
        self._closed: str | None = None
        self.deliver = self._deliver
        """For whatever data arrives; made once, as it is kept wherever data may come from."""

    # ---------------------------------------------------------------------------------------------------------- data

    def send(self, data: bytes) -> bool:
        """Send one datagram now, without waiting. False when it is lost before it left: the system refused it, or the
        path is gone and another is still looked for.

        Raises ConnectionClosed when the connection is over.
        """
        if self._send is not None:
            self.datagrams_sent += 1
            self.bytes_sent += len(data)
            if self._send(data):
                self.sent_at = time()
                return True
            self.datagrams_discarded += 1
            self.bytes_discarded += len(data)
            return False
        if self._closed is not None:
            raise ConnectionClosed(self._closed)
        return False

    async def recv(self) -> bytes:
        """The next datagram. Raises ConnectionClosed when the connection is over and nothing waits any more.

        One task may wait at a time; a second one is a UsageError. Cancelling loses nothing.
        """
        while not (queue := self._queue):
            if self._closed is not None:
                raise ConnectionClosed(self._closed)
            if self._receiver is not None:
                raise UsageError("another task waits in recv() already: let one task receive and share what it gets")
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        return queue.pop(0)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Every datagram until the connection is over."""
        return self._all()

    async def _all(self) -> AsyncIterator[bytes]:
        while True:
            try:
                data = await self.recv()
            except ConnectionClosed:
                return
            yield data

    # ---------------------------------------------------------------------------------------------------------- path

    @property
    def path(self) -> Path:
        """The pair in use, as it is now. Raises ConnectionClosed when there is none any more."""
        pair = self.agent.selected(self.stream, self.component) if self._send is not None else None
        if pair is None:
            raise ConnectionClosed(self._closed or "the connection has no path at this moment")
        return Path(
            local=pair.local,
            remote=pair.remote,
            nominated=pair.nominated,
            relayed=pair.relayed,
            rtt=pair.rtt,
            reason=self._reason,
            datagrams_sent=self.datagrams_sent,
            datagrams_received=self.datagrams_received,
            datagrams_dropped=self.datagrams_dropped,
        )

    async def path_changed(self) -> Path:
        """Wait for the next change of the path (nominated, moved to another pair) and return the new one."""
        if self._closed is not None:
            raise ConnectionClosed(self._closed)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path_waiters = (*self._path_waiters, waiter)
        try:
            await waiter
        finally:
            self._path_waiters = tuple(other for other in self._path_waiters if other is not waiter)
        return self.path

    async def nominated(self) -> Path:
        """Wait until both sides have settled on a pair and return it. Data flows before that too."""
        while not self.path.nominated:
            await self.path_changed()
        return self.path

    @property
    def max_datagram_size(self) -> int:
        """Bytes that surely fit the path in one piece: from the least MTU of its IP version (RFC 8085, section 3.2)."""
        family = self.path.remote.address.family
        return MINIMUM_PATH_MTU[family] - HEADERS[family]

    @property
    def ready(self) -> bool:
        """Whether there is a pair to send on."""
        return self._send is not None

    @property
    def closed(self) -> bool:
        return self._closed is not None

    # --------------------------------------------------------------------------------------------------------- close

    async def close(self) -> None:
        """End the connection; when it is the agent's last, its sockets are closed too. Safe to call twice."""
        if self._closed is None:
            self._end("closed here")
            await self.owner.connection_closed()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------- for the agent

    def _deliver(self, data: bytes) -> None:
        queue = self._queue
        if len(queue) >= self._queue_length:
            self.datagrams_dropped += 1
            return
        self.datagrams_received += 1
        self.bytes_received += len(data)
        receiver = self._receiver
        if queue:
            queue.append(data)
            if receiver is None:  # else it was woken in this turn of the loop, for one that has the time
                self.received_at = time()
        else:
            self._queue = [data]
            self.received_at = time()
        if receiver is not None and not receiver.done():
            receiver.set_result(None)

    def _move(self, send: Callable[[bytes], bool] | None, pair: int, reason: str) -> None:
        if self._closed is None:
            if pair != self._pair:
                if self._pair:  # else what came before there was a pair counts for the first one
                    self._settled, self._moved_at = self.traffic_by_pair(), self.traffic
                self._pair = pair
                self.pair_changes += bool(pair)
            self._send, self._reason = send, reason
            self._wake_path_waiters()

    @property
    def traffic(self) -> Traffic:
        """What was sent and received since the start, over all pairs."""
        return Traffic(
            self.datagrams_sent - self.datagrams_discarded,
            self.bytes_sent - self.bytes_discarded,
            self.datagrams_received,
            self.bytes_received,
            self.datagrams_discarded,
            self.bytes_discarded,
            self.sent_at,
            self.received_at,
        )

    def traffic_by_pair(self) -> Mapping[int, Traffic]:
        """What went over each pair, by its id. What arrives counts for the pair that is selected at that time."""
        if not self._pair:
            return self._settled
        before = self._settled.get(self._pair, _NONE)
        return {**self._settled, self._pair: self.traffic.since(self._moved_at, before)}

    def _end(self, reason: str) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        self._send = None
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        self._wake_path_waiters()

    def _wake_path_waiters(self) -> None:
        waiters, self._path_waiters = self._path_waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
