"""The socket hub: the open UDP sockets, streams and listeners of a driver, by their flow.

The hub performs `Open`, `Close` and `Send`. The result of an `Open` is an input of the machine: `Opened`, or `Closed`
alone if the flow cannot be opened.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Closed, Input, Open, Opened, Send, SendFailed

from . import sockets
from .packet_trace import PacketTrace
from .tally import Tally
from .tcp import READ_BYTES, ConnectedStream, Listener, Stream, StreamLimits, TlsContexts
from .udp import Deliver, SendData, UdpEndpoint, UdpSocket

FlowSocket = UdpSocket | Stream | Listener


class HubOwner(Protocol):
    """The driver as its hub sees it."""

    flow_ids: FlowIds

    def take(self, input: Input) -> None:
        """Pass an input to the machine."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a coroutine as a task of the driver."""


_NO_BUFFER: Final = bytearray()


class Hub:
    """The sockets of one driver."""

    __slots__ = ("_closing", "_ip_fields", "_loop", "_owner", "_sockets", "_tls", "buffer", "limits", "tally", "trace")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: HubOwner,
        *,
        tls: TlsContexts,
        limits: StreamLimits,
        ip_fields: bool,
        trace: PacketTrace | None,
    ) -> None:
        self.trace = trace
        self.tally = Tally()
        self.limits = limits
        self.buffer = _NO_BUFFER  # most drivers accept no streams
        self._loop = loop
        self._owner = owner
        self._tls = tls
        self._ip_fields = ip_fields
        self._sockets: dict[Flow, FlowSocket] = {}
        self._closing: tuple[Stream | Listener, ...] = ()
        """Closed flows whose sockets the system has not released yet."""

    # ---------------------------------------------------------------------------------------- outputs

    def send(self, output: Send) -> None:
        """Send at once. If the system refuses the data, the machine receives `SendFailed`."""
        sock = self._sockets.get(output.flow)
        if sock is not None:
            sock.send(output)
            return
        self.tally.failed(errno.EBADF)
        self.take(SendFailed(flow=output.flow, remote=output.remote, errno=errno.EBADF))

    def open(self, output: Open) -> None:
        """Open a socket, stream or listener. An invalid `Open` is a ConfigurationError in addition to `Closed`."""
        try:
            if output.transport is Transport.UDP:
                self._open_udp(output)
            elif output.remote is not None:
                stream = ConnectedStream(self, output.flow, output.transport)
                self._sockets[output.flow] = stream
                stream.connect(output, self._tls)
            else:
                self.buffer = self.buffer or bytearray(READ_BYTES)
                listener = Listener(self, output.flow, output.transport, self._owner.flow_ids)
                self._sockets[output.flow] = listener
                listener.listen(output, self._tls)
        except OSError as error:
            reason = f"{output.remote or output.local}: {sockets.explain(error)}"
            self.lost(Closed(flow=output.flow, reason=reason, errno=error.errno))
        except ConfigurationError as error:
            self.lost(Closed(flow=output.flow, reason=str(error)))
            raise

    def _open_udp(self, output: Open) -> None:
        sock, note = sockets.open_udp(output)
        udp = UdpSocket(sock, output.flow, self)
        try:
            udp.watch(self._loop, ip_fields=self._ip_fields)
        except NotImplementedError:
            endpoint = UdpEndpoint(sock, output.flow, self)
            self._sockets[output.flow] = endpoint
            self._owner.start(self._attach(endpoint, note), f"open {output.flow}")
        else:
            self._sockets[output.flow] = udp
            self.opened(Opened(flow=udp.flow, local=udp.local, note=note), Transport.UDP)

    async def _attach(self, endpoint: UdpEndpoint, note: str) -> None:
        try:
            await endpoint.attach(self._loop)
        except OSError as error:
            endpoint.fail(error)
        else:
            if not endpoint.closed:
                self.opened(Opened(flow=endpoint.flow, local=endpoint.local, note=note), Transport.UDP)

    def close(self, flow: Flow) -> None:
        """Close a flow. A stream writes its buffered data first."""
        sock = self._sockets.pop(flow, None)
        if sock is None:
            return
        if isinstance(sock, UdpSocket):
            sock.close()
        else:
            self._closing = tuple(each for each in self._closing if not each.released)
            if not isinstance(sock, Stream):
                sock.close()
            elif self._too_many_are_closing(sock):
                sock.abort()
            else:
                sock.close_in_time(self._loop)
            self._closing += (sock,)
        if self.trace is not None:
            self.trace.closed(flow, "closed here")

    def _too_many_are_closing(self, stream: Stream) -> bool:
        """Whether other closed streams of this source, or of all sources, still write their buffered data."""
        if not stream.source or not stream.write_buffer:
            return False
        sources = [each.source for each in self._closing if isinstance(each, Stream) and each.write_buffer]
        limits = self.limits
        return len(sources) >= limits.closing or sources.count(stream.source) >= limits.closing_per_source

    # ----------------------------------------------------------------------- called by sockets and streams

    def take(self, input: Input) -> None:
        """Pass an input to the machine."""
        self._owner.take(input)

    def opened(self, opened: Opened, transport: Transport) -> None:
        """Report an open flow to the machine."""
        if self.trace is not None:
            self.trace.opened(opened.flow, transport, opened.local, opened.remote)
        self.take(opened)

    def accepted(self, stream: Stream) -> None:
        """Register a stream that a listener accepted."""
        self._sockets[stream.flow] = stream

    def lost(self, closed: Closed) -> None:
        """Remove a flow that closed by itself, and report it to the machine."""
        self._sockets.pop(closed.flow, None)
        if self.trace is not None:
            self.trace.closed(closed.flow, closed.reason)
        self.take(closed)

    # ------------------------------------------------------------------------------------------- data

    def accept(self, flow: Flow, remote: Address, deliver: Deliver) -> None:
        """Deliver data from `remote` to `deliver`. A flow that is closed already is ignored."""
        sock = self._sockets.get(flow)
        if isinstance(sock, UdpSocket):
            sock.accept(remote, deliver)

    def refuse(self, flow: Flow, remote: Address) -> None:
        """Deliver data from `remote` to the machine again."""
        sock = self._sockets.get(flow)
        if isinstance(sock, UdpSocket):
            sock.refuse(remote)

    def sender(self, flow: Flow, remote: Address) -> SendData:
        """Return a function that sends one datagram at once and returns whether the system took it."""
        sock = self._sockets.get(flow)
        return sock.sender(remote) if isinstance(sock, UdpSocket) else _refuse_data

    def writable(self, flow: Flow) -> bool:
        """Whether the socket of a flow accepts data now; true for a flow that is closed."""
        sock = self._sockets.get(flow)
        return sock.writable() if isinstance(sock, UdpSocket | Stream) else True

    def counters(self) -> dict[str, int]:
        """Return the counters of all flows, closed ones included."""
        tally = self.tally
        drops = [sock.kernel_drops() or 0 for sock in self._sockets.values() if isinstance(sock, UdpSocket)]
        return {
            "datagrams_in": tally.datagrams_in,
            "datagrams_out": tally.datagrams_out,
            "bytes_in": tally.bytes_in,
            "bytes_out": tally.bytes_out,
            "kernel_drops": tally.kernel_drops + sum(drops),
            "handshakes_refused": tally.handshakes_refused,
            "handshakes_failed": tally.handshakes_failed,
            **{f"send_failed_{name}": count for name, count in (tally.failures or {}).items()},
        }

    def receive_buffers(self) -> dict[Flow, int]:
        """Return the bytes of receive buffer that the system granted each open UDP flow."""
        return {flow: sock.receive_buffer() for flow, sock in self._sockets.items() if isinstance(sock, UdpSocket)}

    def write_buffers(self) -> dict[Flow, int]:
        """Return the bytes that wait to be written on each open stream."""
        return {flow: sock.write_buffer for flow, sock in self._sockets.items() if isinstance(sock, Stream)}

    def closing_streams(self) -> int:
        """Return the number of closed streams whose sockets the system has not released yet."""
        return sum(isinstance(each, Stream) and not each.released for each in self._closing)

    # ------------------------------------------------------------------------------------------ close

    def abort(self) -> None:
        """Close all flows and discard buffered data."""
        self._closing = tuple(self._shut())
        for each in self._closing:
            each.abort()

    async def aclose(self) -> None:
        """Close all flows; streams get `limits.flush_timeout` seconds to write. Canceling it discards their data."""
        closing = self._shut()
        if not closing:
            return
        waits = [self._loop.create_task(each.wait_closed()) for each in closing]
        try:
            for each in closing:
                each.close()
            await asyncio.wait(waits, timeout=self.limits.flush_timeout)
        finally:
            for each in closing:
                each.abort()
            await asyncio.wait(waits, timeout=self.limits.flush_timeout)

    def _shut(self) -> list[Stream | Listener]:
        """Close the UDP sockets; return the streams and listeners, whose closing takes time."""
        closing, self._closing = [each for each in self._closing if not each.released], ()
        for flow, sock in self._sockets.items():
            if isinstance(sock, UdpSocket):
                sock.close()
            else:
                closing.append(sock)
            if self.trace is not None:
                self.trace.closed(flow, "the driver was closed")
        self._sockets.clear()
        return closing


def _refuse_data(_: bytes) -> bool:
    return False
