r"""TCP and TLS streams of a machine, connected or accepted, on asyncio's transports.

    CONNECTING ------> OPEN ------> CLOSED      Opened once, then StreamData, then Closed once
         \____________________________/         a failed Open is Closed alone

A machine that closes a flow receives no further input of it. Each stream has a write buffer of limited size. A `Send`
that does not fit is dropped whole and answered with `SendFailed` (ENOBUFS). Messages therefore stay framed, and a slow
reader cannot exhaust the memory of the process.

An accepted stream reads a few kilobytes and frames in each turn of the event loop, so that a client that sends without
pause does not stop the others (`turns.py`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Closed, Input, Open, Opened, Send, SendFailed, StreamData
from polynya.core.packets import Protocol as IpProtocol
from polynya.stun.budget import source_of
from polynya.stun.framing import FrameCounter

from . import sockets
from .accepting import PlainConnections
from .handshakes import HandshakeLimits, Handshakes
from .packet_trace import PacketTrace
from .tally import Tally
from .turns import turns

BACKLOG: Final = 128
READ_BYTES: Final = 4096
"""Bytes that an accepted stream reads in one turn of the event loop."""
READ_FRAMES: Final = 16
"""Frames that an accepted stream passes to the machine in one turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Limits of a driver's TCP and TLS streams."""

    connect_timeout: float = 20.0
    """Seconds for a connection and its TLS handshake."""
    write_buffer: int = 1 << 20
    """Bytes that may wait to be written on a stream that this side connected."""
    accepted_write_buffer: int = 1 << 18
    """The same for an accepted stream: a server has thousands, and data that is relayed late is useless."""
    flush_timeout: float = 1.0
    """Seconds to write buffered data when the driver closes."""
    close_timeout: float = 3.0
    """Seconds to write buffered data after a flow is closed; then the rest is discarded."""
    closing_per_source: int = 8
    """Closed accepted streams that write buffered data at once, from one IPv4 address or IPv6 /64."""
    closing: int = 256
    """The same in all. A stream beyond these limits is closed without writing its data."""
    handshakes: HandshakeLimits = field(default_factory=HandshakeLimits)


STREAM_LIMITS: Final = StreamLimits()

TlsContexts = Callable[[Open], ssl.SSLContext]
"""Makes the TLS context of an `Open`: a client's if it has a remote address, else a listener's."""

Tls = ssl.SSLContext | TlsContexts
"""One context for all TLS flows, used unchanged, or a function that makes the context of each `Open`."""


def system_tls(request: Open) -> ssl.SSLContext:
    """Make a client's context that trusts the system's certificate authorities.

    Raises ConfigurationError for a listener, which needs a certificate.
    """
    if request.remote is None:
        raise ConfigurationError("a TLS listener needs a certificate: pass `tls`, a function that makes contexts")
    context = ssl.create_default_context()
    if request.alpn:
        context.set_alpn_protocols(list(request.alpn))
    return context


def tls_contexts(tls: Tls | None) -> TlsContexts:
    """Return `tls` as a function; None stands for `system_tls`."""
    if tls is None:
        return system_tls
    if isinstance(tls, ssl.SSLContext):
        context = tls
        return lambda _: context
    return tls


class StreamOwner(Protocol):
    """The hub as its streams and listeners see it."""

    trace: PacketTrace | None
    tally: Tally
    limits: StreamLimits
    buffer: bytearray
    """Buffer of READ_BYTES that all accepted streams read into."""

    def take(self, input: Input) -> None:
        """Pass an input to the machine."""

    def opened(self, opened: Opened, transport: Transport) -> None:
        """Report an open flow to the machine."""

    def lost(self, closed: Closed) -> None:
        """Remove a flow that closed by itself, and report it to the machine."""

    def accepted(self, stream: Stream) -> None:
        """Register a stream that a listener accepted."""


