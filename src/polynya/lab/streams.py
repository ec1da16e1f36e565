"""The streams of a host: TCP and modeled TLS, opened, accepted and closed for the machines that run on it.

What a machine sees is what the real driver shows it:

    Open with a remote     Opened, or Closed alone: refused, unreachable, no answer in time, another's certificate
    Open without one       Opened, then an Opened that names the listener for each stream that comes
    Send                   the bytes, in order; SendFailed while the stream is not open or too much waits
    Close                  what waits is sent, then the stream ends; nothing more is heard of it
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import MICROSECOND, SECOND
from polynya.core.machine import Closed, IcmpKind, Open, Opened, Send, StreamData
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, TcpFields, TcpFlags

from .links import NetworkInterface
from .processes import LabError, Process
from .tcp import Connection, largest_segment, reset_for
from .tls import Handshake, TlsState

if TYPE_CHECKING:
    from .hosts import Host

CONNECT_TIMEOUT: Final = 20 * SECOND
"""As the real driver's: TCP and TLS together."""
LOOPBACK_DELAY: Final = 10 * MICROSECOND
_LOOPBACK_MTU: Final = 65536
_WRITE_LIMIT: Final = 1 << 20
_EPHEMERAL: Final = (49152, 65535)
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104

_OPENING: Final = TcpFlags.SYN | TcpFlags.ACK | TcpFlags.RST

Endpoints = tuple[Address, Address]
"""Local and remote."""


class Listener:
    """A port at which streams are accepted."""

    def __init__(self, process: Process, open: Open, local: Address) -> None:
        self.process = process
        self.flow = open.flow
        self.local = local
        self.open = open


class Stream:
    """One stream of a process. It owns its connection."""

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

    # ----------------------------------------------------------------------------------------- what the connection says

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

    # -------------------------------------------------------------------------------------------------------- own calls

    def expire(self) -> None:
        """It was to be open by now."""
        if not self.open and self.flow in self.process.streams:
            self.connection.close()
            self._fail(f"it did not answer within {CONNECT_TIMEOUT // SECOND} s", errno.ETIMEDOUT)

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
        streams.note_opened(self.flow, self.transport, self.local, self.remote)
        self.process.receive(opened)

    def _fail(self, reason: str, number: int | None) -> None:
        self.open = False
        if self.flow is not None and self.process.streams.pop(self.flow, None) is self:
            self._streams.note_closed(self.flow)
            self.process.receive(Closed(flow=self.flow, reason=f"{self.remote}: {reason}", errno=number))


