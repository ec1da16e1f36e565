"""The portable data plane: one tight loop over epoll, plain sockets, no thread and no event loop of its own.

    client's datagram --(source, channel)--> Way:  sendto by the relay's socket to the peer
    peer's datagram   --source-------------> Back: header in place, sendto by the listener to the client

One dictionary look-up finds all that a packet needs, and one comparison tells whether it still holds: a Way or a Back
is good until the first of allocation, permission and channel ends, and any command about its relay throws it away. The
next packet then goes the long way, with all the rules asked, and makes it anew. What a packet arrives in is allocated
once; a peer's datagram is read four bytes into the buffer, so that its ChannelData header is written in front of it
without a copy.

Whoever runs the loop calls `run`; a worker process does nothing else. In an event loop `fileno()` is what to watch: it
is readable when `run(0)` has something to do.
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
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, IcmpKind, Send
from polynya.turn.server.commands import Client, Command, Forward, Peer, PeerError, Relay, RelayLost, Report, Traffic
from polynya.turn.server.frames import MAX_DATAGRAM, SEND_TYPE, data_indication, parse_send

from .ports import Port, Way
from .relays import Relays
from .sockets import DONT_FRAGMENT, MAY_FRAGMENT, SockAddr, address_of, fragmentation, name_of

BATCH: Final = 64
"""Datagrams that are read from one socket before the next one gets its turn."""
LARGEST: Final = 65535

_IN: Final = getattr(select, "EPOLLIN", 1)
_HEAD: Final = Struct("!HH").pack_into
_READ_HEAD: Final = Struct("!HH").unpack_from
_SEND: Final = int.from_bytes(SEND_TYPE, "big")
_COOKIE: Final = b"\x21\x12\xa4\x42"
_BINDING_REQUEST: Final = b"\x00\x01\x00\x00" + _COOKIE
_PEER4: Final = b"\0\x12\0\x08"
_IDS: Final = 256
_SOFT: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM, errno.EINTR})
_LATER: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE})
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ErrorReport(Protocol):
    """One ICMP error out of a socket's error queue."""

    @property
    def destination(self) -> tuple[object, ...]:
        """Whom the datagram was for, as a socket address."""

    @property
    def kind(self) -> IcmpKind:
        """What happened to it."""

    @property
    def mtu(self) -> int | None:
        """What would fit, where it was too big."""


ReadErrors = Callable[[socket.socket], Sequence[ErrorReport]]
"""Empties a socket's error queue. It is given by whoever has it: this room knows no system headers."""


def now() -> Instant:
    """The clock that control plane and data planes share."""
    return Instant(time.clock_gettime_ns(_CLOCK))


