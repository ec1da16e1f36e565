"""Nodes of the network. A plain node is a router: it looks up the route, decrements the TTL and forwards.

ICMP errors follow RFC 1812 (4.3.2.7) and RFC 4443 (2.4). None is sent about an ICMP error, about a fragment other
than the first, or to an unspecified address.
"""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, length
from polynya.core.trace import Tracer
from polynya.nat.fragments import fragment

from .environment import Environment
from .links import NetworkInterface
from .routes import Routes

_LARGEST_HEADERS = 128
"""A packet whose payload is smaller than the MTU by this much fits without being measured."""


class Node:
    """A router, and the base class of hosts, firewalls and NAT routers."""

    role = "router"

    def __init__(self, network: Environment, name: str, addresses: tuple[str, ...] = ()) -> None:
        self.network = network
        self.clock = network.clock
        self.name = name
        self.own: tuple[str, ...] = addresses
        """Addresses of the node that belong to no interface."""
        self.addresses: dict[str, NetworkInterface | None] = dict.fromkeys(addresses)
        """Every address of the node, with the interface that has it."""
        self.interfaces: list[NetworkInterface] = []
        self.routes: Routes[NetworkInterface] = Routes()
        self.uplinks: list[NetworkInterface] = []
        """Interfaces that lead towards the root of the network."""
        self.trace: Tracer = network.trace.at_node(name, "ip")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary()}>"

    def summary(self) -> str:
        """Return name, role and interface addresses for people."""
        shown = [address for interface in self.interfaces for address in interface.addresses]
        return " ".join([f"{self.name} ({self.role})", ", ".join(shown)]).rstrip()

    def shown_addresses(self) -> list[str]:
        """Return the addresses that the trace shows for this node."""
        return list(self.addresses)

    def add_interface(self, name: str, addresses: tuple[str, ...] = ()) -> NetworkInterface:
        interface = NetworkInterface(self, name, addresses)
        self.interfaces.append(interface)
        interface.index = len(self.interfaces) + 1  # 1 is the loopback's
        for host in interface.addresses:
            self.addresses[host] = interface
        return interface

    def readdress(self, interface: NetworkInterface, addresses: tuple[str, ...]) -> None:
        """Replace the addresses of an interface, and update the routes towards the root."""
        peer = interface.peer
        for host in interface.addresses:
            del self.addresses[host]
            if peer is not None:
                peer.node.unlearn(host)
        interface.set_addresses(addresses)
        for host in interface.addresses:
            self.addresses[host] = interface
            if peer is not None:
                peer.node.learn(host, peer)

    def interfaces_changed(self) -> None:
        """React to changed interfaces. A router does nothing; a host informs its processes."""

    def learn(self, prefix: str, via: NetworkInterface) -> None:
        """Add a route to `prefix` through `via`, here and on all nodes towards the root."""
        self.routes.add(prefix, via)
        for uplink in self.uplinks:
            if uplink.peer is not None and uplink is not via:
                uplink.peer.node.learn(prefix, uplink.peer)

    def unlearn(self, prefix: str) -> None:
        """Remove the route to `prefix`, here and on all nodes towards the root."""
        self.routes.remove(prefix)
        for uplink in self.uplinks:
            if uplink.peer is not None:
                uplink.peer.node.unlearn(prefix)

    # ----------------------------------------------------------------------------------------------------- packets

    def arrive(self, packet: IpPacket, interface: NetworkInterface) -> None:
        """Receive a packet from the link of `interface`."""
        if self.network.capture is not None:
            self.network.capture.write(
                self.clock.now, interface.label, packet, outbound=False, comment=f"packet {packet.id}"
            )
        if not interface.up:
            self.drop(packet, f"{interface.label} is down")
        else:
            self.receive(packet, interface)

    def receive(self, packet: IpPacket, interface: NetworkInterface) -> None:  # noqa: ARG002
        """Deliver a packet for this node; forward any other."""
        if packet.destination.host in self.addresses:
            self.deliver(packet)
        else:
            self.forward(packet)

    def forward(self, packet: IpPacket) -> None:
        """Forward a packet that belongs to another node."""
        if self.decrement_ttl(packet):
            self.route(packet)

    def decrement_ttl(self, packet: IpPacket) -> bool:
        """Decrement the TTL; False if it expired, which is answered by an ICMP error."""
        if packet.ttl <= 1:
            self.refuse(packet, IcmpKind.TTL_EXCEEDED, "its TTL expired here")
            return False
        packet.ttl -= 1
        return True

    def route(self, packet: IpPacket) -> None:
        """Send a packet by the interface that its destination is routed to."""
        out = self.routes.find(packet.destination.host)
        if out is None:
            self.refuse(packet, IcmpKind.NET_UNREACHABLE, f"no route to {packet.destination.host}")
        elif not out.up:
            self.refuse(packet, IcmpKind.HOST_UNREACHABLE, f"{out.label} is down")
        elif self.fits(packet, out):
            self.transmit(packet, out)

    def fits(self, packet: IpPacket, out: NetworkInterface) -> bool:
        """Whether `out` can carry the packet, whole or in fragments. A packet that is too big is refused."""
        mtu = out.outward.mtu
        if len(packet.payload) + _LARGEST_HEADERS <= mtu and packet.icmp is None:
            return True
        size = length(packet)
        if size > mtu and (packet.dont_fragment or ":" in packet.source.host):
            self.refuse(packet, IcmpKind.TOO_BIG, f"its {size} bytes do not fit the MTU of {mtu} of {out.label}", mtu)
            return False
        return True

    def transmit(self, packet: IpPacket, out: NetworkInterface) -> None:
        """Send a packet by `out`, in fragments if it exceeds the MTU."""
        network = self.network
        self.trace.packet_forwarded(
            now=self.clock.now, packet=packet.id, source=packet.source, destination=packet.destination, by=out.name
        )
        if len(packet.payload) + _LARGEST_HEADERS > out.outward.mtu:
            for piece in fragment(packet, out.outward.mtu):
                out.transmit(piece, network)
        else:
            out.transmit(packet, network)

    def deliver(self, packet: IpPacket) -> None:
        """Handle a packet for this node: answer pings, refuse the rest."""
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
            self.drop(packet, f"no program on {self.name} expects this ICMP message")

    def send(self, packet: IpPacket) -> None:
        """Send a packet that this node created."""
        self.route(packet)

    def drop(self, packet: IpPacket, reason: str) -> None:
        """Drop a packet; `reason` is for people."""
        self.network.drop(self.name, packet, reason)

    def refuse(self, packet: IpPacket, kind: IcmpKind, reason: str, mtu: int | None = None) -> None:
        """Drop a packet and send an ICMP error to its source."""
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
        self.trace.icmp(reason, now=self.clock.now, packet=answer.id, about=packet.id, error=kind)
        self.send(answer)

    def origin(self, packet: IpPacket, *, six: bool) -> str | None:
        """Return the source address for an ICMP error about `packet`."""
        if packet.destination.host in self.addresses:
            return packet.destination.host
        back = self.routes.find(packet.source.host)
        nearest = back.address_of_family(six) if back is not None else None
        return nearest or next((a for a in self.addresses if (":" in a) == six), None)
