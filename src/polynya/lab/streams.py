"""The streams of a host: TCP and modeled TLS, opened, accepted and closed for the machines that run on it.

A machine receives the same inputs as from the real driver:

    Open with a remote     Opened, or Closed alone: refused, unreachable, timed out, wrong certificate
    Open without one       Opened, then for each accepted stream an Opened that names the listener
    Send                   the bytes, in order; SendFailed while the stream is not open or its buffer is full
    Close                  buffered bytes are sent, then the stream ends; no further input is delivered
"""

from __future__ import annotations

import errno
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import SECOND
from polynya.core.machine import Closed, IcmpKind, Open, Opened, StreamData
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, TcpFields, TcpFlags

from .ip_stack import EPHEMERAL, LOOPBACK_DELAY, LOOPBACK_MTU, WILDCARDS, IpStack
from .links import NetworkInterface
from .processes import LabError, Process
from .tcp import Connection, largest_segment, reset_for
from .tls import Handshake, TlsState

CONNECT_TIMEOUT: Final = 20 * SECOND
"""The time limit for TCP and TLS together, as in the real driver."""
_WRITE_LIMIT: Final = 1 << 20

_OPENING: Final = TcpFlags.SYN | TcpFlags.ACK | TcpFlags.RST

Endpoints = tuple[Address, Address]
"""Local and remote."""


class Listener:
    """A port at which streams are accepted."""

    def __init__(self, streams: Streams, process: Process, open: Open, local: Address) -> None:
        self.process = process
        self.flow = open.flow
        self.local = local
        self.open = open
        self._streams = streams

    def send(self, data: bytes) -> int:  # noqa: ARG002
        """Fail: a listener has no remote endpoint."""
        return errno.ENOTCONN

    def close(self, *, silently: bool = False) -> None:  # noqa: ARG002
        """Stop accepting streams. Streams that were accepted stay open."""
        self._streams.forget_listener(self)


class Stream:
    """One stream of a process. It owns its TCP connection."""

    def __init__(
        self,
        streams: Streams,
        process: Process,
        endpoints: Endpoints,
        transport: Transport,
        *,
        flow: Flow | None = None,
        listener: Listener | None = None,
        interface: NetworkInterface | None = None,
        handshake: Handshake | None = None,
    ) -> None:
        self.process = process
        self.local, self.remote = endpoints
        self.transport = transport
        self.flow = flow
        self.interface = interface
        self.open = False
        self._listener = listener
        self._streams = streams
        self._handshake = handshake
        mss = streams.largest_segment(self)
        sequence = streams.host.chance.randrange(1 << 32)
        self.connection = Connection(streams.host.clock, self, sequence=sequence, mss=mss)

    # ------------------------------------------------------------------------------------------- calls of the process

    def send(self, data: bytes) -> int:
        """Send bytes. Return the system's error number, or 0 if the bytes were accepted."""
        if not self.open:
            return errno.ENOTCONN
        if self.connection.waiting + len(data) > _WRITE_LIMIT:
            return errno.ENOBUFS
        self.connection.send(data)
        return 0

    def close(self, *, silently: bool = False) -> None:
        """Send the buffered bytes, then close; `silently` sends nothing, as after a power failure."""
        self.open = False
        if silently:
            self.connection.vanish()
        else:
            self.connection.close()

    def expire(self) -> None:
        """Fail the stream if it is not open yet. The host calls this at the connect timeout."""
        if not self.open and self.flow in self.process.streams:
            self.connection.close()
            self._fail(f"it did not answer within {CONNECT_TIMEOUT // SECOND} s", errno.ETIMEDOUT)

    # ----------------------------------------------------------------------------------- calls of the TCP connection

    def established(self) -> None:
        if self._handshake is None:
            self._ready(None)
        else:
            self.connection.send(self._handshake.output())

    def arrived(self, data: bytes) -> None:
        handshake = self._handshake
        if handshake is not None:
            handshake.feed(data)
            self.connection.send(handshake.output())
            if handshake.state is TlsState.FAILED:
                self.connection.close()
                self._fail(handshake.reason, None)
                return
            if handshake.state is not TlsState.DONE:
                return
            self._handshake = None
            self._ready(handshake.alpn)
            data = handshake.rest
        if data and self.open and self.flow is not None:
            self.process.receive(StreamData(self.flow, data))

    def ended(self, reason: str, number: int | None) -> None:
        self._fail(reason, number)

    def emit(self, tcp: TcpFields, payload: bytes) -> None:
        self._streams.emit(self, tcp, payload)

    def gone(self) -> None:
        self._streams.forget(self)

    # --------------------------------------------------------------------------------------------------------- inside

    def _ready(self, alpn: str | None) -> None:
        streams, listener = self._streams, self._listener
        if self.flow is None:
            if self.process.stopped or listener is None or listener.flow not in self.process.streams:
                self.connection.abort()
                return
            self.flow = streams.host.network.flow_ids.new()
            self.process.streams[self.flow] = self
        self.open = True
        opened = Opened(
            flow=self.flow,
            local=self.local,
            remote=self.remote,
            listener=None if listener is None else listener.flow,
            alpn=alpn,
        )
        streams.trace_opened(self.flow, self.transport, self.local, self.remote)
        self.process.receive(opened)

    def _fail(self, reason: str, number: int | None) -> None:
        self.open = False
        if self.flow is not None and self.process.streams.pop(self.flow, None) is self:
            host = self._streams.host
            host.trace.flow_closed(now=host.clock.now, flow=self.flow)
            self.process.receive(Closed(flow=self.flow, reason=f"{self.remote}: {reason}", errno=number))


