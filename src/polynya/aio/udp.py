"""A UDP socket of a machine: reads a limited batch on each wake-up, and sends at once.

Application data takes the short path: a datagram from an accepted remote address that cannot be STUN is passed to its
receiver directly. The receiver is looked up by the system's own socket address, so no `Address` and no `Datagram` is
made. The only exception raised is the one at the end of the batch. All other datagrams go to the machine.

Errors of the system become inputs. A refused send is `SendFailed`, except if a buffer was full: that is packet loss,
and is only counted. ICMP errors are read from the error queue (see `icmp`) and become `IcmpError`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow
from polynya.core.machine import Closed, Datagram, IcmpError, Input, IpFields, Send, SendFailed
from polynya.stun.message import is_stun

from . import features, poller, sockets
from .icmp import read_errors
from .packet_trace import PacketTrace
from .sockets import SockAddr
from .tally import Tally

BATCH: Final = 64
"""Datagrams read before the event loop gets its turn back."""
MAX_FAILURES: Final = 16
"""Consecutive reads that fail without an ICMP error before the socket is closed."""

_LARGEST: Final = 65535
_CONTROL: Final = 128  # bytes for the two control messages
_BEYOND_STUN: Final = b"\x04"  # bytes are ordered like text: data that is not below this cannot begin like STUN

Deliver = Callable[[bytes], None]
SendData = Callable[[bytes], bool]


class SocketOwner(Protocol):
    """The hub as its UDP sockets see it."""

    trace: PacketTrace | None
    tally: Tally

    def take(self, input: Input) -> None:
        """Pass an input to the machine."""

    def lost(self, closed: Closed) -> None:
        """Remove a flow that closed by itself, and report it to the machine."""


class UdpSocket:
    """A bound UDP socket that the event loop watches."""

    __slots__ = (
        "_bad_reads",
        "_deliver",
        "_deliveries",
        "_loop",
        "_remote",
        "_scope",
        "_sock",
        "closed",
        "flow",
        "local",
        "owner",
    )

    def __init__(self, sock: socket.socket, flow: Flow, owner: SocketOwner) -> None:
        self.flow = flow
        name = sock.getsockname()
        self.local = sockets.local_address(sock)
        self.closed = False
        self.owner = owner
        self._sock = sock
        self._scope: int = name[3] if len(name) > 3 and scope(self.local.host) == "link-local" else 0
        self._remote: SockAddr | None = None
        """The first accepted remote address and the receiver of its data; most sockets have no other."""
        self._deliver: Deliver | None = None
        self._deliveries: dict[SockAddr, Deliver] | None = None
        """Receivers by the other accepted remote addresses; a shared socket has thousands."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bad_reads = 0

    # ------------------------------------------------------------------------------------------- life

    def watch(self, loop: asyncio.AbstractEventLoop, *, ip_fields: bool = False) -> None:
        """Start to read datagrams, with their IP fields if requested and available.

        Raises NotImplementedError if the loop cannot watch sockets.
        """
        ip_fields = ip_fields and features.CONTROL_MESSAGES
        poller.watch(loop, self._sock, _FieldReader(self) if ip_fields else self)
        self._loop = loop
        if ip_fields:
            sockets.request_fields(self._sock)

    def close(self) -> None:
        """Stop reading and close the socket. Safe to call twice."""
        if self.closed:
            return
        self.owner.tally.kernel_drops += self.kernel_drops() or 0
        self.closed = True
        self._forget_remotes()
        if self._loop is not None:
            poller.unwatch(self._loop, self._sock)
            self._loop = None
        self._sock.close()

    def kernel_drops(self) -> int | None:
        """Datagrams dropped because the receive buffer was full; None if closed or not known on this system."""
        return None if self.closed else sockets.kernel_drops(self._sock)

    def receive_buffer(self) -> int:
        """Bytes of receive buffer that the system granted."""
        return 0 if self.closed else sockets.receive_buffer(self._sock)

    def writable(self) -> bool:
        """Whether the send buffer has room; true if closed."""
        return self.closed or sockets.writable(self._sock)

    # ---------------------------------------------------------------------------------------- receive

    def accept(self, remote: Address, deliver: Deliver) -> None:
        """Deliver datagrams from `remote` that are not STUN to `deliver`."""
        if self.closed:
            return
        if self.owner.trace is not None:
            deliver = self._traced(remote, deliver, self.owner.trace)
        name = self._name(remote)
        if self._remote is None or self._remote == name:
            self._remote, self._deliver = name, deliver
        elif self._deliveries is None:
            self._deliveries = {name: deliver}
        else:
            self._deliveries[name] = deliver

    def refuse(self, remote: Address) -> None:
        """Deliver datagrams from `remote` to the machine again."""
        name = self._name(remote)
        if self._remote == name:
            self._remote = self._deliver = None
        elif self._deliveries is not None:
            self._deliveries.pop(name, None)
            self._deliveries = self._deliveries or None

    def _receiver(self, source: SockAddr) -> Deliver | None:
        others = self._deliveries
        return self._deliver if source == self._remote else others.get(source) if others else None

    def _forget_remotes(self) -> None:
        self._remote = self._deliver = None
        self._deliveries = None

    def read(self) -> None:
        """Read a batch. Called by the event loop when the socket is readable or has an error pending."""
        recvfrom = self._sock.recvfrom
        count = size = 0
        try:
            for _ in range(BATCH):
                try:
                    data, source = recvfrom(_LARGEST)
                except BlockingIOError:
                    if not count:  # an ICMP error woke the loop, and another call has received it
                        self.report_icmp()
                    break
                except OSError as error:
                    if self.closed or not self._recover(error):
                        break
                    continue
                count += 1
                size += len(data)
                others = self._deliveries
                deliver = self._deliver if source == self._remote else others.get(source) if others else None
                if deliver is not None and data >= _BEYOND_STUN:
                    deliver(data)
                else:
                    self.dispatch(data, source, deliver)
        finally:
            if count:
                tally = self.owner.tally
                tally.datagrams_in += count
                tally.bytes_in += size
                self._bad_reads = 0

    def read_with_fields(self) -> None:
        """Read a batch; each `Datagram` carries the fields of its IP header."""
        for _ in range(BATCH):
            try:
                data, messages, _, source = self._sock.recvmsg(_LARGEST, _CONTROL)
            except BlockingIOError:
                self.report_icmp()
                break
            except OSError as error:
                if self.closed or not self._recover(error):
                    break
                continue
            self._bad_reads = 0
            self.owner.tally.datagrams_in += 1
            self.owner.tally.bytes_in += len(data)
            self.dispatch(data, source, self._receiver(source), sockets.received_fields(messages))

    def dispatch(self, data: bytes, source: SockAddr, deliver: Deliver | None, ip: IpFields | None = None) -> None:
        """Pass one datagram to the machine, or to `deliver` if it is data of an accepted remote address."""
        if deliver is not None and not is_stun(data):
            deliver(data)
            return
        remote, owner = sockets.from_sockaddr(source, self._scope), self.owner
        packet = owner.trace.received(remote, self.local, data) if owner.trace is not None else 0
        owner.take(Datagram(self.flow, remote, data, ip, packet))

    def _traced(self, remote: Address, deliver: Deliver, trace: PacketTrace) -> Deliver:
        local = self.local

        def traced(data: bytes) -> None:
            trace.received(remote, local, data)
            deliver(data)

        return traced

    def _recover(self, error: OSError) -> bool:
        """Handle a failed read: report the ICMP errors that caused it. False ends this batch."""
        if self.report_icmp():
            return True
        if error.errno in sockets.SOFT_ERRORS or error.errno == errno.ECONNREFUSED:
            return False
        self._bad_reads += 1
        if self._bad_reads >= MAX_FAILURES or error.errno in {errno.EBADF, errno.ENOTSOCK}:
            self.fail(error)
        return False

    def fail(self, error: OSError) -> None:
        """Close the socket after an error that will not pass, and report it."""
        self.close()
        self.owner.lost(Closed(flow=self.flow, reason=f"{self.local}: {sockets.explain(error)}", errno=error.errno))

    def report_icmp(self, sending_to: Address | None = None) -> bool:
        """Turn the error queue into inputs; return whether one of the errors came from another host.

        The kernel then failed the current call with an earlier datagram's error. `sending_to` is the remote address of
        a failed send: the kernel's own IPv4 errors do not name the port.
        """
        reports = read_errors(self._sock)
        for report in reports:
            remote = sockets.from_sockaddr(report.destination, self._scope)
            if report.origin is None and sending_to is not None:
                remote = sending_to
            if self.owner.trace is not None:
                self.owner.trace.icmp(self.local, remote, report.kind)
            self.owner.take(
                IcmpError(flow=self.flow, remote=remote, kind=report.kind, origin=report.origin, mtu=report.mtu)
            )
        return any(report.origin is not None for report in reports)

    # ------------------------------------------------------------------------------------------- send

    def send(self, output: Send) -> None:
        """Send a datagram of the machine. A refused one becomes `SendFailed`."""
        packet, trace, tally = output.packet, self.owner.trace, self.owner.tally
        if trace is not None:
            packet = trace.sent(self.local, output.remote, output.data, packet)
        if self._transmit(output.data, output.remote, output.ip):
            tally.datagrams_out += 1
            tally.bytes_out += len(output.data)
        elif trace is not None:
            trace.refused(packet, self.local, output.remote, "the system refused it")

    def sender(self, remote: Address) -> SendData:
        """Return a function that sends data to `remote` and returns whether the system took it."""
        name = self._name(remote)
        return Sender(self, remote, self._remote if self._remote == name else name)

    def _transmit(self, data: bytes, remote: Address, ip: IpFields | None) -> bool:
        try:
            self.put(data, self._name(remote), ip)
        except OSError as error:
            return self.retry(error, data, remote, ip)
        return True

    def retry(self, error: OSError, data: bytes, remote: Address, ip: IpFields | None = None) -> bool:
        """Send again if an earlier datagram's ICMP error failed the send; else report the failure."""
        if not self.closed and error.errno not in sockets.SOFT_ERRORS and self.report_icmp(remote):
            try:
                self.put(data, self._name(remote), ip)
            except OSError as second:
                error = second
            else:
                return True
        self.refused(error, remote)
        return False

    def refused(self, error: OSError, remote: Address) -> None:
        """Count a refused datagram, and report it to the machine unless it is packet loss."""
        number = error.errno or 0
        self.owner.tally.failed(number)
        if number not in sockets.SOFT_ERRORS:
            self.owner.take(SendFailed(flow=self.flow, remote=remote, errno=number))

    def put(self, data: bytes, name: SockAddr, ip: IpFields | None = None) -> None:
        """Pass a datagram to the system; raises its OSError."""
        if ip is None or not features.CONTROL_MESSAGES:
            self._sendto(data, name)
            return
        if ip.segment_size is not None and not features.LINUX:
            for start in range(0, len(data), ip.segment_size):
                self._sendto(data[start : start + ip.segment_size], name)
            return
        if ip.dont_fragment is None:
            self._sock.sendmsg([data], sockets.ancillary(ip, self._sock.family), 0, name)
            return
        sockets.set_dont_fragment(self._sock, self._sock.family, ip.dont_fragment)
        try:
            self._sock.sendmsg([data], sockets.ancillary(ip, self._sock.family), 0, name)
        finally:
            sockets.set_dont_fragment(self._sock, self._sock.family, None)

    def _sendto(self, data: bytes, name: SockAddr) -> object:
        return self._sock.sendto(data, name)

    def _name(self, remote: Address) -> SockAddr:
        return sockets.to_sockaddr(remote, self._scope)


