"""Gateways: NAT routers and firewalls, nodes with an outside and an inside.

The first interface of a gateway leads outside; all others lead inside. A NAT router translates the address families
that it has external addresses of, and routes the others, through a firewall if it has one.
"""

from __future__ import annotations

from polynya.core.instants import Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IpPacket, Protocol, TcpFields, TcpFlags
from polynya.nat import Action, Nat, NatConfig

from .environment import Environment
from .firewall import Firewall, Refusal
from .links import NetworkInterface
from .nodes import Node
from .tcp import reset_for


class FirewallRouter(Node):
    """A router that passes each forwarded packet through a firewall."""

    role = "firewall"

    def __init__(self, network: Environment, name: str, addresses: tuple[str, ...], firewall: Firewall) -> None:
        super().__init__(network, name, addresses)
        self.firewall = firewall

    def forward(self, packet: IpPacket) -> None:
        outward = self.is_outward(packet.destination.host)
        if self.decrement_ttl(packet) and screen(self, self.firewall, packet, outward=outward):
            self.route(packet)

    def is_outward(self, host: str) -> bool:
        """Whether a host is reached by the outside interface."""
        return self.routes.find(host) is self.interfaces[0]


class NatRouter(Node):
    """A router that runs a NAT. Families that are not translated pass its firewall, if it has one."""

    role = "nat"

    def __init__(
        self,
        network: Environment,
        name: str,
        addresses: tuple[str, ...],
        *,
        config: NatConfig,
        external: tuple[str, ...],
        firewall: Firewall | None,
    ) -> None:
        super().__init__(network, name, addresses)
        trace = self.trace.of("nat")
        self.nat = Nat(config, external, random=network.chance_of(name), trace=trace)
        self.firewall = firewall
        self._families = {":" in host for host in external}
        self._armed: Instant | None = None

    def __str__(self) -> str:
        """Return the NAT's state and its table at the current virtual time."""
        return f"{self.summary()}\n{self.nat.table(now=self.clock.now)}"

    def summary(self) -> str:
        inside = ", ".join(self.own)
        return f"{self.name} (NAT {self.nat.config.label}) {', '.join(self.nat.external)}, inside {inside}"

    def learn(self, prefix: str, via: NetworkInterface) -> None:
        """Add a route. Routes of translated families that lead inside are not passed on to the outside."""
        if (":" in prefix) in self._families and via is not self.interfaces[0]:
            self.routes.add(prefix, via)
        else:
            super().learn(prefix, via)

    def receive(self, packet: IpPacket, interface: NetworkInterface) -> None:
        destination = packet.destination.host
        outside = interface is self.interfaces[0]
        if destination in self.nat.external:
            if self.decrement_ttl(packet):
                self._translate(packet, outward=not outside)
        elif destination in self.addresses:
            self.deliver(packet)
        elif outside and (":" in destination) in self._families:
            self.drop(packet, f"{destination} is not an external address of this NAT")
        else:
            self.forward(packet)

    def forward(self, packet: IpPacket) -> None:
        out = self.routes.find(packet.destination.host)
        if not self.decrement_ttl(packet):
            return
        outward = out is self.interfaces[0]
        if (":" in packet.destination.host) in self._families and outward:
            if out is None or self.fits(packet, out):
                self._translate(packet, outward=True)
        elif self.firewall is None or screen(self, self.firewall, packet, outward=outward):
            self.route(packet)

    def send(self, packet: IpPacket) -> None:
        """Send a packet of this router. An ICMP error about a packet that was translated is translated, too."""
        icmp = packet.icmp
        if icmp is not None and icmp.about is not None and icmp.about.destination.host not in self.nat.external:
            out = self.routes.find(packet.destination.host)
            if out is self.interfaces[0] and (":" in packet.destination.host) in self._families:
                self._translate(packet, outward=True)
                return
        self.route(packet)

    def _translate(self, packet: IpPacket, *, outward: bool) -> None:
        nat = self.nat
        verdict = nat.outbound(packet, now=self.clock.now) if outward else nat.inbound(packet, now=self.clock.now)
        if verdict.packet is not None:
            self.route(verdict.packet)
        elif verdict.action is Action.DROP:
            self.drop(packet, verdict.reason)
        self._drain()

    def _drain(self) -> None:
        for packet in self.nat.outputs():
            packet.id = self.network.packet_id()
            self.route(packet)
        due = self.nat.next_timer()
        if due != self._armed:
            self._armed = due
            if due is not None:
                self.clock.at(due, self._tick, due)

    def _tick(self, due: Instant) -> None:
        if due == self._armed:
            self._armed = None
            self.nat.tick(now=self.clock.now)
            self._drain()


def screen(node: Node, firewall: Firewall, packet: IpPacket, *, outward: bool) -> bool:
    """Whether the firewall of `node` lets a packet through. A refused packet is dropped or answered, by its policy."""
    now = node.clock.now
    reason = firewall.outbound(packet, now=now) if outward else firewall.inbound(packet, now=now)
    if not reason:
        return True
    if firewall.refusal is Refusal.SILENT or (packet.tcp is not None and packet.tcp.flags & TcpFlags.RST):
        node.drop(packet, reason)
    elif firewall.refusal is Refusal.RESET and packet.protocol is Protocol.TCP:
        node.drop(packet, reason)
        answer = reset_for(packet, packet.tcp or TcpFields(flags=TcpFlags.SYN))
        answer.id = node.network.packet_id()
        node.send(answer)
    else:
        node.refuse(packet, IcmpKind.PROHIBITED, reason)
    return False
