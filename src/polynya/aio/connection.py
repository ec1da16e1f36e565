"""A connection: datagrams between two programs, over the pair that ICE selected.

Inbound data takes a short way: the socket calls `_deliver`, which appends to a queue, and `recv` takes it from there.
The queue is bounded in bytes: a datagram that finds it full is dropped and counted, as on any link.

The queue is two lists: datagrams are appended to one, and the other, reversed, gives the oldest from its end. So `recv`
takes the same time for any length of the queue, and an idle connection keeps no storage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Final, NamedTuple, Protocol

from polynya.core.arguments import shown
from polynya.core.errors import Attempt, ConfigurationError, ConnectionClosed, UsageError
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.ice.events import AgentState
from polynya.ice.pairs import PairView
from polynya.ice.report import PairReport
from polynya.session.report import SessionReport

from .waiting import Waiting

RECEIVE_BUFFER: Final = 4 << 20
"""Bytes of datagrams that wait for `recv` before more are dropped."""
OVERHEAD: Final = 64
"""Bytes that each datagram counts besides its own: its object takes them, so that empty ones are bounded, too."""
DRAIN_INTERVAL: Final = 0.001
"""Seconds between two looks of `drain` at a socket that accepts nothing."""
NO_PATH: Final = "the connection has no path at this moment: wait for `path_changed()`, or look at `ready`"


def check_receive_buffer(size: int) -> int:
    """Returns the option `receive_buffer`; ConfigurationError if it is not a number of bytes that holds a datagram."""
    if type(size) is not int or size < OVERHEAD:
        raise ConfigurationError(f"receive_buffer is a number of bytes, at least {OVERHEAD}, not {shown(size)}")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveBufferFull:
    """A datagram was dropped because `recv` was not called for too long. Emitted once for each connection.

    `Connection.datagrams_dropped` counts all of them.
    """

    stream: int
    component: int
    size: int
    """The option `receive_buffer`, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The pair that a connection uses at this moment, and the counters of the connection."""

    local: Candidate
    """As the other side sees it; behind a NAT this is not the socket's own address."""
    remote: Candidate
    nominated: bool
    relayed: bool
    """Data goes through a relay of this side, or of the other side as far as it is known."""
    rtt: float | None
    """Seconds, of the last connectivity or consent check that was answered."""
    reason: str
    """Why ICE selected this pair."""
    datagrams_sent: int = 0
    """Accepted by the system. This and the other counters are of the connection, over all its paths."""
    datagrams_received: int = 0
    datagrams_dropped: int = 0
    """Arrived while the receive queue was full."""
    datagrams_refused: int = 0
    """Not sent: the system refused them, for example because a buffer was full."""
    datagrams_without_path: int = 0
    """Not sent: there was no path at that moment."""

    def __str__(self) -> str:
        kind = "relayed" if self.relayed else "direct"
        settled = "nominated" if self.nominated else "may still improve"
        return f"{self.local.label} -> {self.remote.label} ({kind}, {settled})"

    def __repr__(self) -> str:
        return f"<Path {self}>"


class Traffic(NamedTuple):
    """Application data of a connection, or of one of its pairs."""

    packets_sent: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    bytes_received: int = 0
    packets_refused: int = 0
    """The system refused them; they are not counted as sent."""
    bytes_refused: int = 0
    sent_at: float = 0.0
    """When the last datagram was sent, in seconds since 1970; 0 if none was."""
    received_at: float = 0.0

    def since(self, then: Traffic, before: Traffic) -> Traffic:
        """Returns `before` plus what was counted between `then` and this moment."""
        sent, sent_bytes, received, received_bytes, refused, refused_bytes = (
            old + now - start for old, now, start in zip(before[:6], self[:6], then[:6], strict=True)
        )
        return Traffic(
            sent,
            sent_bytes,
            received,
            received_bytes,
            refused,
            refused_bytes,
            self.sent_at if self.sent_at != then.sent_at else before.sent_at,
            self.received_at if self.received_at != then.received_at else before.received_at,
        )


_NONE: Final = Traffic()


_NO_TRAFFIC: Final[Mapping[int, Traffic]] = {}
"""Of a connection that was never moved; replaced, not changed."""