class Stream(asyncio.BaseProtocol):
    """One TCP or TLS stream: what connected and accepted ones have in common."""

    def __init__(self, owner: StreamOwner, flow: Flow, kind: Transport, listener: Flow | None = None) -> None:
        self.flow = flow
        self.closed = False
        self._owner = owner
        self._kind = kind
        self._listener = listener
        self._local = self._remote = Address("", 0)
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._abort: asyncio.TimerHandle | None = None
        self._released = asyncio.Event()
        self._handed_over = False
        """Whether the transport owns the socket and closes it."""

    # ------------------------------------------------------------------------------------------- open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed:
            self._transport.abort()
            return
        self._local = sockets.from_sockaddr(transport.get_extra_info("sockname"))
        self._remote = sockets.from_sockaddr(transport.get_extra_info("peername"))
        if self._listener is not None:
            self._owner.accepted(self)
        tls = transport.get_extra_info("ssl_object")
        alpn = tls.selected_alpn_protocol() if tls is not None else None
        opened = Opened(flow=self.flow, local=self._local, remote=self._remote, listener=self._listener, alpn=alpn)
        self._owner.opened(opened, self._kind)

    # ------------------------------------------------------------------------------------------- data

    def _take(self, data: bytes) -> None:
        self._owner.tally.bytes_in += len(data)
        if self.closed:
            return
        if self._owner.trace is not None:
            self._owner.trace.received(self._remote, self._local, data, IpProtocol.TCP)
        self._owner.take(StreamData(self.flow, data))

    def send(self, output: Send) -> None:
        """Write the bytes, all or none."""
        transport = self._transport
        if transport is None or self.closed:
            self._refuse(errno.ENOTCONN)
        elif transport.get_write_buffer_size() + len(output.data) > self._write_limit:
            self._refuse(errno.ENOBUFS)
        else:
            if self._owner.trace is not None:
                self._owner.trace.sent(self._local, self._remote, output.data, output.packet, IpProtocol.TCP)
            self._owner.tally.bytes_out += len(output.data)
            transport.write(output.data)

    @property
    def _write_limit(self) -> int:
        limits = self._owner.limits
        return limits.write_buffer if self._listener is None else limits.accepted_write_buffer

    @property
    def write_buffer(self) -> int:
        """Bytes that wait to be written."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def writable(self) -> bool:
        """Whether half of the write buffer is free; true if closed."""
        return self.closed or 2 * self.write_buffer <= self._write_limit

    def _refuse(self, number: int) -> None:
        self._owner.tally.failed(number)
        self._owner.take(SendFailed(flow=self.flow, remote=self._remote, errno=number))

    # ------------------------------------------------------------------------------------------ close

    @property
    def released(self) -> bool:
        """Whether the system has released the socket."""
        if self._transport is not None:
            return self._released.is_set()
        return self._opening is None or self._opening.done()

    def eof_received(self) -> bool:
        return False  # no protocol here uses half-closed streams: the transport closes the other half

    def connection_lost(self, exc: Exception | None) -> None:
        self._released.set()
        if self._abort is not None:
            self._abort.cancel()
        number = exc.errno if isinstance(exc, OSError) else None
        why = sockets.explain(exc) if isinstance(exc, OSError) else str(exc or "closed by the other side")
        self._end(f"{self._remote}: {why}", number)

    def _end(self, reason: str, number: int | None) -> None:
        if not self.closed:
            self.closed = True
            self._owner.lost(Closed(flow=self.flow, reason=reason, errno=number))

    def close(self) -> None:
        """Write the buffered data, then close. The machine receives no further input of the flow."""
        self.closed = True
        if self._transport is None:
            self._cancel()
        elif not self._transport.is_closing():  # in Python 3.11.2, abort() of TLS fails after a second close()
            self._transport.close()

    def close_in_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close, and discard the data that is still buffered after `close_timeout` seconds."""
        self.close()
        if self._transport is not None:
            self._abort = loop.call_later(self._owner.limits.close_timeout, self._transport.abort)

    @property
    def source(self) -> str:
        """The IPv4 address or IPv6 /64 of the other side if it connected to this one; else nothing."""
        return "" if self._listener is None else source_of(self._remote.host)

    def abort(self) -> None:
        """Close now and discard buffered data."""
        self.closed = True
        if self._transport is None:
            self._cancel()
        else:
            self._transport.abort()

    def _cancel(self) -> None:
        if self._opening is not None:
            self._opening.cancel()

    async def wait_closed(self) -> None:
        """Wait until the system has released the socket."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._transport is not None:
            await self._released.wait()


class ConnectedStream(Stream, asyncio.Protocol):
    """A stream that this side connects."""

    def connect(self, request: Open, tls: TlsContexts) -> None:
        """Start to connect; the result is `Opened` or `Closed`.

        Raises OSError if no socket can be made, and ConfigurationError if the request is invalid.
        """
        assert request.remote is not None
        self._remote = request.remote
        context = tls(request) if self._kind.secure else None
        sock = make_stream_socket(request, request.remote)
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(self._connect(loop, sock, request, context), name=f"open {self.flow}")

        def dispose(_: object) -> None:  # also if the task was canceled before its first step
            if not self._handed_over:
                sock.close()

        self._opening.add_done_callback(dispose)

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, request: Open, context: ssl.SSLContext | None
    ) -> None:
        remote, number, timeout = self._remote, None, self._owner.limits.connect_timeout
        name = request.server_name or remote.host
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, sockets.to_sockaddr(remote))
                self._handed_over = True
                server = {"server_hostname": name} if context is not None else {}
                await loop.create_connection(lambda: self, sock=sock, ssl=context, **cast("Any", server))
        except TimeoutError:
            reason, number = f"{remote} did not answer within {timeout:g} s", errno.ETIMEDOUT
        except ssl.SSLCertVerificationError as error:
            reason = f"{remote} has no certificate for {name} that is trusted here: {error.verify_message}"
        except ssl.SSLError as error:
            reason = f"TLS with {remote} failed: {error.reason or error}"
        except OSError as error:
            reason, number = f"{remote}: {sockets.explain(error)}", error.errno
        else:
            return
        self._end(reason, number)

    def data_received(self, data: bytes) -> None:
        self._take(bytes(data))


class AcceptedStream(Stream, asyncio.BufferedProtocol):
    """A stream that a listener accepted. Each turn of the event loop takes one share of its input."""

    def __init__(self, owner: StreamOwner, flow: Flow, kind: Transport, listener: Flow) -> None:
        super().__init__(owner, flow, kind, listener)
        self._turns = turns(asyncio.get_running_loop())
        self._last_turn = 0
        self._frames = FrameCounter()
        self._waiting = b""
        """Bytes that wait for a later turn; the transport does not read meanwhile."""
        self._paused = False

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the system's hint is more than a share
        return self._owner.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # a transport that has decrypted more data delivers it even while it is paused
        self._waiting += self._owner.buffer[:nbytes]
        if len(self._waiting) > nbytes:
            return
        if self._turns.take(self._last_turn):
            self.go_on()
        else:
            self._wait()

    def go_on(self) -> None:
        """Handle one share of the input; called once in a turn."""
        self._last_turn = self._turns.number
        data = self._waiting
        end = self._frames.portion(data, 0, READ_FRAMES)
        self._waiting = b""
        self._take(data[:end])
        if self.closed:
            return
        self._waiting = data[end:]
        if self._waiting:
            self._wait()
        elif self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _wait(self) -> None:
        self._turns.wait(self)
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()


class Listener:
    """A listening TCP or TLS socket; each accepted stream is a new flow."""

    def __init__(self, owner: StreamOwner, flow: Flow, kind: Transport, flow_ids: FlowIds) -> None:
        self.flow = flow
        self.closed = False
        self._owner = owner
        self._kind = kind
        self._flow_ids = flow_ids
        self._opening: asyncio.Task[None] | None = None
        self._connections: Handshakes | PlainConnections | None = None

    def listen(self, request: Open, tls: TlsContexts) -> None:
        """Start to listen; the result is `Opened`.

        Raises OSError if the socket cannot be bound, and ConfigurationError if the request is invalid.
        """
        context = tls(request) if self._kind.secure else None
        sock = make_stream_socket(request, None)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(self._listen(sock, context), name=f"listen {self.flow}")

    async def _listen(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        local = sockets.from_sockaddr(sock.getsockname())
        if self.closed:
            sock.close()
            return
        if context is not None:
            limits = self._owner.limits.handshakes
            self._connections = Handshakes(sock, context, self._accept, self._owner.tally, limits)
        else:
            self._connections = PlainConnections(sock, self._accept)
        self._owner.opened(Opened(flow=self.flow, local=local), self._kind)

    def _accept(self) -> AcceptedStream:
        return AcceptedStream(self._owner, self._flow_ids.new(), self._kind, self.flow)

    def send(self, output: Send) -> None:
        """Refuse the bytes: a listener sends nothing."""
        self._owner.take(SendFailed(flow=self.flow, remote=output.remote, errno=errno.ENOTCONN))

    @property
    def released(self) -> bool:
        """Whether the system has released the socket."""
        return self.closed and (self._opening is None or self._opening.done())

    def close(self) -> None:
        """Stop accepting. Accepted streams stay open."""
        self.closed = True
        if self._connections is not None:
            self._connections.close()

    def abort(self) -> None:
        self.close()

    async def wait_closed(self) -> None:
        """Wait until nothing listens, and for the end of all handshakes."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._connections is not None:
            await self._connections.wait_closed()


def make_stream_socket(request: Open, remote: Address | None) -> socket.socket:
    """Make a non-blocking TCP socket, bound as the request says."""
    where = remote or request.local
    if where is None:
        kind = request.transport.value
        raise ConfigurationError(f"a {kind} flow needs a remote to connect to, or a local address to listen on")
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        shared = remote is None or (
            request.local is not None and request.local.port
        )  # several streams may use one local port
        if shared and sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if request.interface:
            sockets.pin(sock, family, request.interface)
        if request.local is not None:
            sockets.bind(sock, request.local, request.ports)
    except BaseException:
        sock.close()
        raise
    return sock