class Streams:
    """All streams and listeners of one host."""

    def __init__(self, host: IpStack) -> None:
        self.host = host
        self._connected: dict[Endpoints, Stream] = {}
        self._listening: dict[tuple[str, int], Listener] = {}

    # ------------------------------------------------------------------------------------------------------------ calls

    def open(self, process: Process, open: Open) -> Opened | Closed | None:
        """Start to listen or to connect; None if the result follows later as an input."""
        if open.flow in process.streams or open.flow in process.sockets:
            raise LabError(f"{self.host.name}: {open.flow} was opened twice")
        return self._listen(process, open) if open.remote is None else self._connect(process, open, open.remote)

    def forget(self, stream: Stream) -> None:
        """Release the endpoints of a stream."""
        self._connected.pop((stream.local, stream.remote), None)

    def forget_listener(self, listener: Listener) -> None:
        """Release the port of a listener."""
        del self._listening[listener.local.host, listener.local.port]

    # ---------------------------------------------------------------------------------------------------------- network

    def deliver(self, packet: IpPacket) -> None:
        """Handle a TCP segment that arrived at the host."""
        host, tcp = self.host, packet.tcp
        assert tcp is not None
        stream = self._connected.get((packet.destination, packet.source))
        listener = None
        if stream is None and tcp.flags & _OPENING == TcpFlags.SYN:
            listener = self._listener_at(packet.destination)
        if stream is None and listener is None:
            missing = "listens" if tcp.flags & TcpFlags.SYN else "has a connection"
            host.drop(packet, f"nothing {missing} at {packet.destination}")
            if not host.silent and not tcp.flags & TcpFlags.RST:
                answer = reset_for(packet, tcp)
                answer.id = host.network.packet_id()
                host.send(answer)
            return
        host.trace.packet_received(
            now=host.clock.now,
            packet=packet.id,
            source=packet.source,
            destination=packet.destination,
            length=len(packet.payload),
            tcp=_shown(tcp.flags),
        )
        if stream is not None:
            stream.connection.receive(tcp, packet.payload)
        elif listener is not None:
            self._accept(listener, packet, tcp)

    def unreachable(self, about: IpPacket, icmp: IcmpMessage) -> bool:
        """Handle an ICMP error about a segment; False if the segment belongs to no stream of the host."""
        stream = self._connected.get((about.source, about.destination))
        if stream is None or about.tcp is None or icmp.kind is None:
            return False
        mss = largest_segment(icmp.mtu, about.source) if icmp.kind is IcmpKind.TOO_BIG and icmp.mtu else None
        stream.connection.unreachable(icmp.kind, about.tcp.sequence, mss)
        return True

    def emit(self, stream: Stream, tcp: TcpFields, payload: bytes) -> None:
        """Send a segment. A segment that cannot leave the host is dropped; TCP sends it again."""
        host, network = self.host, self.host.network
        out = host.way_out(stream.interface, stream.remote.host)
        packet = IpPacket(
            network.packet_id(), stream.local, stream.remote, Protocol.TCP, payload,
            dont_fragment=True, tcp=tcp, tls=stream.transport.secure and bool(payload),
        )  # fmt: skip
        host.trace.packet_sent(
            now=host.clock.now,
            packet=packet.id,
            protocol="tcp",
            source=packet.source,
            destination=packet.destination,
            length=len(payload),
            tcp=_shown(tcp.flags),
        )
        if stream.remote.host in host.addresses:
            host.clock.after(LOOPBACK_DELAY, host.deliver, packet)
        elif out is None or stream.local.host not in host.addresses:
            host.drop(packet, f"{host.name} has no route to {stream.remote.host} from {stream.local.host}")
        else:
            out.transmit(packet, network)

    def largest_segment(self, stream: Stream) -> int:
        """Return the largest payload of a segment of this stream."""
        out = self.host.way_out(stream.interface, stream.remote.host)
        mtu = LOOPBACK_MTU if stream.remote.host in self.host.addresses or out is None else out.outward.mtu
        return largest_segment(mtu, stream.remote)

    def trace_opened(self, flow: Flow, transport: Transport, local: Address, remote: Address | None) -> None:
        """Trace a stream or listener that was opened."""
        host = self.host
        host.trace.flow_opened(now=host.clock.now, flow=flow, transport=transport, local=local, remote=remote)

    # ---------------------------------------------------------------------------------------------------------- opening

    def _listen(self, process: Process, open: Open) -> Opened | Closed:
        host, local = self.host, open.local or Address(WILDCARDS[0], 0)
        refused = host.refusal(open, local)
        if refused is not None:
            return refused
        port = local.port or self._free_port(local.host, open.ports or EPHEMERAL, None)
        if port is None or (local.host, port) in self._listening:
            return Closed(flow=open.flow, reason=f"{local.with_port(port or 0)} is in use", errno=errno.EADDRINUSE)
        listener = Listener(self, process, open, local.with_port(port))
        self._listening[local.host, port] = listener
        process.streams[open.flow] = listener
        self.trace_opened(open.flow, open.transport, listener.local, None)
        return Opened(flow=open.flow, local=listener.local)

    def _connect(self, process: Process, open: Open, remote: Address) -> Closed | None:
        host = self.host
        remote = Address(remote.host, remote.port)
        local = open.local or Address(WILDCARDS[remote.family == 6], 0)
        refused = host.refusal(open, local)
        if refused is not None:
            return refused
        if local.family != remote.family:
            reason = f"{remote} and {local.host} are of different families"
            return Closed(flow=open.flow, reason=reason, errno=errno.EAFNOSUPPORT)
        interface = host.interface_for(open, local)
        own = remote.host in host.addresses
        out = host.way_out(interface, remote.host)
        source = local.host
        if source in WILDCARDS:
            source = remote.host if own else "" if out is None else out.address_of_family(remote.family == 6) or ""
        if not own and (out is None or not out.up or not source):
            return Closed(flow=open.flow, reason=f"no route to {remote}", errno=errno.ENETUNREACH)
        port = local.port or self._free_port(source, open.ports or EPHEMERAL, remote)
        if port is None or (Address(source, port), remote) in self._connected:
            return Closed(flow=open.flow, reason=f"no port of {source} is free", errno=errno.EADDRINUSE)
        handshake = None
        if open.transport.secure:
            handshake = Handshake(client=True, alpn=open.alpn, names=(open.server_name or remote.host,))
        stream = Stream(
            self, process, (Address(source, port), remote), open.transport,
            flow=open.flow, interface=interface, handshake=handshake,
        )  # fmt: skip
        process.streams[open.flow] = stream
        self._connected[stream.local, remote] = stream
        stream.connection.connect()
        host.clock.after(CONNECT_TIMEOUT, stream.expire)
        return None

    def _accept(self, listener: Listener, packet: IpPacket, syn: TcpFields) -> None:
        host, secure = self.host, listener.open.transport.secure
        local, remote = packet.destination, packet.source
        names = host.certificate_names() if secure else ()
        stream = Stream(
            self, listener.process, (local, remote), listener.open.transport,
            listener=listener, interface=host.addresses.get(local.host),
            handshake=Handshake(client=False, alpn=listener.open.alpn, names=names) if secure else None,
        )  # fmt: skip
        self._connected[local, remote] = stream
        stream.connection.accept(syn)
        if secure:
            host.clock.after(CONNECT_TIMEOUT, self._give_up, stream)

    def _give_up(self, stream: Stream) -> None:
        """Abort a stream whose client has not completed the TLS handshake."""
        if stream.flow is None:
            stream.connection.abort()

    def _listener_at(self, address: Address) -> Listener | None:
        found = self._listening.get((address.host, address.port))
        return found or self._listening.get((WILDCARDS[address.family == 6], address.port))

    def _free_port(self, source: str, ports: tuple[int, int], remote: Address | None) -> int | None:
        def is_free(port: int) -> bool:
            return (source, port) not in self._listening and (
                remote is None or (Address(source, port), remote) not in self._connected
            )

        return self.host.free_port(ports, is_free)


_SHOWN: Final = tuple("+".join(flag.name or "" for flag in TcpFlags(number)) for number in range(32))


def _shown(flags: TcpFlags) -> str:
    return _SHOWN[flags]
