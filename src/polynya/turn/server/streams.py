"""Clients that come by TCP or TLS: their streams cut into frames, counted, and closed when nothing comes of them.

accepted --too many of its address--> closed
accepted --too many in all--> the one that has waited longest for an allocation is closed, or this one if none waits
accepted --no allocation within the patience--> closed
any      --lost step, a frame that is too long--> closed

So whoever opens streams and asks for nothing keeps nobody out who does.
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
"""The longest ChannelData. A longer frame is nobody's."""
MAX_UNSETTLED: Final = 2048
"""Bytes of a frame that are kept for a stream without an allocation: requests are shorter."""


class Streams:
    """The streams that are open, by flow."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.secure_listeners: Collection[Flow] = ()
        """Whose streams are TLS."""
        self._open: dict[Flow, tuple[Client, StreamFramer]] = {}
        self._secure: dict[Flow, None] = {}
        self._by_source: dict[str, int] = {}
        self._patience: Timers[Flow] = Timers()
        self._waiting: dict[Flow, None] = {}
        """Those without an allocation, in the order in which they came."""

    def crowded_out(self, client: Client) -> Flow | None:
        """The stream that must go before this client's is accepted; None where there is room, or none can go."""
        limits = self.limits
        if not limits.streams or len(self._open) < limits.streams or not self._may_have_more(client):
            return None
        return next(iter(self._waiting), None)

    def _may_have_more(self, client: Client) -> bool:
        """Whether its address may have one more."""
        limit = self.limits.streams_per_address
        return not limit or self._by_source.get(source_of(client.remote.host), 0) < limit

    def accept(self, client: Client, *, now: Instant, listener: Flow | None = None) -> bool:
        """Take a stream; False when there are too many, in all or from this address."""
        limits, source = self.limits, source_of(client.remote.host)
        if (limits.streams and len(self._open) >= limits.streams) or not self._may_have_more(client):
            return False
        self._open[client.flow] = client, StreamFramer(max_frame=MAX_FRAME)
        if listener in self.secure_listeners:
            self._secure[client.flow] = None
        self._by_source[source] = self._by_source.get(source, 0) + 1
        self.wait(client.flow, now=now)
        return True

    def transport(self, flow: Flow) -> Transport:
        """What a client came by."""
        if flow not in self._open:
            return Transport.UDP
        return Transport.TLS if flow in self._secure else Transport.TCP

    def feed(self, flow: Flow, data: bytes) -> tuple[Client, list[bytes], str] | None:
        """The frames that these bytes complete, and why the stream is broken, if it is. None when it is not open."""
        stream = self._open.get(flow)
        if stream is None:
            return None
        client, framer = stream
        frames = framer.feed(data)
        broken = str(framer.error or "")
        if not broken and framer.pending > MAX_UNSETTLED and flow in self._waiting:
            broken = "a long frame before there is an allocation"
        return client, frames, broken

    def settle(self, flow: Flow) -> None:
        """The stream has an allocation: it may stay."""
        self._patience.cancel(flow)
        self._waiting.pop(flow, None)

    def wait(self, flow: Flow, *, now: Instant) -> None:
        """The stream has no allocation, or none any more: it may stay for a while."""
        if flow not in self._open:
            return
        self._waiting[flow] = None
        if self.limits.stream_patience:
            self._patience.set(flow, Instant(now + self.limits.stream_patience))

    def close(self, flow: Flow) -> Client | None:
        """Forget a stream; None when it is not open."""
        self._secure.pop(flow, None)
        stream = self._open.pop(flow, None)
        if stream is None:
            return None
        self._waiting.pop(flow, None)
        client = stream[0]
        source = source_of(client.remote.host)
        if self._by_source[source] == 1:
            del self._by_source[source]
        else:
            self._by_source[source] -= 1
        self._patience.cancel(flow)
        return client

    def idle(self, *, now: Instant) -> list[Flow]:
        """The streams whose time is over."""
        return self._patience.due(now=now)

    def next_timer(self) -> Instant | None:
        return self._patience.next()

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._open

    def __len__(self) -> int:
        return len(self._open)