class _Listener:
    """A listener, and how much has come to it."""

    __slots__ = ("batch", "flow", "round", "sock")

    def __init__(self, flow: Flow, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.batch = 1
        """How many datagrams are read at once: more only while more are there."""
        self.round = 0
        """The round of the loop in which it was last read."""


class PortablePlane:
    """A data plane on sockets. `listeners` are bound UDP sockets that stay their owner's.

    `gather` is how many seconds `run` sleeps after a wake-up for more packets to come, so that one wake-up serves
    several: fewer cycles below saturation, and so much more delay. That is for processes that do nothing else.
    `origins` are encoded attributes that a listener's answers to Binding requests have beside the mapped addresses: it
    serves behavior discovery then (RFC 5780, section 6.1).
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
        """The relay ports; changed by commands only."""
        self.found = False
        """Whether the last `run` had something to do."""
        self.behind = False
        """Whether it has left packets where they came, for others to have their turn."""
        for listener in listeners.values():
            listener.setblocking(False)
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    # ------------------------------------------------------------------------------------------------------------ loop

    def fileno(self) -> int:
        """What an event loop watches: readable when `run(0)` has something to do."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Wake up for this descriptor, too; `run` tells when it is ready."""
        self._epoll.register(fd, select.EPOLLIN)

    def run(self, timeout: float | None) -> list[int]:
        """Serve what is there, after waiting for it for at most so many seconds. Returns what else is ready."""
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
        """Carry out a command. `sock` is a relay's socket that somebody else has bound."""
        if not isinstance(command, Forward):
            self.relays.execute(command, sock)
            return
        ports = self.relays.by_client.get(command.client)
        if ports is not None:
            self._client_frame(ports, memoryview(command.data), now)

    def take(self, datagram: Datagram, at: Instant) -> None:
        """Carry out a client's packet that another worker has read; what is not known is dropped."""
        ports = self.relays.by_client.get(Client(datagram.flow, datagram.remote))
        if ports is not None:
            self._client_frame(ports, memoryview(datagram.data), at)

    def reports(self) -> list[Report]:
        """What the control plane should know, oldest first; drained by the call."""
        drained, self.relays.reports = self.relays.reports, []
        return drained

    def send(self, output: Send) -> bool:
        """Send an answer of the control plane by a listener; False when there is no such flow."""
        listener = self._by_flow.get(output.flow)
        if listener is None:
            return False
        try:
            listener.sendto(output.data, name_of(output.remote))
        except OSError:
            self.relays.count("answers refused by the system")
        return True

    def close(self) -> None:
        """Close every relay port. The listeners are their owner's."""
        for port in list(self.relays.ports.values()):
            self.relays.drop(port)
        self._epoll.close()

    def release(self, relay: Relay) -> None:
        """Forget a relay whose socket another worker has now."""
        port = self.relays.ports.get(relay)
        if port is not None:
            self.relays.drop(port)

    def traffic(self) -> list[Traffic]:
        """What each open relay carried so far."""
        return [port.count() for port in self.relays.ports.values()]

    @property
    def counters(self) -> dict[str, int]:
        """What was not forwarded, by why."""
        return self.relays.counters

    @property
    def size(self) -> dict[str, int]:
        """How much of everything is held: nothing may leak."""
        return self.relays.size

    # ---------------------------------------------------------------------------------------------------- from clients

    def _from_clients(self, listener: _Listener, at: int) -> None:
        """Read what clients have sent: as much as came the last times, so that few reads find nothing."""
        receive, buffer, view, find = listener.sock.recvfrom_into, self._buffer, self._view, self.relays.ways.get
        batch = listener.batch
        again, listener.round = listener.round + 1 == self._round, self._round
        for count in range(batch):
            try:
                size, source = receive(buffer)
            except BlockingIOError:
                listener.batch = max(1, count)
                return
            except OSError:
                self.relays.count("reads that failed")
                continue
            way, start = None, 4
            kind, length = _READ_HEAD(buffer)
            if kind >> 14 == 1:
                way = find((source, kind))
                if length > size - 4:
                    way = None
            elif size >= 36 and kind == _SEND:
                # A peer of IPv4 and data, in this order and nothing else; whatever is different goes the long way.
                rest, length = length, buffer[34] << 8 | buffer[35]
                if (
                    size == 36 + (length + 3 & ~3) == 20 + rest
                    and buffer[4:8] == _COOKIE
                    and buffer[32] == 0
                    and buffer[33] == 0x13
                ):
                    start = 36
                    way = find((source, bytes(view[20:32])))
            if way is None or at >= way.until:
                self._unusual(listener.flow, listener.sock, source, size, at)
            elif way.limited and not way.port.within_rate(length, at):
                self.relays.refuse(way.port, "too many bytes")
            else:
                data = view[start : start + length]
                try:
                    way.sendto(data, way.name)
                except OSError as error:
                    self._send_failed(way, data, error, at)
                way.packets += 1
                way.bytes += length
        self.behind = True  # there may be more, and many clients wait for it
        if again:  # it was readable two rounds in a row: more comes than that in a round
            listener.batch = min(BATCH, batch * 2)

    def _unusual(self, flow: Flow, listener: socket.socket, source: SockAddr, size: int, at: int) -> None:
        """A client's datagram that no way is known for: find one, answer it, or hand it up."""
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
        """Carry out what a client sent, with all rules asked; False when it is not for the data plane.

        With a `source` the way is kept.
        """
        if len(frame) >= 4 and frame[0] >> 6 == 1:
            self._channel_data(ports, frame, at, source)
            return True
        if bytes(frame[:2]) != SEND_TYPE:
            return False
        relays = self.relays
        sending = parse_send(bytes(frame))
        port = ports.get(sending.peer.family) if sending is not None else None
        if sending is None:
            relays.count("Send that cannot be carried out")
        elif port is None:
            relays.count("Send to a family that is not allocated")
        elif (way := relays.way(port, Peer(sending.peer), at)) is not None:
            self._put(way, sending.data, at, whole=sending.dont_fragment)
            if source is not None and bytes(frame[20:24]) == _PEER4:
                relays.keep(port, (source, bytes(frame[20:32])), way)
            else:
                port.settle(way)
        return True

    def _channel_data(self, ports: dict[int, Port], frame: memoryview, at: int, source: SockAddr | None) -> None:
        relays = self.relays
        number, length = frame[0] << 8 | frame[1], frame[2] << 8 | frame[3]
        for port in ports.values():
            bound = port.channels.get(number)
            if bound is None:
                continue
            if length > len(frame) - 4:
                relays.refuse(port, "ChannelData is shorter than it says")
            elif at >= bound[1]:
                relays.refuse(port, "the channel has expired")
            elif (way := relays.way(port, bound[0], at)) is not None:
                self._put(way, frame[4 : 4 + length], at)
                way.until = min(way.until, bound[1])
                if source is not None:
                    relays.keep(port, (source, number), way)
                else:
                    port.settle(way)
            return
        relays.count("the channel is not bound")

    def _put(self, way: Way, data: memoryview | bytes, at: int, *, whole: bool = False) -> None:
        """Send one datagram by a way; `whole` with DF set."""
        port = way.port
        if way.limited and not port.within_rate(len(data), at):
            self.relays.refuse(port, "too many bytes")
            return
        if whole:
            port.sock.setsockopt(*fragmentation(port.relay.family), DONT_FRAGMENT)
        try:
            way.sendto(data, way.name)
        except OSError as error:
            self._send_failed(way, data, error, at)
        finally:
            if whole:
                port.sock.setsockopt(*fragmentation(port.relay.family), MAY_FRAGMENT)
        way.packets += 1
        way.bytes += len(data)

    def _answer_binding(self, flow: Flow, listener: socket.socket, source: SockAddr) -> None:
        """A Binding request without any attribute: the mapped address (RFC 8489, section 14.2) and the origin."""
        address = address_of(source)
        packed = pack_host(address.host)
        size, mask = len(packed), bytes(self._view[4:20])
        head = (4 + size).to_bytes(2, "big") + bytes((0, 1 if size == 4 else 2))
        port = (address.port ^ 0x2112).to_bytes(2, "big")
        host = int.from_bytes(packed, "big") ^ int.from_bytes(mask[:size], "big")
        told = b"\0\x20" + head + port + host.to_bytes(size, "big")
        origin = self._origins.get(flow)
        if origin is not None:
            told += b"\0\x01" + head + address.port.to_bytes(2, "big") + packed + origin
        answer = b"\x01\x01" + len(told).to_bytes(2, "big") + mask + told
        try:
            listener.sendto(answer, source)
        except OSError:
            self.relays.count("answers refused by the system")
        else:
            self.relays.count("binding answers")

    # ------------------------------------------------------------------------------------------------------ from peers

    def _from_peers(self, port: Port, at: int) -> None:
        """Read what peers have sent: as much as came the last times, so that few reads find nothing."""
        receive, find, batch, payload = port.receive, port.backs.get, port.batch, self._payload
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
            back = find(source)
            if back is None or at >= back.until or back.short is None:
                self._unusual_peer(port, source, size, at)
                continue
            _HEAD(self._buffer, 0, back.channel, size)
            try:
                back.short(self._view[: 4 + size], port.name)
            except OSError:
                self.relays.count("sends refused by the system")
            back.packets += 1
            back.bytes += size
        if again:  # it was readable two rounds in a row: more comes than one a round
            port.batch = min(BATCH, batch * 2)
            self.behind = True

    def _unusual_peer(self, port: Port, source: SockAddr, size: int, at: int) -> None:
        """A peer's datagram for which no channel is known."""
        relays, client = self.relays, port.client
        back = port.backs.get(source)
        if back is None or at >= back.until:
            back = relays.back(port, source, at)
        if back is None or client is None:
            return
        if back.limited and not port.within_rate(size, at):
            relays.refuse(port, "too many bytes")
            return
        data = bytes(self._view[4 : 4 + size])
        frame: bytes | None = None
        if back.channel:
            frame = back.channel.to_bytes(2, "big") + size.to_bytes(2, "big") + data
            frame += bytes(-size & 3) if port.stream else b""
        else:
            with suppress(ValueError):
                frame = data_indication(self._transaction_id(), back.peer, data)
        if frame is None or (len(frame) > MAX_DATAGRAM and not port.stream):
            relays.refuse(port, "too large to be wrapped")
            return
        back.packets += 1
        back.bytes += size
        if port.sendto is None:
            relays.reports.append(Send(client.flow, client.remote, frame))
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

    def _send_failed(self, way: Way, data: memoryview | bytes, error: OSError, at: int) -> None:
        """A send failed: by an earlier datagram's ICMP error, then it is tried once more; or it is lost."""
        if error.errno not in _SOFT and self._errors(way.port, at):
            try:
                way.sendto(data, way.name)
            except OSError:
                pass
            else:
                return
        self.relays.count("sends refused by the system")

    def _read_failed(self, port: Port, error: OSError, at: int) -> bool:
        """Whether reading may go on; if not, the port is lost."""
        if self._errors(port, at) or error.errno in _SOFT or error.errno in _LATER:
            return True
        self.relays.drop(port)
        self.relays.reports.append(RelayLost(port.relay, error.strerror or str(error)))
        return False

    def _errors(self, port: Port, at: int) -> bool:
        """Report the ICMP errors of a port's error queue; whether there were any."""
        if self._read_errors is None:
            return port.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        reports = self._read_errors(port.sock)
        for report in reports:
            peer, _ = self.relays.called(report.destination)
            if port.client is not None and at < port.until and port.permissions.get(peer.host, 0) > at:
                error = PeerError(client=port.client, peer=peer, kind=report.kind, mtu=report.mtu)
                self.relays.reports.append(error)
        return bool(reports)