class Streams:
    """All streams and listeners of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._connected: dict[Endpoints, Stream] = {}
        self._listening: dict[tuple[str, int], Listener] = {}

    # ------------------------------------------------------------------------------------------------------------ calls

    def open(self, process: Process, open: Open) -> Opened | Closed | None:
        """Begin to listen or to connect; None when the answer comes later."""
        if open.flow in process.streams or open.flow in process.sockets:
            raise LabError(f"{self.host.name}: {open.flow} was opened twice")
        return self._listen(process, open) if open.remote is None else self._connect(process, open, open.remote)

    def send(self, stream: Stream | Listener, send: Send) -> int:
        """Send bytes on a stream; the system's error number, 0 when they are taken."""
        if not isinstance(stream, Stream) or not stream.open:
            return errno.ENOTCONN
        if stream.connection.waiting + len(send.data) > _WRITE_LIMIT:
            return errno.ENOBUFS
        stream.connection.send(send.data)
        return 0

    def close(self, stream: Stream | Listener, *, silently: bool = False) -> None:
        """End a stream or a listener; `silently` tells nobody, as when the power fails."""
        if isinstance(stream, Listener):
            del self._listening[stream.local.host, stream.local.port]
            return
        stream.open = False
        if silently:
            stream.connection.vanish()
        else:
            stream.connection.close()

    def forget(self, stream: Stream) -> None:
        """Its endpoints are free."""
        self._connected.pop((stream.local, stream.remote), None)

    # ---------------------------------------------------------------------------------------------------------- network

    def deliver(self, packet: IpPacket) -> None:
        """A TCP segment came to the host."""
        host, tcp = self.host, packet.tcp
        assert tcp is not None
        stream = self._connected.get((packet.destination, packet.source))
        listener = None
        if stream is None and tcp.flags & _OPENING == TcpFlags.SYN:
            listener = self._listener_at(packet.destination)
        if stream is None and listener is None:
            what = "listens" if tcp.flags & TcpFlags.SYN else "has a connection"
            host.drop(packet, f"nothing {what} at {packet.destination}")
            if not host.silent and not tcp.flags & TcpFlags.RST:
                answer = reset_for(packet, tcp)
                answer.id = host.network.packet_id()
                host.send(answer)
            return
        if host.trace.enabled:
            host.trace.packet_received(
                now=host.clock.now,
                packet=packet.id,
                source=str(packet.source),
                destination=str(packet.destination),
                length=len(packet.payload),
                tcp=_shown(tcp.flags),
            )
        if stream is not None:
            stream.connection.receive(tcp, packet.payload)
        elif listener is not None:
            self._accept(listener, packet, tcp)

    def unreachable(self, about: IpPacket, icmp: IcmpMessage) -> bool:
        """An ICMP error came about a segment of ours; False when it is nobody's."""
        stream = self._connected.get((about.source, about.destination))
        if stream is None or about.tcp is None or icmp.kind is None:
            return False
        mss = largest_segment(icmp.mtu, about.source) if icmp.kind is IcmpKind.TOO_BIG and icmp.mtu else None
        stream.connection.unreachable(icmp.kind, about.tcp.sequence, mss)
        return True

    def emit(self, stream: Stream, tcp: TcpFields, payload: bytes) -> None:
        """Send a segment. What cannot leave is lost: the connection will see."""
        host, network = self.host, self.host.network
        out = self._way_out(stream)
        packet = IpPacket(
            network.packet_id(), stream.local, stream.remote, Protocol.TCP, payload,
            dont_fragment=True, tcp=tcp, tls=stream.transport.secure and bool(payload),
        )  # fmt: skip
        if host.trace.enabled:
            host.trace.packet_sent(
                now=host.clock.now,
                packet=packet.id,
                protocol="tcp",
                source=str(packet.source),
                destination=str(packet.destination),
                length=len(payload),
                tcp=_shown(tcp.flags),
            )
        if stream.remote.host in host.addresses:
            host.clock.after(LOOPBACK_DELAY, host.deliver, packet)
        elif out is None or stream.local.host not in host.addresses:
            host.drop(packet, f"{host.name} has no way to {stream.remote.host} from {stream.local.host}")
        else:
            out.transmit(packet, network)

    def largest_segment(self, stream: Stream) -> int:
        out = self._way_out(stream)
        mtu = _LOOPBACK_MTU if stream.remote.host in self.host.addresses or out is None else out.outward.mtu
        return largest_segment(mtu, stream.remote)

    # ------------------------------------------------------------------------------------------------------------ trace

    def note_opened(self, flow: Flow, transport: Transport, local: Address, remote: Address | None) -> None:
        host = self.host
        if host.trace.enabled:
            host.trace.flow_opened(
                now=host.clock.now,
                flow=str(flow),
                transport=transport.value,
                local=str(local),
                remote=None if remote is None else str(remote),
            )

    def note_closed(self, flow: Flow) -> None:
        if self.host.trace.enabled:
            self.host.trace.flow_closed(now=self.host.clock.now, flow=str(flow))

    # ---------------------------------------------------------------------------------------------------------- opening

    def _listen(self, process: Process, open: Open) -> Opened | Closed:
        host, local = self.host, open.local or Address(_WILDCARDS[0], 0)
        refused = host.refusal(open, local)
        if refused is not None:
            return refused
        port = local.port or self._free_port(local.host, open.ports or _EPHEMERAL, None)
        if port is None or (local.host, port) in self._listening:
            return Closed(flow=open.flow, reason=f"{local.with_port(port or 0)} is in use", errno=errno.EADDRINUSE)
        listener = Listener(process, open, local.with_port(port))
        self._listening[local.host, port] = listener
        process.streams[open.flow] = listener
        self.note_opened(open.flow, open.transport, listener.local, None)
        return Opened(flow=open.flow, local=listener.local)

    def _connect(self, process: Process, open: Open, remote: Address) -> Closed | None:
        host = self.host
        remote = Address(remote.host, remote.port)
        local = open.local or Address(_WILDCARDS[remote.family == 6], 0)
        refused = host.refusal(open, local)
        if refused is not None:
            return refused
        if local.family != remote.family:
            return Closed(flow=open.flow, reason=f"{remote} is of another family", errno=errno.EAFNOSUPPORT)
        interface = host.interface_for(open, local)
        own = remote.host in host.addresses
        out = interface if interface is not None and host.source_routing else host.routes.find(remote.host)
        source = local.host
        if source in _WILDCARDS:
            source = remote.host if own else "" if out is None else out.address_of_family(remote.family == 6) or ""
        if not own and (out is None or not out.up or not source):
            return Closed(flow=open.flow, reason=f"there is no way to {remote}", errno=errno.ENETUNREACH)
        port = local.port or self._free_port(source, open.ports or _EPHEMERAL, remote)
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
        """A client that never came through its handshake."""
        if stream.flow is None:
            stream.connection.abort()

    def _listener_at(self, address: Address) -> Listener | None:
        found = self._listening.get((address.host, address.port))
        return found or self._listening.get((_WILDCARDS[address.family == 6], address.port))

    def _free_port(self, source: str, ports: tuple[int, int], remote: Address | None) -> int | None:
        low, high = ports
        count = high - low + 1
        start = self.host.chance.randrange(count)
        for i in range(count):
            port = low + (start + i) % count
            if (source, port) not in self._listening and (
                remote is None or (Address(source, port), remote) not in self._connected
            ):
                return port
        return None

    def _way_out(self, stream: Stream) -> NetworkInterface | None:
        if stream.interface is not None and self.host.source_routing:
            return stream.interface
        return self.host.routes.find(stream.remote.host)


_SHOWN: Final = tuple("+".join(flag.name or "" for flag in TcpFlags(number)) for number in range(32))


def _shown(flags: TcpFlags) -> str:
    return _SHOWN[flags]
