"""The portable data plane: one loop over epoll and plain sockets, without threads and without an event loop.

    client's datagram --(source, channel)--> PeerRoute:   sendto by the relay's socket to the peer
    peer's datagram   --source-------------> ClientRoute: header in place, sendto by the listener to the client

A packet on the fast path costs one dictionary look-up and one comparison: the route holds all that is needed, and is
valid until its allocation, permission or channel expires. Every command about a relay removes the relay's routes. A
packet without a route is checked by all rules, which makes a new route (`relays`).

Packets are read into one buffer. A peer's datagram is read behind four free bytes, so that its ChannelData header is
written without a copy.

The owner calls `run`; a worker process does nothing else. In an event loop, watch `fileno()`: it is readable when
`run(0)` has something to do.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from struct import Struct
from typing import Final, Protocol

from polynya.core.addresses import pack_host
from polynya.core.compact import Queue
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, IcmpKind, Send
from polynya.turn.server.commands import Client, Command, Forward, Peer, PeerError, Relay, RelayLost, Report, Traffic
from polynya.turn.server.frames import MAX_DATAGRAM, SEND_TYPE, data_indication, parse_send

from .ports import PeerRoute, Port
from .relays import Relays
from .sockets import DONT_FRAGMENT, MAY_FRAGMENT, SockAddr, address_of, fragmentation, name_of

BATCH: Final = 64
"""Datagrams that are read from one socket before the next socket is read."""
LARGEST: Final = 65535

_IN: Final = getattr(select, "EPOLLIN", 1)
_HEAD: Final = Struct("!HH").pack_into
_READ_HEAD: Final = Struct("!HH").unpack_from
_SEND: Final = int.from_bytes(SEND_TYPE, "big")
_COOKIE: Final = b"\x21\x12\xa4\x42"
_BINDING_REQUEST: Final = b"\x00\x01\x00\x00" + _COOKIE
_PEER4: Final = b"\0\x12\0\x08"
_IDS: Final = 256
_TRANSIENT: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM, errno.EINTR})
_ICMP: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE})
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ErrorReport(Protocol):
    """An ICMP error from a socket's error queue."""

    @property
    def destination(self) -> tuple[object, ...]:
        """The destination of the datagram, as a socket address."""

    @property
    def kind(self) -> IcmpKind:
        """The kind of the error."""

    @property
    def mtu(self) -> int | None:
        """The path MTU, if the datagram was too big."""


ReadErrors = Callable[[socket.socket], Sequence[ErrorReport]]
"""Reads all errors from a socket's error queue. The owner passes it in, since it depends on the system."""


def now() -> Instant:
    """Read the clock that the control plane and data planes share."""
    return Instant(time.clock_gettime_ns(_CLOCK))


