r"""Streams of a machine: TCP and TLS, connected or accepted, on asyncio's transports.

    CONNECTING ------> OPEN ------> CLOSED      Opened once, then StreamData, then Closed once
         \____________________________/         a failed Open is Closed alone

Who closes a flow hears nothing more of it. What is written waits in a buffer of bounded size: a `Send` that does not
fit is dropped whole and answered with `SendFailed` (ENOBUFS), so that messages stay framed and a slow reader cannot
take the memory of the process.
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

from . import sockets
from .handshakes import HandshakeLimits, Handshakes
from .packet_trace import PacketTrace
from .tally import Tally

BACKLOG: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Limits of a driver's TCP and TLS streams."""

    connect_timeout: float = 20.0
    """Seconds for a connection and its TLS handshake."""
    write_buffer: int = 1 << 20
    """Bytes that may wait to be written on a stream that this side connected."""
    accepted_write_buffer: int = 1 << 18
    """The same for an accepted stream: a server has thousands of them, and data that is relayed late is useless."""
    flush_timeout: float = 1.0
    """Seconds to write buffered data when the driver closes."""
    handshakes: HandshakeLimits = field(default_factory=HandshakeLimits)


STREAM_LIMITS: Final = StreamLimits()

TlsContexts = Callable[[Open], ssl.SSLContext]
"""Makes the TLS context of an `Open`: with a remote for a client, without one for a listener."""

Tls = ssl.SSLContext | TlsContexts
"""One context for all TLS flows, used as it is, or a function that makes the context of each."""


def system_tls(request: Open) -> ssl.SSLContext:
    """A client's context that trusts the system's certificate authorities. It has no certificate to listen with."""
    if request.remote is None:
        raise ConfigurationError("a TLS listener needs a certificate: give the driver `tls`, a maker of contexts")
    context = ssl.create_default_context()
    if request.alpn:
        context.set_alpn_protocols(list(request.alpn))
    return context


def tls_contexts(tls: Tls | None) -> TlsContexts:
    """Return the maker of contexts for `tls`; the default trusts the system's certificate authorities."""
    if tls is None:
        return system_tls
    if isinstance(tls, ssl.SSLContext):
        context = tls
        return lambda _: context
    return tls


class StreamOwner(Protocol):
    """What streams need from the hub."""

    trace: PacketTrace | None
    tally: Tally
    limits: StreamLimits

    def take(self, input: Input) -> None:
        """Something arrived or failed."""

    def opened(self, opened: Opened, transport: Transport) -> None:
        """The flow can be used."""

    def lost(self, closed: Closed) -> None:
        """The flow is gone."""

    def adopt(self, stream: Stream) -> None:
        """A stream was accepted: know it by its flow from now on."""


