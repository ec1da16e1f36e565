"""Clients that come by TCP or TLS: their streams cut into frames, counted, and closed when nothing comes of them.

accepted --too many--> closed
accepted --no allocation within the patience--> closed
any      --lost step, a frame that is too long--> closed
"""

from __future__ import annotations

from typing import Final

from polynya.core.flows import Flow
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
        self._open: dict[Flow, tuple[Client, StreamFramer]] = {}
        self._by_source: dict[str, int] = {}
        self._patience: Timers[Flow] = Timers()

    def accept(self, client: Client, now: Instant) -> bool:
        """Take a stream; False when there are too many, in all or from this address."""
        limits, source = self.limits, source_of(client.remote.host)
        held = self._by_source.get(source, 0)
        if limits.streams and len(self._open) >= limits.streams:
            return False
        if limits.streams_per_address and held >= limits.streams_per_address:
            return False
        self._open[client.flow] = client, StreamFramer(max_frame=MAX_FRAME)
        self._by_source[source] = held + 1
        self.wait(client.flow, now)
        return True

    def feed(self, flow: Flow, data: bytes) -> tuple[Client, list[bytes], str] | None:
        """The frames that these bytes complete, and why the stream is broken, if it is. None when it is not open."""
        stream = self._open.get(flow)
        if stream is None:
            return None
        client, framer = stream
        frames = framer.feed(data)
        broken = str(framer.error or "")
        if not broken and framer.pending > MAX_UNSETTLED and flow in self._patience:
            broken = "a long frame before there is an allocation"
        return client, frames, broken

    def settle(self, flow: Flow) -> None:
        """The stream has an allocation: it may stay."""
        self._patience.cancel(flow)

    def wait(self, flow: Flow, now: Instant) -> None:
        """The stream has no allocation, or none any more: it may stay for a while."""
        if flow in self._open and self.limits.stream_patience:
            self._patience.set(flow, Instant(now + self.limits.stream_patience))

    def close(self, flow: Flow) -> Client | None:
        """Forget a stream; None when it is not open."""
        stream = self._open.pop(flow, None)
        if stream is None:
            return None
        client = stream[0]
        source = source_of(client.remote.host)
        if self._by_source[source] == 1:
            del self._by_source[source]
        else:
            self._by_source[source] -= 1
        self._patience.cancel(flow)
        return client

    def idle(self, now: Instant) -> list[Flow]:
        """The streams whose time is over."""
        return self._patience.due(now)

    def next_timer(self) -> Instant | None:
        return self._patience.next()

    def __contains__(self, flow: Flow) -> bool:
        return flow in self._open

    def __len__(self) -> int:
        return len(self._open)
