"""Hosts: they run machines. A host carries out a machine's outputs and delivers inputs to it, as the real driver does.

The driver uses sockets of the system; a host sends packets through the virtual network.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from polynya.core.addresses import Address, scope
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, Transport
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    Ecn,
    IcmpError,
    IcmpKind,
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
from polynya.nat.fragments import fragment

from .environment import Environment
from .ip_stack import EPHEMERAL, LOOPBACK_DELAY, WILDCARDS, IpStack
from .processes import AnyMachine, LabError, Process, Socket
from .streams import Streams


class Host(IpStack):
    """A computer with one or more interfaces. Its processes open UDP sockets and streams."""

    def __init__(self, network: Environment, name: str) -> None:
        super().__init__(network, name)
        self.processes: list[Process] = []
        self.streams = Streams(self)
        self._bound: dict[tuple[str, int], Socket] = {}

    # --------------------------------------------------------------------------------------------------- processes

    def run(self, machine: AnyMachine, on_event: Callable[[Any], None] | None = None) -> Process:
        """Run a machine in a new process. Its first input is the host's interfaces."""
        process = Process(self, machine, on_event)
        self.processes.append(process)
        process.receive(self.interfaces_now())
        return process

    def interfaces_changed(self) -> None:
        """Inform every process of the current interfaces."""
        shown = [host for i in self.interfaces if i.up for host in i.addresses]
        self.trace.interfaces(now=self.clock.now, addresses=shown)
        for process in self.processes:
            self.clock.at(self.clock.now, process.receive, self.interfaces_now())

    # ----------------------------------------------------------------------------------------------------- outputs

    def carry_out(self, process: Process, output: Output) -> None:
        """Carry out an output of a machine. Results are delivered at the same instant, after the drain."""
        if isinstance(output, Send):
            self._send(process, output)
        elif isinstance(output, Open):
            answer = self._open(process, output)
            if answer is not None:
                self.clock.at(self.clock.now, process.receive, answer)
        elif isinstance(output, Close):
            if not self.close(process, output.flow):
                process.misuses.append(f"{output.flow} was closed, but it is not open")
        else:
            delay, resolved = self._resolved(output)
            self.clock.after(delay, process.receive, resolved)

    def close(self, process: Process, flow: Flow, *, silently: bool = False) -> bool:
        """Close a flow of a process; False if it is not open. `silently` sends no packet for a stream."""
        stream = process.streams.pop(flow, None)
        socket = process.sockets.pop(flow, None)
        if stream is not None:
            stream.close(silently=silently)
        elif socket is not None:
            del self._bound[socket.local.host, socket.local.port]
        else:
            return False
        self.trace.flow_closed(now=self.clock.now, flow=flow)
        return True

    def _open(self, process: Process, open: Open) -> Opened | Closed | None:
        if open.transport is not Transport.UDP:
            return self.streams.open(process, open)
        flow, local = open.flow, open.local or Address(WILDCARDS[0], 0)
        refused = self.refusal(open, local)
        if refused is not None:
            return refused
        port = local.port or self._free_port(local.host, open.ports or EPHEMERAL)
        if port is None or (local.host, port) in self._bound:
            wanted = local if local.port else f"every port of {open.ports}"
            return Closed(flow=flow, reason=f"{wanted} is in use", errno=errno.EADDRINUSE)
        if flow in process.sockets:
            raise LabError(f"{self.name}: {flow} was opened twice")
        socket = Socket(process, flow, local.with_port(port), self.interface_for(open, local))
        process.sockets[flow] = socket
        self._bound[local.host, port] = socket
        self.trace.flow_opened(now=self.clock.now, flow=flow, transport=Transport.UDP, local=socket.local)
        return Opened(flow=flow, local=socket.local)

    def _free_port(self, host: str, ports: tuple[int, int]) -> int | None:
        return self.free_port(ports, lambda port: (host, port) not in self._bound)

    def _send(self, process: Process, send: Send) -> None:
        socket = process.sockets.get(send.flow)
        if socket is not None:
            size = send.ip.segment_size if send.ip is not None else None
            pieces = [send.data] if not size else [send.data[i : i + size] for i in range(0, len(send.data), size)]
            errors = [self._send_datagram(socket, send, data) for data in pieces]
        elif (stream := process.streams.get(send.flow)) is not None:
            process.sent += 1
            errors = [stream.send(send.data)]
        else:
            process.misuses.append(
                f"{len(send.data)} bytes for {send.remote} were sent by {send.flow}, but it is not open"
            )
            return
        for error in errors:
            if error:
                failed = SendFailed(flow=send.flow, remote=send.remote, errno=error)
                self.clock.at(self.clock.now, process.receive, failed)

    def _send_datagram(self, socket: Socket, send: Send, data: bytes) -> int:
        """Send one datagram. Return the system's error number, or 0 if the datagram was sent."""
        remote, source = send.remote, socket.local
        if (":" in remote.host) != (":" in source.host):
            return errno.EAFNOSUPPORT
        local = remote.host in self.addresses
        out = None if local else self.way_out(socket.interface, remote.host)
        if not local and (out is None or not out.up):
            return errno.ENETUNREACH
        if source.host in WILDCARDS:
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
        self.trace.packet_sent(
            now=self.clock.now, packet=packet.id, protocol="udp", source=source, destination=remote, length=len(data)
        )
        if out is None:
            self.clock.after(LOOPBACK_DELAY, self.deliver, packet)
            return 0
        mtu = min(out.outward.mtu, self.path_mtu.get(remote.host, 65535))
        if length(packet) <= mtu:
            out.transmit(packet, network)
        elif packet.dont_fragment:
            return errno.EMSGSIZE
        else:
            for piece in fragment(packet, mtu):
                out.transmit(piece, network)
        return 0

    def _resolved(self, query: Resolve) -> tuple[int, Resolved]:
        """Return the result of a DNS lookup and its delay. A literal address resolves to itself at once."""
        try:
            return 0, Resolved(query=query, hosts=(Address.of(query.name, 0).host,))
        except DecodeError:
            pass
        hosts = self.network.names.get(query.name, ()) if query.record is RecordType.ADDRESS else ()
        error = "" if hosts else f"{query.name} has no {query.record.value} record"
        return self.network.resolve_delay, Resolved(query=query, hosts=tuple(hosts), error=error)

    # ------------------------------------------------------------------------------------------------------ inputs

    def deliver_transport(self, packet: IpPacket) -> None:
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
        self.trace.packet_received(
            now=self.clock.now,
            packet=packet.id,
            source=packet.source,
            destination=packet.destination,
            length=len(packet.payload),
        )
        ip = IpFields(ecn=Ecn(packet.ecn), dscp=packet.dscp) if packet.ecn or packet.dscp else None
        socket.process.receive(Datagram(socket.flow, packet.source, packet.payload, ip, packet.id))

    def deliver_error(self, packet: IpPacket, icmp: IcmpMessage, about: IpPacket) -> None:
        if icmp.kind is IcmpKind.TOO_BIG and icmp.mtu:
            self.path_mtu[about.destination.host] = icmp.mtu
        if about.protocol is Protocol.TCP and self.streams.unreachable(about, icmp):
            return
        socket = self._socket_at(about.source) if about.protocol is Protocol.UDP else None
        if socket is None or icmp.kind is None:
            super().deliver_error(packet, icmp, about)
            return
        error = IcmpError(
            flow=socket.flow, remote=about.destination, kind=icmp.kind, origin=packet.source.host, mtu=icmp.mtu
        )
        socket.process.receive(error)

    def _socket_at(self, address: Address) -> Socket | None:
        bound = self._bound
        socket = bound.get((address.host, address.port))
        return socket or bound.get((WILDCARDS[":" in address.host], address.port))


def _apply(packet: IpPacket, ip: IpFields) -> None:
    packet.ecn = ip.ecn.value if ip.ecn is not None else 0
    packet.dscp = ip.dscp or 0
    packet.dont_fragment = bool(ip.dont_fragment)
    packet.ttl = ip.ttl or 64
