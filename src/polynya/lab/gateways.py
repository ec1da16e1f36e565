"""Nodes with an inside and an outside: NAT routers and firewalls.

A gateway's first interface is the outside one; all others are inside. A NAT router translates the families that it has
external addresses of and routes the others; a firewall can stand in front of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polynya.core.instants import Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IpPacket, Protocol, TcpFields, TcpFlags
from polynya.nat import Action, Nat, NatConfig

from .firewall import Firewall, Refusal
from .links import NetworkInterface
from .nodes import Node
from .tcp import reset_for

if TYPE_CHECKING:
    from .network import Network


class FirewallRouter(Node):
    """A router that asks a firewall about every packet that crosses it."""

    role = "firewall"

    def __init__(self, network: Network, name: str, addresses: tuple[str, ...], firewall: Firewall) -> None:
        super().__init__(network, name, addresses)
        self.firewall = firewall

    def forward(self, packet: IpPacket) -> None:
        outward = self.is_outward(packet.destination.host)
        if self.hop(packet) and screen(self, self.firewall, packet, outward=outward):
            self.pass_on(packet)

    def is_outward(self, host: str) -> bool:
        """Whether a host is reached by the outside interface."""
        return self.routes.find(host) is self.interfaces[0]


class NatRouter(Node):
    """A router that runs a NAT machine, and for what is not translated a firewall if it has one."""

    role = "nat"

    def __init__(
        self,
        network: Network,
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

    def learn(self, prefix: str, via: NetworkInterface) -> None:
        """Nobody outside learns of what is inside, but for the families that are not translated."""
        if (":" in prefix) in self._families and via is not self.interfaces[0]:
            self.routes.add(prefix, via)
        else:
            super().learn(prefix, via)

    def receive(self, packet: IpPacket, interface: NetworkInterface) -> None:
        destination = packet.destination.host
        outside = interface is self.interfaces[0]
        if destination in self.nat.external:
            if self.hop(packet):
                self._translate(packet, outward=not outside)
        elif destination in self.addresses:
            self.deliver(packet)
        elif outside and (":" in destination) in self._families:
            self.drop(packet, f"{destination} is not an address of this NAT's outside")
        else:
            self.forward(packet)

    def forward(self, packet: IpPacket) -> None:
        out = self.routes.find(packet.destination.host)
        if not self.hop(packet):
            return
        outward = out is self.interfaces[0]
        if (":" in packet.destination.host) in self._families and outward:
            if out is None or self.fits(packet, out):
                self._translate(packet, outward=True)
        elif self.firewall is None or screen(self, self.firewall, packet, outward=outward):
            self.pass_on(packet)

    def send(self, packet: IpPacket) -> None:
        """An ICMP error of ours about a packet that was translated on its way in is translated on its way out."""
        icmp = packet.icmp
        if icmp is not None and icmp.about is not None and icmp.about.destination.host not in self.nat.external:
            out = self.routes.find(packet.destination.host)
            if out is self.interfaces[0] and (":" in packet.destination.host) in self._families:
                self._translate(packet, outward=True)
                return
        self.pass_on(packet)

    def _translate(self, packet: IpPacket, *, outward: bool) -> None:
        nat = self.nat
        verdict = nat.outbound(packet, now=self.clock.now) if outward else nat.inbound(packet, now=self.clock.now)
        if verdict.packet is not None:
            self.pass_on(verdict.packet)
        elif verdict.action is Action.DROP:
            self.drop(packet, verdict.reason)
        self._drain()

    def _drain(self) -> None:
        for packet in self.nat.outputs():
            packet.id = self.network.packet_id()
            self.pass_on(packet)
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
    """Ask a firewall about a packet that crosses a node; False when it may not, which the sender hears or not."""
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
