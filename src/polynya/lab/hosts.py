"""Hosts: they run machines. A host carries out what a machine asks for and tells it what happened, as the real driver
does on sockets, with packets of the virtual network in between.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polynya.core.addresses import Address, scope
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    Ecn,
    IcmpError,
    IcmpKind,
    Interface,
    InterfaceAddress,
    InterfacesChanged,
    IpFields,
    Open,
    Opened,
    Output,
    RecordType,
    Resolve,
    Resolved,
    Send,
    SendFailed,
)
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, length
from polynya.nat.fragments import Reassembler, fragment

from .links import NetworkInterface
from .nodes import Node
from .processes import AnyMachine, LabError, Process, Socket
from .streams import LOOPBACK_DELAY, Streams

if TYPE_CHECKING:
    from .network import Network

_EPHEMERAL = (49152, 65535)
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104
_LOOPBACKS = ("127.0.0.1", "::1")


class Host(Node):
    """A computer with one or more interfaces. It forwards nothing."""

    role = "host"

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(network, name)
        self.processes: list[Process] = []
        self.silent = False
        """Neither an ICMP error nor a RST for a closed port, as behind most host firewalls."""
        self.source_routing = True
        """A bound source address chooses the interface. Without it the destination alone does, as in most systems."""
        self.pongs: list[tuple[Instant, str, int]] = []
        """Echo replies that came: when, from whom, sequence."""
        self._bound: dict[tuple[str, int], Socket] = {}
        self._path_mtu: dict[str, int] = {}
        self._fragments = Reassembler()
        self.certificate: tuple[str, ...] | None = None
        """The names that its TLS certificate is for; None for all that the host is known by."""
        self.chance = network.chance_of(name)
        self.streams = Streams(self)
        for host in _LOOPBACKS:
            self.addresses[host] = None

    # --------------------------------------------------------------------------------------------------- processes

    def run(self, machine: AnyMachine, on_event: Callable[[Any], None] | None = None) -> Process:
        """Run a machine: it first hears of the interfaces, then of whatever it asks for and what the network brings."""
        process = Process(self, machine, on_event)
        self.processes.append(process)
        process.receive(self.interfaces_now())
        return process

    def interfaces_now(self) -> InterfacesChanged:
        """The interfaces that are up, the loopback first."""
        loopback = tuple(InterfaceAddress(host=h, prefix_length=128 if ":" in h else 8) for h in _LOOPBACKS)
        found = [Interface(name="lo", index=1, addresses=loopback, mtu=65536, loopback=True)]
        for i in self.interfaces:
            if i.up:
                addresses = tuple(InterfaceAddress(host=h, prefix_length=i.prefix_lengths[h]) for h in i.addresses)
                found.append(Interface(name=i.name, index=i.index, addresses=addresses, mtu=i.outward.mtu))
        return InterfacesChanged(interfaces=tuple(found))

    def ping(self, host: str, sequence: int = 0, ttl: int = 64) -> None:
        """Send an echo request; a reply shows in `pongs`."""
        out = self.routes.find(host)
        source = out.address_of_family(":" in host) if out is not None else None
        if source is not None:
            echo = IcmpMessage(identifier=4711, sequence=sequence)
            where = Address(source, 0), Address(host, 0)
            self.send(IpPacket(self.network.packet_id(), *where, Protocol.ICMP, ttl=ttl, icmp=echo))

    # ----------------------------------------------------------------------------------------------------- outputs

    def carry_out(self, process: Process, output: Output) -> None:
        """Do what a machine asks for. Answers come after the machine has been drained, at the same instant."""
        if isinstance(output, Send):
            self._send(process, output)
        elif isinstance(output, Open):
            answer = self._open(process, output)
            if answer is not None:
                self.clock.at(self.clock.now, process.receive, answer)
        elif isinstance(output, Close):
            if not self.close(process, output.flow):
                process.misuses.append(f"{output.flow} was closed, which is not open")
        else:
            delay, resolved = self._resolved(output)
            self.clock.after(delay, process.receive, resolved)

    def close(self, process: Process, flow: Flow, *, silently: bool = False) -> bool:
        """Close a flow of a process; False when it has none such. `silently`, its stream just stops."""
        stream = process.streams.pop(flow, None)
        socket = process.sockets.pop(flow, None)
        if stream is not None:
            self.streams.close(stream, silently=silently)
        elif socket is not None:
            del self._bound[socket.local.host, socket.local.port]
        else:
            return False
        if self.trace.enabled:
            self.trace.flow_closed(now=self.clock.now, flow=str(flow))
        return True

    def refusal(self, open: Open, local: Address) -> Closed | None:
        """Why the system lets nothing be bound there, if so."""
        flow = open.flow
        if open.interface not in (None, "lo") and all(i.name != open.interface for i in self.interfaces):
            return Closed(flow=flow, reason=f"no interface {open.interface}", errno=errno.ENODEV)
        interface = self.interface_for(open, local)
        known = local.host in self.addresses or local.host in _WILDCARDS
        if not known or (interface is not None and not interface.up):
            reason = f"{local.host} is not an address of {self.name}"
            return Closed(flow=flow, reason=reason, errno=errno.EADDRNOTAVAIL)
        return None

    def interface_for(self, open: Open, local: Address) -> NetworkInterface | None:
        """The interface that a flow is pinned to, by name or by its address."""
        if open.interface is not None:
            return next((i for i in self.interfaces if i.name == open.interface), None)
        return self.addresses.get(local.host)

    def certificate_names(self) -> tuple[str, ...]:
        """What its TLS certificate is for."""
        if self.certificate is not None:
            return self.certificate
        names = [name for name, hosts in self.network.names.items() if any(host in self.addresses for host in hosts)]
        return (*names, *self.addresses)

    def _open(self, process: Process, open: Open) -> Opened | Closed | None:
        if open.transport is not Transport.UDP:
            return self.streams.open(process, open)
        flow, local = open.flow, open.local or Address("0.0.0.0", 0)  # noqa: S104
        refused = self.refusal(open, local)
        if refused is not None:
            return refused
        port = local.port or self._free_port(local.host, open.ports or _EPHEMERAL)
        if port is None or (local.host, port) in self._bound:
            where = local if local.port else f"every port of {open.ports}"
            return Closed(flow=flow, reason=f"{where} is in use", errno=errno.EADDRINUSE)
        if flow in process.sockets:
            raise LabError(f"{self.name}: {flow} was opened twice")
        socket = Socket(process, flow, local.with_port(port), self.interface_for(open, local))
        process.sockets[flow] = socket
        self._bound[local.host, port] = socket
        if self.trace.enabled:
            self.trace.flow_opened(now=self.clock.now, flow=str(flow), transport="udp", local=str(socket.local))
        return Opened(flow=flow, local=socket.local)

    def _free_port(self, host: str, ports: tuple[int, int]) -> int | None:
        low, high = ports
        count = high - low + 1
        start = self.chance.randrange(count)
        for i in range(count):
            port = low + (start + i) % count
            if (host, port) not in self._bound:
                return port
        return None

    def _send(self, process: Process, send: Send) -> None:
        socket = process.sockets.get(send.flow)
        if socket is not None:
            size = send.ip.segment_size if send.ip is not None else None
            pieces = [send.data] if not size else [send.data[i : i + size] for i in range(0, len(send.data), size)]
            errors = [self._emit(socket, send, data) for data in pieces]
        elif (stream := process.streams.get(send.flow)) is not None:
            process.sent += 1
            errors = [self.streams.send(stream, send)]
        else:
            process.misuses.append(f"{len(send.data)} bytes for {send.remote} were sent by {send.flow}, not open")
            return
        for error in errors:
            if error:
                failed = SendFailed(flow=send.flow, remote=send.remote, errno=error)
                self.clock.at(self.clock.now, process.receive, failed)

    def _emit(self, socket: Socket, send: Send, data: bytes) -> int:
        """Send one datagram; the system's error number, 0 when it went out."""
        remote, source = send.remote, socket.local
        if (":" in remote.host) != (":" in source.host):
            return errno.EAFNOSUPPORT
        local = remote.host in self.addresses
        out = None if local else self._way_out(socket, remote.host)
        if not local and (out is None or not out.up):
            return errno.ENETUNREACH
        if source.host in _WILDCARDS:
            host = remote.host if out is None else out.address_of_family(":" in remote.host)
            if host is None:
                return errno.EADDRNOTAVAIL
            source = Address(host, source.port)
        elif source.host not in self.addresses:
            return errno.EADDRNOTAVAIL
        elif out is not None and scope(source.host) == "loopback":
            return errno.EINVAL
        network = self.network
        socket.process.sent += 1
        packet = IpPacket(send.packet or network.packet_id(), source, Address(*remote[:2]), Protocol.UDP, data)
        if send.ip is not None:
            _apply(packet, send.ip)
        if self.trace.enabled:
            self.trace.packet_sent(
                now=self.clock.now,
                packet=packet.id,
                protocol="udp",
                source=str(source),
                destination=str(remote),
                length=len(data),
            )
        if out is None:
            self.clock.after(LOOPBACK_DELAY, self.deliver, packet)
            return 0
        mtu = min(out.outward.mtu, self._path_mtu.get(remote.host, 65535))
        if length(packet) <= mtu:
            out.transmit(packet, network)
        elif packet.dont_fragment:
            return errno.EMSGSIZE
        else:
            for piece in fragment(packet, mtu):
                out.transmit(piece, network)
        return 0

    def _way_out(self, socket: Socket, host: str) -> NetworkInterface | None:
        if socket.interface is not None and self.source_routing:
            return socket.interface
        return self.routes.find(host)

    def _resolved(self, query: Resolve) -> tuple[int, Resolved]:
        """What a resolver says, and after how long: a literal address is its own answer, at once."""
        try:
            return 0, Resolved(query=query, hosts=(Address.of(query.name, 0).host,))
        except DecodeError:
            pass
        hosts = self.network.names.get(query.name, ()) if query.record is RecordType.ADDRESS else ()
        error = "" if hosts else f"{query.name} has no {query.record.value} record"
        return self.network.resolve_delay, Resolved(query=query, hosts=tuple(hosts), error=error)

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
        if packet.icmp is not None:
            self._deliver_icmp(packet, packet.icmp)
            return
        if packet.protocol is Protocol.TCP:
            self.streams.deliver(packet)
            return
        socket = self._socket_at(packet.destination)
        if socket is None:
            reason = f"nothing listens at {packet.destination}"
            if self.silent:
                self.drop(packet, reason)
            else:
                self.refuse(packet, IcmpKind.PORT_UNREACHABLE, reason)
            return
        if self.trace.enabled:
            self.trace.packet_received(
                now=self.clock.now,
                packet=packet.id,
                source=str(packet.source),
                destination=str(packet.destination),
                length=len(packet.payload),
            )
        ip = IpFields(ecn=Ecn(packet.ecn), dscp=packet.dscp) if packet.ecn or packet.dscp else None
        socket.process.receive(Datagram(socket.flow, packet.source, packet.payload, ip, packet.id))

    def _deliver_icmp(self, packet: IpPacket, icmp: IcmpMessage) -> None:
        about = icmp.about
        if about is None or icmp.kind is None:
            if icmp.reply:
                self.pongs.append((self.clock.now, packet.source.host, icmp.sequence))
            else:
                super().deliver(packet)
            return
        if icmp.kind is IcmpKind.TOO_BIG and icmp.mtu:
            self._path_mtu[about.destination.host] = icmp.mtu
        if about.protocol is Protocol.TCP and self.streams.unreachable(about, icmp):
            return
        socket = self._socket_at(about.source) if about.protocol is Protocol.UDP else None
        if socket is None:
            self.drop(packet, f"an ICMP error about a packet from {about.source}, where nothing is open")
            return
        error = IcmpError(
            flow=socket.flow, remote=about.destination, kind=icmp.kind, origin=packet.source.host, mtu=icmp.mtu
        )
        socket.process.receive(error)

    def _socket_at(self, address: Address) -> Socket | None:
        bound = self._bound
        socket = bound.get((address.host, address.port))
        return socket or bound.get((_WILDCARDS[":" in address.host], address.port))


def _apply(packet: IpPacket, ip: IpFields) -> None:
    packet.ecn = ip.ecn.value if ip.ecn is not None else 0
    packet.dscp = ip.dscp or 0
    packet.dont_fragment = bool(ip.dont_fragment)
    packet.ttl = ip.ttl or 64