class _FieldReader:
    """The reader of a socket whose datagrams carry their IP fields."""

    __slots__ = ("read",)

    def __init__(self, udp: UdpSocket) -> None:
        self.read = udp.read_with_fields


class Sender:
    """Sends application data to one remote address, whose socket address is computed once."""

    __slots__ = ("_name", "_remote", "_udp")

    def __init__(self, udp: UdpSocket, remote: Address, name: SockAddr) -> None:
        self._udp = udp
        self._remote = remote
        self._name = name

    def __call__(self, data: bytes) -> bool:
        """Send `data` at once; return whether the system took it."""
        udp = self._udp
        owner = udp.owner
        if owner.trace is not None:
            owner.trace.sent(udp.local, self._remote, data)
        try:
            udp.put(data, self._name)
        except OSError as error:
            if not udp.retry(error, data, self._remote):
                return False
        tally = owner.tally
        tally.datagrams_out += 1
        tally.bytes_out += len(data)
        return True


class UdpEndpoint(UdpSocket, asyncio.DatagramProtocol):
    """A UDP socket on asyncio's datagram endpoint, for loops that cannot watch sockets (Windows' proactor)."""

    __slots__ = ("_transport",)
    _transport: Any
    """asyncio's datagram transport; its type lacks `get_write_buffer_size`."""

    async def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Pass the socket to the loop's endpoint; to be awaited before the first send."""
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._sock)

    def _sendto(self, data: bytes, name: SockAddr) -> object:
        self._transport.sendto(data, name)
        return None

    def watch(self, loop: asyncio.AbstractEventLoop, *, ip_fields: bool = False) -> None:
        raise NotImplementedError("an endpoint is attached, not watched")

    def writable(self) -> bool:
        return self.closed or not self._transport.get_write_buffer_size()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.owner.tally.datagrams_in += 1
        self.owner.tally.bytes_in += len(data)
        self.dispatch(data, addr, self._receiver(addr))

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, OSError) and not self.report_icmp():
            self.owner.tally.failed(exc.errno or 0)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError) and not self.closed:
            self.fail(exc)
        self.closed = True

    def close(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None:
            super().close()
            return
        if not self.closed:
            self.owner.tally.kernel_drops += self.kernel_drops() or 0
            self.closed = True
            self._forget_remotes()
            transport.abort()
