"""The IP layer of a host: addresses that can be bound, routes out, reassembly, path MTU and ping.

UDP (`hosts.py`) and streams (`streams.py`) share it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import MICROSECOND, Instant
from polynya.core.machine import Closed, Interface, InterfaceAddress, InterfacesChanged, Open
from polynya.core.packets import IcmpMessage, IpPacket, Protocol
from polynya.nat.fragments import Reassembler

from .environment import Environment
from .links import NetworkInterface
from .nodes import Node

EPHEMERAL: Final = (49152, 65535)
"""The port range of a socket that is bound to port 0 (RFC 6335, 6)."""
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104
LOOPBACKS: Final = ("127.0.0.1", "::1")
LOOPBACK_DELAY: Final = 10 * MICROSECOND
LOOPBACK_MTU: Final = 65536


class IpStack(Node):
    """The IP layer of a host. It forwards nothing."""

    role = "host"

    def __init__(self, network: Environment, name: str) -> None:
        super().__init__(network, name)
        self.silent = False
        """Whether closed ports send neither an ICMP error nor a RST, as behind most host firewalls."""
        self.source_routing = True
        """Whether a bound source address selects the interface. Most systems route by destination alone."""
        self.pongs: list[tuple[Instant, str, int]] = []
        """Received echo replies: time, source address, sequence number."""
        self.certificate: tuple[str, ...] | None = None
        """Names in the host's TLS certificate; None for every name and address of the host."""
        self.path_mtu: dict[str, int] = {}
        """The path MTU by destination address, learned from ICMP errors."""
        self.chance = network.chance_of(name)
        self._fragments = Reassembler()
        for host in LOOPBACKS:
            self.addresses[host] = None

    def shown_addresses(self) -> list[str]:
        return [host for host in self.addresses if host not in LOOPBACKS]

    def interfaces_now(self) -> InterfacesChanged:
        """Return the interfaces that are up, the loopback interface first."""
        loopback = tuple(InterfaceAddress(host=h, prefix_length=128 if ":" in h else 8) for h in LOOPBACKS)
        found = [Interface(name="lo", index=1, addresses=loopback, mtu=LOOPBACK_MTU, loopback=True)]
        for i in self.interfaces:
            if i.up:
                addresses = tuple(InterfaceAddress(host=h, prefix_length=i.prefix_lengths[h]) for h in i.addresses)
                found.append(Interface(name=i.name, index=i.index, addresses=addresses, mtu=i.outward.mtu))
        return InterfacesChanged(interfaces=tuple(found))

    def ping(self, host: str, sequence: int = 0, ttl: int = 64) -> None:
        """Send an echo request. The reply is appended to `pongs`."""
        out = self.routes.find(host)
        source = out.address_of_family(":" in host) if out is not None else None
        if source is not None:
            echo = IcmpMessage(identifier=4711, sequence=sequence)
            endpoints = Address(source, 0), Address(host, 0)
            self.send(IpPacket(self.network.packet_id(), *endpoints, Protocol.ICMP, ttl=ttl, icmp=echo))

    def certificate_names(self) -> tuple[str, ...]:
        """Return the names in the host's TLS certificate."""
        if self.certificate is not None:
            return self.certificate
        names = [name for name, hosts in self.network.names.items() if any(host in self.addresses for host in hosts)]
        return (*names, *self.addresses)

    # ----------------------------------------------------------------------------------------------------- binding

    def refusal(self, open: Open, local: Address) -> Closed | None:
        """Return why the system cannot bind `local`; None if it can."""
        flow = open.flow
        if open.interface not in (None, "lo") and all(i.name != open.interface for i in self.interfaces):
            return Closed(flow=flow, reason=f"no interface {open.interface}", errno=errno.ENODEV)
        interface = self.interface_for(open, local)
        known = local.host in self.addresses or local.host in WILDCARDS
        if not known or (interface is not None and not interface.up):
            reason = f"{local.host} is not an address of {self.name}"
            return Closed(flow=flow, reason=reason, errno=errno.EADDRNOTAVAIL)
        return None

    def interface_for(self, open: Open, local: Address) -> NetworkInterface | None:
        """Return the interface that a flow is bound to, by interface name or by address."""
        if open.interface is not None:
            return next((i for i in self.interfaces if i.name == open.interface), None)
        return self.addresses.get(local.host)

    def free_port(self, ports: tuple[int, int], is_free: Callable[[int], bool]) -> int | None:
        """Return a free port within `ports`, found from a random start; None if there is none."""
        low, high = ports
        count = high - low + 1
        start = self.chance.randrange(count)
        return next((port for i in range(count) if is_free(port := low + (start + i) % count)), None)

    def way_out(self, bound: NetworkInterface | None, host: str) -> NetworkInterface | None:
        """Return the interface by which packets to `host` leave, given the interface that the flow is bound to."""
        if bound is not None and self.source_routing:
            return bound
        return self.routes.find(host)

    # ------------------------------------------------------------------------------------------------------ inputs

    def receive(self, packet: IpPacket, interface: NetworkInterface) -> None:  # noqa: ARG002
        if packet.destination.host in self.addresses:
            self.deliver(packet)
        else:
            self.drop(packet, f"{packet.destination.host} is not an address of {self.name}")

    def deliver(self, packet: IpPacket) -> None:
        if packet.fragment is not None:
            whole = self._fragments.add(packet, now=self.clock.now)
            if isinstance(whole, str):
                return
            packet = whole
        icmp = packet.icmp
        if icmp is None:
            self.deliver_transport(packet)
        elif icmp.about is None or icmp.kind is None:
            if icmp.reply:
                self.pongs.append((self.clock.now, packet.source.host, icmp.sequence))
            else:
                super().deliver(packet)
        else:
            self.deliver_error(packet, icmp, icmp.about)

    def deliver_transport(self, packet: IpPacket) -> None:
        """Deliver a UDP or TCP packet to the socket or stream that it belongs to."""
        super().deliver(packet)

    def deliver_error(self, packet: IpPacket, icmp: IcmpMessage, about: IpPacket) -> None:  # noqa: ARG002
        """Deliver an ICMP error to the socket or stream that sent `about`."""
        self.drop(packet, f"an ICMP error about a packet from {about.source}, where no socket is open")