class Stream(asyncio.Protocol):
    """One TCP or TLS stream."""

    def __init__(self, owner: StreamOwner, flow: Flow, kind: Transport, listener: Flow | None = None) -> None:
        self.flow = flow
        self.closed = False
        self._owner = owner
        self._kind = kind
        self._listener = listener
        self._local = self._remote = Address("", 0)
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._handed_over = False  # the transport closes the socket

    # ------------------------------------------------------------------------------------------- open

    def connect(self, request: Open, tls: TlsContexts) -> None:
        """Begin to connect; the end of it is `Opened` or `Closed`.

        OSError when there cannot be a socket, ConfigurationError for what cannot be at all.
        """
        assert request.remote is not None
        self._remote = request.remote
        context = tls(request) if self._kind.secure else None
        sock = make_stream_socket(request, request.remote)
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(self._connect(loop, sock, request, context), name=f"open {self.flow}")

        def dispose(_: object) -> None:  # a task that is cancelled before its first step never runs at all
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed:
            self._transport.abort()
            return
        self._local = sockets.from_sockaddr(transport.get_extra_info("sockname"))
        self._remote = sockets.from_sockaddr(transport.get_extra_info("peername"))
        if self._listener is not None:
            self._owner.adopt(self)
        tls = transport.get_extra_info("ssl_object")
        alpn = tls.selected_alpn_protocol() if tls is not None else None
        opened = Opened(flow=self.flow, local=self._local, remote=self._remote, listener=self._listener, alpn=alpn)
        self._owner.opened(opened, self._kind)

    # ------------------------------------------------------------------------------------------- data

    def data_received(self, data: bytes) -> None:
        self._owner.tally.bytes_in += len(data)
        if self.closed:
            return
        if self._owner.trace is not None:
            self._owner.trace.received(self._remote, self._local, data, IpProtocol.TCP)
        self._owner.take(StreamData(self.flow, bytes(data)))

    def send(self, output: Send) -> None:
        """Write these bytes, all or none."""
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

    def _refuse(self, number: int) -> None:
        self._owner.tally.failed(number)
        self._owner.take(SendFailed(flow=self.flow, remote=self._remote, errno=number))

    # ------------------------------------------------------------------------------------------ close

    @property
    def gone(self) -> bool:
        """Whether the system has the socket back."""
        if self._transport is not None:
            return self._gone.is_set()
        return self._opening is None or self._opening.done()

    def eof_received(self) -> bool:
        return False  # a half-closed stream is of no use to any protocol here: close the other half too

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        number = exc.errno if isinstance(exc, OSError) else None
        why = sockets.explain(exc) if isinstance(exc, OSError) else str(exc or "closed by the other side")
        self._end(f"{self._remote}: {why}", number)

    def _end(self, reason: str, number: int | None) -> None:
        if not self.closed:
            self.closed = True
            self._owner.lost(Closed(flow=self.flow, reason=reason, errno=number))

    def close(self) -> None:
        """Write what waits, then close. Nothing is heard of the flow any more."""
        self.closed = True
        if self._transport is None:
            self._cancel()
        elif not self._transport.is_closing():  # Python 3.11.2's TLS cannot be aborted after it was closed twice
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever waits to be written."""
        self.closed = True
        if self._transport is None:
            self._cancel()
        else:
            self._transport.abort()

    def _cancel(self) -> None:
        if self._opening is not None:
            self._opening.cancel()

    async def wait_closed(self) -> None:
        """Until the system has the socket back."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._transport is not None:
            await self._gone.wait()


class Listener:
    """A listening TCP or TLS socket; each stream that it accepts is a flow of its own."""

    def __init__(self, owner: StreamOwner, flow: Flow, kind: Transport, flow_ids: FlowIds) -> None:
        self.flow = flow
        self.closed = False
        self._owner = owner
        self._kind = kind
        self._flow_ids = flow_ids
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._handshakes: Handshakes | None = None

    def listen(self, request: Open, tls: TlsContexts) -> None:
        """Begin to listen; the end of it is `Opened`.

        OSError when the socket cannot be bound, ConfigurationError for what cannot be at all.
        """
        context = tls(request) if self._kind.secure else None
        sock = make_stream_socket(request, None)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(self._listen(loop, sock, context), name=f"listen {self.flow}")

    async def _listen(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        local = sockets.from_sockaddr(sock.getsockname())
        if self.closed:
            sock.close()
            return
        if context is not None:
            self._handshakes = Handshakes(sock, context, self._accept, self._owner.tally, self._owner.limits.handshakes)
        else:
            self._server = server = await loop.create_server(self._accept, sock=sock, backlog=BACKLOG)
            if self._is_closed():
                server.close()
                return
        self._owner.opened(Opened(flow=self.flow, local=local), self._kind)

    def _is_closed(self) -> bool:
        return self.closed  # which a call of `close` may have set while the loop was waited for

    def _accept(self) -> Stream:
        return Stream(self._owner, self._flow_ids.new(), self._kind, self.flow)

    def send(self, output: Send) -> None:
        """Nothing can be sent on a listener."""
        self._owner.take(SendFailed(flow=self.flow, remote=output.remote, errno=errno.ENOTCONN))

    @property
    def gone(self) -> bool:
        """Whether the system has the socket back."""
        return self.closed and (self._opening is None or self._opening.done())

    def close(self) -> None:
        """Accept no more. Streams that were accepted live on."""
        self.closed = True
        if self._server is not None:
            self._server.close()
        if self._handshakes is not None:
            self._handshakes.close()

    def abort(self) -> None:
        self.close()

    async def wait_closed(self) -> None:
        """Until the listening task and every handshake are over."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._handshakes is not None:
            await self._handshakes.wait_closed()


def make_stream_socket(request: Open, remote: Address | None) -> socket.socket:
    """A non-blocking TCP socket, bound as the output asks."""
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
        shared = remote is None or (request.local is not None and request.local.port)  # streams may leave by one port
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