def as_bytes(data: object) -> bytes:
    """Returns application data as bytes; UsageError if it is of a type that cannot be sent."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    hint = ": encode it first" if isinstance(data, str) else ""
    raise UsageError(f"send() takes bytes, bytearray or memoryview, not {type(data).__name__}{hint}")


class ConnectionAgent(Protocol):
    """The agent that a connection belongs to: an `Agent` or a `MuxedAgent`."""

    @property
    def state(self) -> AgentState: ...

    @property
    def description(self) -> Description: ...

    @property
    def is_controlling(self) -> bool: ...

    @property
    def counters(self) -> dict[str, int]: ...

    async def completed(self, timeout: float | None = None) -> None: ...

    def pairs(self) -> list[PairView]: ...

    def remote_candidates(self, stream: int | None = None) -> list[Candidate]: ...

    def attempts(self) -> tuple[Attempt, ...]: ...

    def stats(self) -> dict[str, dict[str, Any]]: ...

    def why(self) -> SessionReport: ...

    def why_pair(self, number: int) -> PairReport | None: ...

    def restart(self, components: Sequence[int] | None = None) -> Description: ...

    def interfaces_changed(self) -> bool: ...

    async def close(self) -> None: ...

    def _selected(self, stream: int, component: int) -> PairView | None:
        """Returns the pair that a component's data is sent on, if there is one."""

    def _max_datagram_size(self, pair: PairView) -> int:
        """Returns the bytes that fit `pair` without fragmentation."""

    def _writable(self, stream: int, component: int) -> bool:
        """Returns whether the socket of the selected pair accepts a datagram; true if there is no pair."""

    def _deliver_late(self, connection: Connection, data: bytes) -> None:
        """Takes data that arrived for a closed connection."""

    def _receive_buffer_full(self, event: ReceiveBufferFull) -> None:
        """Takes the event of the first dropped datagram."""


class ConnectionOwner(Protocol):
    """Gets the notice that a user closed a connection: its agent, or the meeting that made it."""

    async def _connection_closed(self) -> None:
        """A user closed one of the connections."""


