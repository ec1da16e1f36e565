"""Nodes: whatever packets arrive at. A plain node is a router: it looks up the way, counts down the TTL and forwards.

ICMP errors are sent by the rules of RFC 1812 (4.3.2.7) and RFC 4443 (2.4): never about an ICMP error, never about a
fragment that is not the first, never to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polynya.core.addresses import Address
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, length
from polynya.core.trace import Tracer
from polynya.nat.fragments import fragment

from .links import NetworkInterface
from .routes import Routes

if TYPE_CHECKING:
    from .network import Network

_LARGEST_HEADERS = 128
"""A packet whose payload is so much smaller than the MTU fits without being measured."""


class Node:
    """A router, and what all other nodes have in common."""

    role = "router"

    def __init__(self, network: Network, name: str, addresses: tuple[str, ...] = ()) -> None:
        self.network = network
        self.clock = network.clock
        self.name = name
        self.own: tuple[str, ...] = addresses
        """Addresses of the node itself, besides those of its interfaces."""
        self.addresses: dict[str, NetworkInterface | None] = dict.fromkeys(addresses)
        """Every address at which the node is reached, with the interface that has it."""
        self.interfaces: list[NetworkInterface] = []
        self.routes: Routes[NetworkInterface] = Routes()
        self.uplinks: list[NetworkInterface] = []
        """The ends at this node of the links that lead towards the middle of the network."""
        self.trace: Tracer = network.trace.at_node(name, "ip")

    def add_interface(self, name: str, addresses: tuple[str, ...] = ()) -> NetworkInterface:
        interface = NetworkInterface(self, name, addresses)
        self.interfaces.append(interface)
        interface.index = len(self.interfaces) + 1  # 1 is the loopback's
        for host in interface.addresses:
            self.addresses[host] = interface
        return interface

    def learn(self, prefix: str, via: NetworkInterface) -> None:
        """`prefix` is reached by `via`: note it and tell those towards the middle of the network."""
        self.routes.add(prefix, via)
        for uplink in self.uplinks:
            if uplink.peer is not None and uplink is not via:
                uplink.peer.node.learn(prefix, uplink.peer)

    def unlearn(self, prefix: str) -> None:
        """`prefix` is not reached here any more."""
        self.routes.remove(prefix)
        for uplink in self.uplinks:
            if uplink.peer is not None:
                uplink.peer.node.unlearn(prefix)

    # ----------------------------------------------------------------------------------------------------- packets

    def arrive(self, packet: IpPacket, interface: NetworkInterface) -> None:
        """A packet came in by `interface`."""
        if self.network.capture is not None:
            self.network.capture.write(
                self.clock.now, interface.label, packet, outbound=False, comment=f"packet {packet.id}"
            )
        if not interface.up:
            self.drop(packet, f"{interface.label} is down")
        else:
            self.receive(packet, interface)

    def receive(self, packet: IpPacket, interface: NetworkInterface) -> None:  # noqa: ARG002
        """Take in a packet: it is for this node, or passes."""
        if packet.destination.host in self.addresses:
            self.deliver(packet)
        else:
            self.forward(packet)

    def forward(self, packet: IpPacket) -> None:
        """Pass a packet on by the routes."""
        if self.hop(packet):
            self.pass_on(packet)

    def hop(self, packet: IpPacket) -> bool:
        """Count the hop; False when it was one too many."""
        if packet.ttl <= 1:
            self.refuse(packet, IcmpKind.TTL_EXCEEDED, "its time to live ended here")
            return False
        packet.ttl -= 1
        return True

    def pass_on(self, packet: IpPacket) -> None:
        """Put a packet on the way to its destination."""
        out = self.routes.find(packet.destination.host)
        if out is None:
            self.refuse(packet, IcmpKind.NET_UNREACHABLE, f"no route to {packet.destination.host}")
        elif not out.up:
            self.refuse(packet, IcmpKind.HOST_UNREACHABLE, f"{out.label} is down")
        elif self.fits(packet, out):
            self.put(packet, out)

    def fits(self, packet: IpPacket, out: NetworkInterface) -> bool:
        """Whether the packet may leave by `out`, whole or in fragments; it is refused when not."""
        mtu = out.outward.mtu
        if len(packet.payload) + _LARGEST_HEADERS <= mtu and packet.icmp is None:
            return True
        size = length(packet)
        if size > mtu and (packet.dont_fragment or ":" in packet.source.host):
            self.refuse(packet, IcmpKind.TOO_BIG, f"its {size} bytes do not fit the MTU of {mtu} of {out.label}", mtu)
            return False
        return True

    def put(self, packet: IpPacket, out: NetworkInterface) -> None:
        """Send a packet by `out`, in fragments where it does not fit."""
        network = self.network
        if self.trace.enabled:
            self.trace.packet_forwarded(
                now=self.clock.now,
                packet=packet.id,
                source=str(packet.source),
                destination=str(packet.destination),
                by=out.name,
            )
        if len(packet.payload) + _LARGEST_HEADERS > out.outward.mtu:
            for piece in fragment(packet, out.outward.mtu):
                out.transmit(piece, network)
        else:
            out.transmit(packet, network)

    def deliver(self, packet: IpPacket) -> None:
        """A packet for the node itself: it answers pings and says that nothing else is here."""
        icmp = packet.icmp
        if icmp is None:
            self.refuse(packet, IcmpKind.PORT_UNREACHABLE, f"nothing listens at {packet.destination}")
        elif icmp.about is None and not icmp.reply:
            reply = IcmpMessage(identifier=icmp.identifier, sequence=icmp.sequence, reply=True)
            self.send(
                IpPacket(
                    self.network.packet_id(),
                    packet.destination,
                    packet.source,
                    Protocol.ICMP,
                    packet.payload,
                    icmp=reply,
                )
            )
        else:
            self.drop(packet, "an ICMP message that nobody here waits for")

    def send(self, packet: IpPacket) -> None:
        """Send a packet of the node's own."""
        self.pass_on(packet)

    def drop(self, packet: IpPacket, reason: str) -> None:
        """The packet goes no further; `reason` is for people."""
        self.network.drop(self.name, packet, reason)

    def refuse(self, packet: IpPacket, kind: IcmpKind, reason: str, mtu: int | None = None) -> None:
        """Drop a packet and tell its sender by ICMP."""
        self.drop(packet, reason)
        icmp = packet.icmp
        if (icmp is not None and icmp.about is not None) or (packet.fragment is not None and packet.fragment.offset):
            return
        six = ":" in packet.source.host
        origin = self.origin(packet, six=six)
        if origin is None or packet.source.host in ("0.0.0.0", "::"):  # noqa: S104
            return
        error = IcmpMessage(kind=kind, about=packet, mtu=mtu)
        answer = IpPacket(
            self.network.packet_id(), Address(origin, 0), Address(packet.source.host, 0), Protocol.ICMP, icmp=error
        )
        if self.trace.enabled:
            self.trace.icmp(reason, now=self.clock.now, packet=answer.id, about=packet.id, error=kind.value)
        self.send(answer)

    def origin(self, packet: IpPacket, *, six: bool) -> str | None:
        """The address that an ICMP error about `packet` comes from."""
        if packet.destination.host in self.addresses:
            return packet.destination.host
        back = self.routes.find(packet.source.host)
        nearest = back.address_of_family(six) if back is not None else None
        return nearest or next((a for a in self.addresses if (":" in a) == six), None)