class _Listener:
    """A listener with its batch size."""

    __slots__ = ("batch", "flow", "round", "sock")

    def __init__(self, flow: Flow, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.batch = 1
        """Datagrams that are read at once; grows while more are waiting."""
        self.round = 0
        """The round of the loop in which it was read last."""


class PortablePlane:
    """A data plane on sockets. `listeners` are bound UDP sockets, which the owner closes.

    `gather` is the time in seconds that `run` sleeps after a wake-up, so that one wake-up serves several packets. It
    saves CPU below saturation and adds as much delay. Use it only in processes that do nothing else.
    `origins` are encoded attributes for a listener's Binding responses beside the mapped addresses, for behavior
    discovery (RFC 5780, section 6.1).
    """

    def __init__(
        self,
        listeners: Mapping[Flow, socket.socket],
        *,
        gather: float = 0.0,
        origins: Mapping[Flow, bytes] | None = None,
        read_errors: ReadErrors | None = None,
        draw: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], Instant] = now,
    ) -> None:
        self._gather = gather
        self._origins = dict(origins or {})
        self._read_errors = read_errors
        self._draw = draw
        self._clock = clock
        self._ids = b""
        self._round = 0
        self._epoll = select.epoll()
        self._by_flow = dict(listeners)
        self._listeners = {listener.fileno(): _Listener(flow, listener) for flow, listener in listeners.items()}
        self._buffer = bytearray(LARGEST + 4)
        self._view = memoryview(self._buffer)
        self._payload = self._view[4:]
        self.relays = Relays(self._by_flow, self._epoll, errors=read_errors is not None)
        """The relay ports; only commands change them."""
        self._outputs: Queue[Send] = Queue()
        """Frames for clients on streams, which the driver sends."""
        self.found = False
        """Whether the last `run` had something to do."""
        self.behind = False
        """Whether the last `run` has left packets unread, so that other sockets get their turn."""
        for listener in listeners.values():
            listener.setblocking(False)
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    # ------------------------------------------------------------------------------------------------------------ loop

    def fileno(self) -> int:
        """Return the descriptor to watch: it is readable when `run(0)` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Watch another descriptor; `run` returns it when it is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def run(self, timeout: float | None) -> list[int]:
        """Wait at most `timeout` seconds for packets and relay them. Returns the watched descriptors that are ready."""
        events = self._epoll.poll(timeout)
        self.found = bool(events)
        behind, self.behind = self.behind, False
        if not events:
            return []
        if self._gather and not behind:
            time.sleep(self._gather)
            events = self._epoll.poll(0)
        at = self._clock()
        self._round += 1
        port_of, listeners, others = self.relays.by_fd.get, self._listeners, []
        for fd, mask in events:
            port = port_of(fd)
            if port is not None:
                if mask == _IN:
                    self._from_peers(port, at)
                    continue
                if mask & select.EPOLLERR:
                    self._errors(port, at)
                if mask & _IN:
                    self._from_peers(port, at)
            elif fd in listeners:
                self._from_clients(listeners[fd], at)
            else:
                others.append(fd)
        return others

    def execute(self, command: Command | Forward, *, now: Instant, sock: socket.socket | None = None) -> None:
        """Carry out a command. `sock` is the socket of a relay that another process has bound."""
        if not isinstance(command, Forward):
            self.relays.execute(command, sock)
            return
        ports = self.relays.by_client.get(command.client)
        if ports is not None:
            self._client_frame(ports, memoryview(command.data), now)

    def relay_packet(self, datagram: Datagram, at: Instant) -> None:
        """Relay a client's packet that another worker has read; it is dropped if the client has no relay here."""
        ports = self.relays.by_client.get(Client(datagram.flow, datagram.remote))
        if ports is not None:
            self._client_frame(ports, memoryview(datagram.data), at)

    def receive(self, input: object, *, now: Instant) -> bool:  # noqa: ARG002
        """Return False: the sockets are the plane's own, so no input of the driver is for it."""
        return False

    def reports(self) -> list[Report]:
        """Return the reports for the control plane, oldest first; drained by the call."""
        return self.relays.reports.drain()

    def outputs(self) -> list[Send]:
        """Return the frames for clients on streams, oldest first; drained by the call."""
        return self._outputs.drain()

    @property
    def pending(self) -> bool:
        """Whether reports or outputs are waiting."""
        return bool(self.relays.reports or self._outputs)

    def send(self, answer: Send) -> bool:
        """Send an answer of the control plane by a listener; False if there is no such flow."""
        listener = self._by_flow.get(answer.flow)
        if listener is None:
            return False
        try:
            listener.sendto(answer.data, name_of(answer.remote))
        except OSError:
            self.relays.count("responses refused by the system")
        return True

    def close(self) -> None:
        """Close every relay port. The owner closes the listeners."""
        for port in list(self.relays.ports.values()):
            self.relays.drop(port)
        self._epoll.close()

    def release(self, relay: Relay) -> None:
        """Drop a relay that was moved to another worker."""
        port = self.relays.ports.get(relay)
        if port is not None:
            self.relays.drop(port)

    def traffic(self) -> list[Traffic]:
        """Return the traffic of each open relay."""
        return [port.count() for port in self.relays.ports.values()]

    @property
    def counters(self) -> dict[str, int]:
        """Datagrams that were not forwarded, by reason."""
        return self.relays.counters

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return self.relays.size

    # ---------------------------------------------------------------------------------------------------- from clients

    def _from_clients(self, listener: _Listener, at: int) -> None:
        """Read and relay the datagrams of clients; the batch size adapts so that few reads find none."""
        receive, buffer, view, find = listener.sock.recvfrom_into, self._buffer, self._view, self.relays.peer_routes.get
        batch = listener.batch
        again, listener.round = listener.round + 1 == self._round, self._round
        for count in range(batch):
            try:
                size, source = receive(buffer)
            except BlockingIOError:
                listener.batch = max(1, count)
                return
            except OSError:
                self.relays.count("read errors")
                continue
            route, start = None, 4
            kind, length = _READ_HEAD(buffer)
            if kind >> 14 == 1:
                route = find((source, kind))
                if length > size - 4:
                    route = None
            elif size >= 36 and kind == _SEND:
                # XOR-PEER-ADDRESS with IPv4, then DATA, and nothing else; any other Send takes the slow path.
                rest, length = length, buffer[34] << 8 | buffer[35]
                if (
                    size == 36 + (length + 3 & ~3) == 20 + rest
                    and buffer[4:8] == _COOKIE
                    and buffer[32] == 0
                    and buffer[33] == 0x13
                ):
                    start = 36
                    route = find((source, bytes(view[20:32])))
            if route is None or at >= route.until:
                self._without_peer_route(listener.flow, listener.sock, source, size, at)
            elif route.limited and not route.port.within_rate(length, at):
                self.relays.refuse(route.port, "rate limit exceeded")
            else:
                data = view[start : start + length]
                try:
                    route.sendto(data, route.name)
                except OSError as error:
                    self._send_failed(route, data, error, at)
                route.packets += 1
                route.bytes += length
        self.behind = True  # more datagrams of other clients may wait in this socket
        if again:  # readable two rounds in a row: more datagrams come in a round than a batch holds
            listener.batch = min(BATCH, batch * 2)

    def _without_peer_route(self, flow: Flow, listener: socket.socket, source: SockAddr, size: int, at: int) -> None:
        """Relay, answer or report a client's datagram that has no route."""
        frame = self._view[:size]
        if size == 20 and frame[:8] == _BINDING_REQUEST:
            self._answer_binding(flow, listener, source)
            return
        client = Client(flow, address_of(source))
        ports = self.relays.by_client.get(client)
        if ports is None or not self._client_frame(ports, frame, at, source):
            self.relays.reports.append(Datagram(flow, client.remote, bytes(frame)))

    def _client_frame(
        self, ports: dict[int, Port], frame: memoryview, at: int, source: SockAddr | None = None
    ) -> bool:  # fmt: skip
        """Relay ChannelData or a Send by all rules; False for any other packet.

        With a `source` the route is cached.
        """
        if len(frame) >= 4 and frame[0] >> 6 == 1:
            self._channel_data(ports, frame, at, source)
            return True
        if bytes(frame[:2]) != SEND_TYPE:
            return False
        relays = self.relays
        indication = parse_send(bytes(frame))
        port = ports.get(indication.peer.family) if indication is not None else None
        if indication is None:
            relays.count("malformed Send indication")
        elif port is None:
            relays.count("no relayed address of the peer's family")
        elif (route := relays.peer_route(port, Peer(indication.peer), at)) is not None:
            self._send(route, indication.data, at, dont_fragment=indication.dont_fragment)
            if source is not None and bytes(frame[20:24]) == _PEER4:
                relays.cache(port, (source, bytes(frame[20:32])), Peer(indication.peer), route, at)
            else:
                port.count_peer_route(route)
        return True

    def _channel_data(self, ports: dict[int, Port], frame: memoryview, at: int, source: SockAddr | None) -> None:
        relays = self.relays
        number, length = frame[0] << 8 | frame[1], frame[2] << 8 | frame[3]
        for port in ports.values():
            bound = port.channels.get(number)
            if bound is None:
                continue
            if length > len(frame) - 4:
                relays.refuse(port, "truncated ChannelData")
            elif at >= bound[1]:
                relays.refuse(port, "channel expired")
            elif (route := relays.peer_route(port, bound[0], at)) is not None:
                self._send(route, frame[4 : 4 + length], at)
                route.until = min(route.until, bound[1])
                if source is not None:
                    relays.cache(port, (source, number), bound[0], route, at)
                else:
                    port.count_peer_route(route)
            return
        relays.count("channel not bound")

    def _send(self, route: PeerRoute, data: memoryview | bytes, at: int, *, dont_fragment: bool = False) -> None:
        """Send one datagram to a peer."""
        port = route.port
        if route.limited and not port.within_rate(len(data), at):
            self.relays.refuse(port, "rate limit exceeded")
            return
        if dont_fragment:
            port.sock.setsockopt(*fragmentation(port.relay.family), DONT_FRAGMENT)
        try:
            route.sendto(data, route.name)
        except OSError as error:
            self._send_failed(route, data, error, at)
        finally:
            if dont_fragment:
                port.sock.setsockopt(*fragmentation(port.relay.family), MAY_FRAGMENT)
        route.packets += 1
        route.bytes += len(data)

    def _answer_binding(self, flow: Flow, listener: socket.socket, source: SockAddr) -> None:
        """Answer a Binding request without attributes: the mapped address (RFC 8489, section 14.2) and the origin."""
        address = address_of(source)
        packed = pack_host(address.host)
        size, mask = len(packed), bytes(self._view[4:20])
        head = (4 + size).to_bytes(2, "big") + bytes((0, 1 if size == 4 else 2))
        port = (address.port ^ 0x2112).to_bytes(2, "big")
        host = int.from_bytes(packed, "big") ^ int.from_bytes(mask[:size], "big")
        attributes = b"\0\x20" + head + port + host.to_bytes(size, "big")
        origin = self._origins.get(flow)
        if origin is not None:
            attributes += b"\0\x01" + head + address.port.to_bytes(2, "big") + packed + origin
        answer = b"\x01\x01" + len(attributes).to_bytes(2, "big") + mask + attributes
        try:
            listener.sendto(answer, source)
        except OSError:
            self.relays.count("responses refused by the system")
        else:
            self.relays.count("Binding responses")

    # ------------------------------------------------------------------------------------------------------ from peers

    def _from_peers(self, port: Port, at: int) -> None:
        """Read and relay the datagrams of peers; the batch size adapts so that few reads find none."""
        receive, find, batch, payload = port.receive, port.client_routes.get, port.batch, self._payload
        again, port.round = port.round + 1 == self._round, self._round
        for count in range(batch):
            try:
                size, source = receive(payload)
            except BlockingIOError:
                port.batch = max(1, count)
                return
            except OSError as error:
                if not self._read_failed(port, error, at):
                    return
                continue
            route = find(source)
            if route is None or at >= route.until or route.sendto is None:
                self._without_client_route(port, source, size, at)
                continue
            _HEAD(self._buffer, 0, route.channel, size)
            try:
                route.sendto(self._view[: 4 + size], port.name)
            except OSError:
                self.relays.count("sends refused by the system")
            route.packets += 1
            route.bytes += size
        if again:  # readable two rounds in a row: more datagrams come in a round than a batch holds
            port.batch = min(BATCH, batch * 2)
            self.behind = True

    def _without_client_route(self, port: Port, source: SockAddr, size: int, at: int) -> None:
        """Relay a peer's datagram that has no route, or one without a channel."""
        relays, client = self.relays, port.client
        route = port.client_routes.get(source)
        if route is None or at >= route.until:
            route = relays.client_route(port, source, at)
        if route is None or client is None:
            return
        if route.limited and not port.within_rate(size, at):
            relays.refuse(port, "rate limit exceeded")
            return
        data = bytes(self._view[4 : 4 + size])
        frame: bytes | None = None
        if route.channel:
            frame = route.channel.to_bytes(2, "big") + size.to_bytes(2, "big") + data
            frame += bytes(-size & 3) if port.stream else b""
        else:
            with suppress(ValueError):
                frame = data_indication(self._transaction_id(), route.peer, data)
        if frame is None or (len(frame) > MAX_DATAGRAM and not port.stream):
            relays.refuse(port, "too large for the client")
            return
        route.packets += 1
        route.bytes += size
        if port.sendto is None:
            self._outputs.append(Send(client.flow, client.remote, frame))
            return
        try:
            port.sendto(frame, port.name)
        except OSError:
            relays.count("sends refused by the system")

    def _transaction_id(self) -> bytes:
        if len(self._ids) < 12:
            self._ids = self._draw(12 * _IDS)
        drawn, self._ids = self._ids[:12], self._ids[12:]
        return drawn

    # ---------------------------------------------------------------------------------------------------------- errors

    def _send_failed(self, route: PeerRoute, data: memoryview | bytes, error: OSError, at: int) -> None:
        """Send again if the failure was an ICMP error about an earlier datagram; else count the loss."""
        if error.errno not in _TRANSIENT and self._errors(route.port, at):
            try:
                route.sendto(data, route.name)
            except OSError:
                pass
            else:
                return
        self.relays.count("sends refused by the system")

    def _read_failed(self, port: Port, error: OSError, at: int) -> bool:
        """Handle a failed read; False if the port is lost."""
        if self._errors(port, at) or error.errno in _TRANSIENT or error.errno in _ICMP:
            return True
        self.relays.drop(port)
        self.relays.reports.append(RelayLost(port.relay, error.strerror or str(error)))
        return False

    def _errors(self, port: Port, at: int) -> bool:
        """Report the ICMP errors in a port's error queue; False if there were none."""
        if self._read_errors is None:
            return port.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        reports = self._read_errors(port.sock)
        for report in reports:
            peer, _ = self.relays.peer_at(report.destination)
            if port.client is not None and at < port.until and port.permissions.get(peer.host, 0) > at:
                error = PeerError(client=port.client, peer=peer, kind=report.kind, mtu=report.mtu)
                self.relays.reports.append(error)
        return bool(reports)