class Connection(Waiting):
    """Datagrams to and from the other side: `send`, `recv`, `async for`. Made by `Agent.connect`.

    Message boundaries are kept. Datagrams may be lost and are not encrypted. `send` and `recv` raise ConnectionClosed,
    with the reason, once the connection is closed; `recv` first returns what had arrived.

    - `agent`: the agent of this connection, for `why`, `stats`, `restart` and so on.
    - `stream`, `component`: the component that this connection is for.
    - `datagrams_sent`, `bytes_sent`, `datagrams_received`, `bytes_received`: application data, without any header.
    - `datagrams_dropped`: arrived while the receive buffer was full (the option `receive_buffer`).
    - `datagrams_refused`, `bytes_refused`: not sent, because the system refused them.
    - `datagrams_without_path`: not sent, because there was no path at that moment.
    - `pair_changes`: how often data was moved to another pair, the first one included.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_deliver",
        "_drained_at",
        "_failed",
        "_max_length",
        "_moved_at",
        "_owner",
        "_pair",
        "_queue",
        "_queued",
        "_ready",
        "_reason",
        "_receive_buffer",
        "_received_at",
        "_receiver",
        "_send",
        "_sent_at",
        "_settled",
        "agent",
        "bytes_received",
        "bytes_refused",
        "bytes_sent",
        "component",
        "datagrams_dropped",
        "datagrams_received",
        "datagrams_refused",
        "datagrams_sent",
        "datagrams_without_path",
        "pair_changes",
        "stream",
    )

    def __init__(
        self,
        *,
        stream: int,
        component: int,
        agent: ConnectionAgent,
        owner: ConnectionOwner,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        super().__init__()
        self.stream = stream
        self.component = component
        self.agent = agent
        self._owner = owner
        self.datagrams_sent = self.bytes_sent = 0
        self.datagrams_received = self.bytes_received = 0
        self.datagrams_refused = self.bytes_refused = 0
        self.datagrams_without_path = 0
        self.datagrams_dropped = 0
        self.pair_changes = 0
        self._sent_at = self._received_at = 0.0
        """When the last datagram was sent and arrived, in seconds since 1970; 0 if there was none."""
        self._queue: list[bytes] | tuple[()] = ()
        self._ready: list[bytes] | tuple[()] = ()
        """The oldest datagrams, reversed; those in `_queue` come after them."""
        self._queued = 0
        self._receive_buffer = receive_buffer
        """Bytes of both lists, and their limit; the limit of a closed connection is negative."""
        self._drained_at = 0
        """`datagrams_refused` at the last `drain`."""
        self._receiver: asyncio.Future[None] | None = None
        self._pair = 0
        """The id of the pair in use, and the counters at the time when data was moved to it."""
        self._moved_at = _NONE
        self._settled: Mapping[int, Traffic] = _NO_TRAFFIC
        """The traffic of the pairs before it."""
        self._reason = ""
        self._send: Callable[[bytes], bool] | None = None
        self._max_length = 0
        self._closed: str | None = None
        self._failed = False
        """Whether it ended because no pair worked: a later success of the agent makes a new connection."""
        self._deliver = self._enqueue
        """Bound once: every path that data may come by keeps it."""

    def __repr__(self) -> str:
        closed = None if self._closed is None else f"closed: {self._closed}"
        state = closed or (str(self.path) if self.ready else "no path")
        return f"<Connection {self.stream}/{self.component} {state}>"

    # ---------------------------------------------------------------------------------------------------------- data

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        """Sends one datagram at once. Returns False if it was not sent, which the counters tell apart:

        - `datagrams_without_path`: there is no path at this moment; ICE still looks for one (`ready` is False).
        - `datagrams_refused`: the system refused it, for example because a buffer was full.

        Raises ConnectionClosed once the connection is closed. Raises UsageError for data of another type and for more
        bytes than the transport of the path can carry; `max_datagram_size` is what also fits without fragmentation.
        """
        send = self._send
        if send is None or type(data) is not bytes or len(data) > self._max_length:
            return self._send_checked(data)
        if send(data):
            self.datagrams_sent += 1
            self.bytes_sent += len(data)
            self._sent_at = time()
            return True
        self.datagrams_refused += 1
        self.bytes_refused += len(data)
        return False

    def _send_checked(self, data: bytes | bytearray | memoryview) -> bool:
        """The slow half of `send`: no path, another type than bytes, or too many of them."""
        data = as_bytes(data)
        if self._closed is not None:
            raise ConnectionClosed(self._closed)
        if self._send is None:
            self.datagrams_without_path += 1
            return False
        if len(data) > self._max_length:
            raise UsageError(
                f"a datagram of {len(data)} bytes is too long: {self.path} carries {self._max_length}, and "
                f"{self.max_datagram_size} without fragmentation"
            )
        return self.send(data)

    async def recv(self) -> bytes:
        """Returns the next datagram. Raises ConnectionClosed when the connection is closed and the queue is empty.

        One task may wait at a time; a second one gets a UsageError. Cancelling loses no datagram.
        """
        if ready := self._ready:
            return self._take(ready)
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
        self._queue = ()
        if len(queue) > 1:
            queue.reverse()
            self._ready = queue
        return self._take(queue)

    def _take(self, ready: list[bytes]) -> bytes:
        data = ready.pop()
        if not ready:
            self._ready = ()
        self._queued -= len(data) + OVERHEAD
        return data

    async def drain(self) -> None:
        """Waits until the local socket accepts datagrams again, at least one turn of the event loop.

            while not connection.send(data):
                await connection.drain()

        It waits for a path if there is none, and raises ConnectionClosed once the connection is closed. It knows
        nothing of the network and of the peer, which may still lose what is sent too fast: see the how-to on pacing.
        """
        refused, self._drained_at = self.datagrams_refused != self._drained_at, self.datagrams_refused
        await asyncio.sleep(DRAIN_INTERVAL if refused else 0)  # some refusals come from beyond the socket (ENOBUFS)
        while self._closed is None:
            if self._send is None:
                await self._changed()
            elif self.agent._writable(self.stream, self.component):
                return
            else:
                await asyncio.sleep(DRAIN_INTERVAL)
        raise ConnectionClosed(self._closed)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields every datagram until the connection is closed."""
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
        """The pair in use at this moment.

        Raises ConnectionClosed once the connection is closed, UsageError if there is no path at this moment.
        """
        pair = self._selected()
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
            datagrams_refused=self.datagrams_refused,
            datagrams_without_path=self.datagrams_without_path,
        )

    async def path_changed(self) -> Path:
        """Waits until the path changes (another pair, or its nomination) and returns the new one.

        If the path is lost, it waits for the next one. Raises ConnectionClosed once the connection is closed.
        """
        while self._closed is None:
            await self._changed()
            if self.ready:
                return self.path
        raise ConnectionClosed(self._closed)

    def _selected(self) -> PairView:
        """Returns the pair in use; ConnectionClosed or UsageError if there is none."""
        if self._closed is not None:
            raise ConnectionClosed(self._closed)
        pair = self.agent._selected(self.stream, self.component) if self._send is not None else None
        if pair is None:
            raise UsageError(NO_PATH)
        return pair

    @property
    def max_datagram_size(self) -> int:
        """Bytes that fit the path without fragmentation, by the least MTU of its IP version (RFC 8085, section 3.2).

        Through a TURN server, the header of ChannelData or of a Send indication counts, and the IP version of the path
        to the server. It changes with the path. Raises ConnectionClosed once the connection is closed, UsageError if
        there is no path at this moment.
        """
        return self.agent._max_datagram_size(self._selected())

    @property
    def ready(self) -> bool:
        """Whether there is a path to send on."""
        return self._send is not None

    @property
    def closed(self) -> bool:
        return self._closed is not None

    # --------------------------------------------------------------------------------------------------------- close

    async def wait_closed(self) -> str:
        """Waits until the connection is closed, by this side or because no pair works, and returns the reason."""
        while self._closed is None:
            await self._changed()
        return self._closed

    async def close(self) -> None:
        """Closes the connection of this component. Safe to call twice.

        With the last connection of an agent the agent stops sending, consent checks included. Its context closes it.
        """
        self._end("closed here")
        await self._owner._connection_closed()  # also if it has ended before: its owner may hold a room

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------- for the agent

    def _enqueue(self, data: bytes) -> None:
        """Takes a datagram that arrived."""
        queue = self._queue
        queued = self._queued + len(data) + OVERHEAD
        if queued > self._receive_buffer:
            self._drop(data)
            return
        self._queued = queued
        self.datagrams_received += 1
        self.bytes_received += len(data)
        receiver = self._receiver
        if queue:
            queue.append(data)
            if receiver is None:  # else it was woken in this turn of the loop, for one that has the time
                self._received_at = time()
        else:
            self._queue = [data]
            self._received_at = time()
        if receiver is not None and not receiver.done():
            receiver.set_result(None)

    def _drop(self, data: bytes) -> None:
        """Drops a datagram that does not fit; a closed connection passes it on, which may have a successor."""
        if self._closed is not None:
            self.agent._deliver_late(self, data)
            return
        self.datagrams_dropped += 1
        if self.datagrams_dropped == 1:
            self.agent._receive_buffer_full(
                ReceiveBufferFull(stream=self.stream, component=self.component, size=self._receive_buffer)
            )

    def _move(self, send: Callable[[bytes], bool] | None, pair: int, reason: str, *, max_length: int) -> None:
        """Moves data to another pair, by its id, or to none: `send` None and `pair` 0."""
        if self._closed is None:
            if pair != self._pair:
                if self._pair:  # else what came before there was a pair counts for the first one
                    self._settled, self._moved_at = self._traffic_by_pair(), self._traffic
                self._pair = pair
                self.pair_changes += bool(pair)
            self._send, self._max_length, self._reason = send, max_length, reason
            self._wake()

    @property
    def _traffic(self) -> Traffic:
        """The traffic since the start, over all pairs."""
        return Traffic(
            self.datagrams_sent,
            self.bytes_sent,
            self.datagrams_received,
            self.bytes_received,
            self.datagrams_refused,
            self.bytes_refused,
            self._sent_at,
            self._received_at,
        )

    def _traffic_by_pair(self) -> Mapping[int, Traffic]:
        """The traffic of each pair, by its id; what arrives counts for the pair that is selected at that time."""
        if not self._pair:
            return self._settled
        before = self._settled.get(self._pair, _NONE)
        return {**self._settled, self._pair: self._traffic.since(self._moved_at, before)}

    def _end(self, reason: str, *, failed: bool = False) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        self._failed = failed
        self._send = None
        self._receive_buffer = -1
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        self._wake()
