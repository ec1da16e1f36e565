"""Streams of clients (TCP, TLS): split into frames, counted by source, and closed while they have no allocation.

    accepted --too many of its source--------------> closed
    accepted --too many in all---------------------> the oldest stream without an allocation is closed;
                                                     if there is none, this one is closed
    accepted --no allocation within the timeout----> closed
    accepted --data without an allocation----------> closed
    any      --a malformed or too long frame-------> closed

So a client that opens streams without making allocations cannot lock other clients out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.timers import Timers
from polynya.stun.budget import source_of
from polynya.stun.framing import StreamFramer

from .commands import Client
from .config import Limits

MAX_FRAME: Final = 0xFFFF + 4
"""Bytes of the longest ChannelData; no valid frame is longer."""
MAX_UNSETTLED: Final = 2048
"""Bytes of an incomplete frame that are buffered for a stream without an allocation: requests are shorter."""


class Streams:
    """The open streams by flow."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.secure_listeners: Collection[Flow] = ()
        """Listeners whose streams are TLS."""
        self._open: dict[Flow, tuple[Client, StreamFramer]] = {}
        self._secure: dict[Flow, None] = {}
        self._by_source: dict[str, int] = {}
        self._timeouts: Timers[Flow] = Timers()
        self._idle: dict[Flow, None] = {}
        """Streams without an allocation, oldest first."""

    def evicted_for(self, client: Client) -> Flow | None:
        """Return the stream to close before this client's is accepted; None if there is room or none can be closed."""
        limits = self.limits
        if not limits.streams or len(self._open) < limits.streams or not self._source_has_room(client):
            return None
        return next(iter(self._idle), None)

    def _source_has_room(self, client: Client) -> bool:
        limit = self.limits.streams_per_address
        return not limit or self._by_source.get(source_of(client.remote.host), 0) < limit

    def accept(self, client: Client, *, now: Instant, listener: Flow | None = None) -> bool:
        """Add a stream; False if there are too many, in all or from this source."""
        limits, source = self.limits, source_of(client.remote.host)
        if (limits.streams and len(self._open) >= limits.streams) or not self._source_has_room(client):
            return False
        self._open[client.flow] = client, StreamFramer(max_frame=MAX_FRAME)
        if listener in self.secure_listeners:
            self._secure[client.flow] = None
        self._by_source[source] = self._by_source.get(source, 0) + 1
        self.mark_idle(client.flow, now=now)
        return True

    def transport(self, flow: Flow) -> Transport:
        """Return the transport of a client's flow."""
        if flow not in self._open:
            return Transport.UDP
        return Transport.TLS if flow in self._secure else Transport.TCP

    def feed(self, flow: Flow, data: bytes) -> tuple[Client, list[bytes], str] | None:
        """Return the client, its complete frames, and the error if the stream is broken; None if it is not open."""
        stream = self._open.get(flow)
        if stream is None:
            return None
        client, framer = stream
        frames = framer.feed(data)
        broken = str(framer.error or "")
        if not broken and framer.pending > MAX_UNSETTLED and flow in self._idle:
            broken = "a long frame before there is an allocation"
        return client, frames, broken

    def is_idle(self, flow: Flow) -> bool:
        """Whether a stream is open and has no allocation."""
        return flow in self._idle

    def mark_used(self, flow: Flow) -> None:
        """Cancel the timeout of a stream: it has an allocation."""
        self._timeouts.cancel(flow)
        self._idle.pop(flow, None)

    def mark_idle(self, flow: Flow, *, now: Instant) -> None:
        """Start the timeout of a stream that has no allocation."""
        if flow not in self._open:
            return
        self._idle[flow] = None
        if self.limits.stream_patience:
            self._timeouts.set(flow, Instant(now + self.limits.stream_patience))

    def close(self, flow: Flow) -> Client | None:
        """Remove a stream; None if it is not open."""
        self._secure.pop(flow, None)
        stream = self._open.pop(flow, None)
        if stream is None:
            return None
        self._idle.pop(flow, None)
        client = stream[0]
        source = source_of(client.remote.host)
        if self._by_source[source] == 1:
            del self._by_source[source]
        else:
            self._by_source[source] -= 1
        self._timeouts.cancel(flow)
        return client

    def timed_out(self, *, now: Instant) -> list[Flow]:
        """Return the streams that had no allocation for too long."""
        return self._timeouts.due(now=now)

    def next_timer(self) -> Instant | None:
        return self._timeouts.next()

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return {
            "streams": len(self._open),
            "secure streams": len(self._secure),
            "idle streams": len(self._idle),
            "sources of streams": len(self._by_source),
        }

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._open

    def __len__(self) -> int:
        return len(self._open)
