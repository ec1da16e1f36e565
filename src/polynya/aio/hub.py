"""The socket hub: every flow of a driver by its id, be it a UDP socket, a stream or a listener.

It carries out `Open`, `Close` and `Send`, and says what became of each `Open`: `Opened`, or `Closed` alone.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any, Protocol

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Closed, Input, Open, Opened, Send, SendFailed

from . import sockets
from .packet_trace import PacketTrace
from .tally import Tally
from .tcp import Listener, Stream, StreamLimits, TlsContexts
from .udp import Deliver, SendData, UdpEndpoint, UdpSocket

Carrier = UdpSocket | Stream | Listener


class HubOwner(Protocol):
    """What a hub needs from its driver."""

    flow_ids: FlowIds

    def take(self, input: Input) -> None:
        """Something is for the machine."""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run what takes time."""


class Hub:
    """The sockets of one driver."""

    __slots__ = ("_carriers", "_ip_fields", "_leaving", "_loop", "_owner", "_tls", "limits", "tally", "trace")

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
        self._loop = loop
        self._owner = owner
        self._tls = tls
        self._ip_fields = ip_fields
        self._carriers: dict[Flow, Carrier] = {}
        self._leaving: tuple[Stream | Listener, ...] = ()

    def take(self, input: Input) -> None:
        """Something is for the machine."""
        self._owner.take(input)

    # ---------------------------------------------------------------------------------------- outputs

    def send(self, output: Send) -> None:
        """Send at once. What the system refuses comes back as an input."""
        carrier = self._carriers.get(output.flow)
        if carrier is not None:
            carrier.send(output)
            return
        self.tally.failed(errno.EBADF)
        self.take(SendFailed(flow=output.flow, remote=output.remote, errno=errno.EBADF))

    def open(self, output: Open) -> None:
        """Open what is asked for. ConfigurationError, besides `Closed`, for what this driver cannot open at all."""
        try:
            if output.transport is Transport.UDP:
                self._open_udp(output)
            elif output.remote is not None:
                stream = Stream(self, output.flow, output.transport)
                self._carriers[output.flow] = stream
                stream.connect(output, self._tls)
            else:
                listener = Listener(self, output.flow, output.transport, self._owner.flow_ids)
                self._carriers[output.flow] = listener
                listener.listen(output, self._tls)
        except OSError as error:
            reason = f"{output.remote or output.local}: {sockets.explain(error)}"
            self.lost(Closed(flow=output.flow, reason=reason, errno=error.errno))
        except ConfigurationError as error:
            self.lost(Closed(flow=output.flow, reason=str(error)))
            raise

    def _open_udp(self, output: Open) -> None:
        sock, note = sockets.open_udp(output)
        carrier = UdpSocket(sock, output.flow, self)
        try:
            carrier.watch(self._loop, ip_fields=self._ip_fields)
        except NotImplementedError:
            endpoint = UdpEndpoint(sock, output.flow, self)
            self._carriers[output.flow] = endpoint
            self._owner.start(self._attach(endpoint, note), f"open {output.flow}")
        else:
            self._carriers[output.flow] = carrier
            self.opened(Opened(flow=carrier.flow, local=carrier.local, note=note), Transport.UDP)

    async def _attach(self, endpoint: UdpEndpoint, note: str) -> None:
        try:
            await endpoint.attach(self._loop)
        except OSError as error:
            endpoint.give_up(error)
        else:
            if not endpoint.closed:
                self.opened(Opened(flow=endpoint.flow, local=endpoint.local, note=note), Transport.UDP)

    def close(self, flow: Flow) -> None:
        """Close a flow. Streams write what waits first."""
        carrier = self._carriers.pop(flow, None)
        if carrier is None:
            return
        carrier.close()
        if not isinstance(carrier, UdpSocket):
            self._leaving = (*(left for left in self._leaving if not left.gone), carrier)
        if self.trace is not None:
            self.trace.closed(flow, "closed here")

    # ---------------------------------------------------------------------- told by sockets and streams

    def opened(self, opened: Opened, transport: Transport) -> None:
        """A flow can be used."""
        if self.trace is not None:
            self.trace.opened(opened.flow, transport, opened.local, opened.remote)
        self.take(opened)

    def adopt(self, stream: Stream) -> None:
        """A stream was accepted: know it by its flow from now on."""
        self._carriers[stream.flow] = stream

    def lost(self, closed: Closed) -> None:
        """A flow is gone: forget it and tell the machine."""
        self._carriers.pop(closed.flow, None)
        if self.trace is not None:
            self.trace.closed(closed.flow, closed.reason)
        self.take(closed)

    # ------------------------------------------------------------------------------------------- data

    def accept(self, flow: Flow, remote: Address, deliver: Deliver) -> None:
        """Let data of `remote` go straight to `deliver`. A flow that is gone is no error: nothing comes from it."""
        carrier = self._carriers.get(flow)
        if isinstance(carrier, UdpSocket):
            carrier.accept(remote, deliver)

    def refuse(self, flow: Flow, remote: Address) -> None:
        """Let data of `remote` go to the machine again."""
        carrier = self._carriers.get(flow)
        if isinstance(carrier, UdpSocket):
            carrier.refuse(remote)

    def sender(self, flow: Flow, remote: Address) -> SendData:
        """A function that sends one datagram at once and says whether the system took it."""
        carrier = self._carriers.get(flow)
        return carrier.sender(remote) if isinstance(carrier, UdpSocket) else _nowhere

    def counters(self) -> dict[str, int]:
        """What was counted over all flows, those that are closed too."""
        tally = self.tally
        drops = [carrier.kernel_drops() or 0 for carrier in self._carriers.values() if isinstance(carrier, UdpSocket)]
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
        """Bytes of receive buffer that the system granted each open UDP flow."""
        return {
            flow: carrier.receive_buffer() for flow, carrier in self._carriers.items() if isinstance(carrier, UdpSocket)
        }

    def write_buffers(self) -> dict[Flow, int]:
        """Bytes that wait to be written on each open stream."""
        return {flow: carrier.write_buffer for flow, carrier in self._carriers.items() if isinstance(carrier, Stream)}

    # ------------------------------------------------------------------------------------------ close

    def abort(self) -> None:
        """Close all flows, whatever waits to be written."""
        self._leaving = tuple(self._shut())
        for carrier in self._leaving:
            carrier.abort()

    async def aclose(self) -> None:
        """Close all flows; streams get a second to write what waits. Safe to cancel: then they do not."""
        leaving = self._shut()
        if not leaving:
            return
        waits = [self._loop.create_task(carrier.wait_closed()) for carrier in leaving]
        try:
            for carrier in leaving:
                carrier.close()
            await asyncio.wait(waits, timeout=self.limits.flush_timeout)
        finally:
            for carrier in leaving:
                carrier.abort()
            await asyncio.wait(waits, timeout=self.limits.flush_timeout)

    def _shut(self) -> list[Stream | Listener]:
        """Close what can be closed at once; what may need time is returned."""
        leaving, self._leaving = [left for left in self._leaving if not left.gone], ()
        for flow, carrier in self._carriers.items():
            if isinstance(carrier, UdpSocket):
                carrier.close()
            else:
                leaving.append(carrier)
            if self.trace is not None:
                self.trace.closed(flow, "the driver was closed")
        self._carriers.clear()
        return leaving


def _nowhere(_: bytes) -> bool:
    return False
