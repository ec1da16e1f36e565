"""Traces the driver's flows and packets; each packet has an id.

A driver has a `PacketTrace` only if its trace is enabled. `capture` is called for each packet with its payload, which
the trace does not contain; capture files are written from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import Tracer

from . import clock

Capture = Callable[[Instant, IpPacket], None]


class PacketTrace:
    """Assigns packet ids and traces each packet of one driver."""

    def __init__(self, trace: Tracer, capture: Capture | None = None) -> None:
        self._trace = trace
        self._capture = capture
        self._last = 0

    def opened(self, flow: Flow, transport: Transport, local: Address, remote: Address | None = None) -> None:
        fields: dict[str, Any] = {"remote": remote} if remote else {}
        self._trace.flow_opened(now=clock.now(), flow=flow, transport=transport, local=local, **fields)

    def closed(self, flow: Flow, reason: str) -> None:
        self._trace.flow_closed(reason, now=clock.now(), flow=flow)

    def sent(
        self, source: Address, destination: Address, data: bytes, packet: int = 0, protocol: Protocol = Protocol.UDP
    ) -> int:
        """Trace a packet that is sent. Returns its id, a new one if the machine assigned none."""
        packet = packet or self._next()
        at = clock.now()
        self._trace.packet_sent(
            now=at,
            packet=packet,
            protocol=protocol.name.lower(),
            source=source,
            destination=destination,
            length=len(data),
        )
        if self._capture is not None:
            self._capture(at, IpPacket(packet, source, destination, protocol, data))
        return packet

    def received(self, source: Address, destination: Address, data: bytes, protocol: Protocol = Protocol.UDP) -> int:
        """Trace a packet that arrived. Returns its new id."""
        packet = self._next()
        at = clock.now()
        self._trace.packet_received(
            now=at,
            packet=packet,
            protocol=protocol.name.lower(),
            source=source,
            destination=destination,
            length=len(data),
        )
        if self._capture is not None:
            self._capture(at, IpPacket(packet, source, destination, protocol, data))
        return packet

    def refused(self, packet: int, source: Address, destination: Address, reason: str) -> None:
        """Trace a packet that the system refused."""
        self._trace.packet_dropped(reason, now=clock.now(), packet=packet, source=source, destination=destination)

    def icmp(self, source: Address, destination: Address, error: IcmpKind) -> None:
        """Trace an ICMP error. The system does not report which packet caused it."""
        self._trace.icmp(now=clock.now(), packet=0, about=lambda: f"{source} to {destination}", error=error)

    def _next(self) -> int:
        self._last += 1
        return self._last
