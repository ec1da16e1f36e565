"""What the shell writes into the trace: flows that open and close, and every packet that passes, under one id.

It is made only when somebody listens; without it the packets' way has no branch for it. `capture` gets each packet with
its payload, which the trace itself does not hold: that is what a capture file is written from.
"""

from __future__ import annotations

from collections.abc import Callable

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import Tracer

from . import clock

Capture = Callable[[Instant, IpPacket], None]


class PacketTrace:
    """Hands out packet ids and writes what happened to each packet. One for each driver."""

    def __init__(self, trace: Tracer, capture: Capture | None = None) -> None:
        self._trace = trace
        self._capture = capture
        self._last = 0

    def opened(self, flow: Flow, transport: Transport, local: Address, remote: Address | None = None) -> None:
        fields = {"remote": str(remote)} if remote else {}
        self._trace.flow_opened(now=clock.now(), flow=str(flow), transport=transport.value, local=str(local), **fields)

    def closed(self, flow: Flow, reason: str) -> None:
        self._trace.flow_closed(reason, now=clock.now(), flow=str(flow))

    def sent(
        self, source: Address, destination: Address, data: bytes, packet: int = 0, protocol: Protocol = Protocol.UDP
    ) -> int:
        """A packet leaves; it keeps the id that its machine gave it, or gets one. Returns the id."""
        packet = packet or self._next()
        at = clock.now()
        self._trace.packet_sent(
            now=at,
            packet=packet,
            protocol=protocol.name.lower(),
            source=str(source),
            destination=str(destination),
            length=len(data),
        )
        if self._capture is not None:
            self._capture(at, IpPacket(packet, source, destination, protocol, data))
        return packet

    def received(self, source: Address, destination: Address, data: bytes, protocol: Protocol = Protocol.UDP) -> int:
        """A packet arrived. Returns the id that it has from now on."""
        packet = self._next()
        at = clock.now()
        self._trace.packet_received(
            now=at,
            packet=packet,
            protocol=protocol.name.lower(),
            source=str(source),
            destination=str(destination),
            length=len(data),
        )
        if self._capture is not None:
            self._capture(at, IpPacket(packet, source, destination, protocol, data))
        return packet

    def refused(self, packet: int, source: Address, destination: Address, reason: str) -> None:
        """The system did not take the packet."""
        self._trace.packet_dropped(
            reason, now=clock.now(), packet=packet, source=str(source), destination=str(destination)
        )

    def icmp(self, source: Address, destination: Address, error: str) -> None:
        """An ICMP error came back. Which of the packets it is about, the system does not say."""
        self._trace.icmp(now=clock.now(), packet=0, about=f"{source} to {destination}", error=error)

    def _next(self) -> int:
        self._last += 1
        return self._last
