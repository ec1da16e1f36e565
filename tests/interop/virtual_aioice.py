"""aioice in the virtual network: its own code, on a host of the lab, with an event loop that follows the virtual clock.

`VirtualLoop` is a machine: it turns the calls of asyncio that aioice uses into outputs, and inputs into their results.
So a run against the real aioice takes no real time. Only aioice's own random texts differ from run to run.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import SECOND, Instant, in_seconds, nanoseconds
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    IcmpError,
    Input,
    InterfacesChanged,
    Open,
    Opened,
    Output,
    Send,
    SendFailed,
    StreamData,
)
from polynya.lab import Host, Network

INSTALLED = Path(__file__).resolve().parent.parent.parent / ".peers" / "aioice" / "lib"
"""The environment that has aioice."""


def import_aioice() -> Any:
    """Import aioice from its own environment. Raises ImportError if it is not installed."""
    for packages in INSTALLED.glob("python*/site-packages"):
        if str(packages) not in sys.path:
            sys.path.append(str(packages))
    import aioice
    import aioice.ice

    return aioice


class _Selector:
    """Waits for nothing: inputs come from the virtual network."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class _Transport(asyncio.DatagramTransport, asyncio.Transport):
    """A UDP socket or a stream of the loop."""

    def __init__(self, loop: VirtualLoop, flow: Flow, protocol: Any, remote: Address | None, *, stream: bool) -> None:
        super().__init__()
        self.loop = loop
        self.flow = flow
        self.protocol = protocol
        self.remote = remote
        self.stream = stream
        self.local: Address | None = None
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        address = {"sockname": self.local, "peername": self.remote}.get(name)
        return default if address is None else tuple(address[:2])

    def sendto(self, data: Any, addr: Any = None) -> None:
        remote = self.remote if addr is None else Address(*addr[:2])
        if remote is not None and not self.closing:
            self.loop.made.append(Send(self.flow, remote, bytes(data)))

    def write(self, data: Any) -> None:
        self.sendto(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.transports.pop(self.flow, None)
            self.loop.made.append(Close(flow=self.flow))
            self.loop.call_soon(self.protocol.connection_lost, None)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose clock, sockets and streams are those of a host of the lab."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.made: list[Output] = []
        self.transports: dict[Flow, _Transport] = {}
        self._opening: dict[Flow, asyncio.Future[Address]] = {}
        self._selector = _Selector()
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    # ------------------------------------------------------------------------------------------- an asyncio event loop

    def time(self) -> float:
        return in_seconds(self.network.now)

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done

    async def create_datagram_endpoint(  # type: ignore[override]
        self, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        local = None if local_addr is None else Address(*local_addr[:2])
        return await self._open(protocol_factory, Transport.UDP, local, remote_addr)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        return await self._open(protocol_factory, Transport.TCP, None, (host, port))

    async def _open(self, factory: Any, transport: Transport, local: Address | None, remote_addr: Any) -> Any:
        flow = self.network.flow_ids.new()
        remote = None if remote_addr is None else Address(*remote_addr[:2])
        stream = transport is not Transport.UDP
        self._opening[flow] = self.create_future()
        self.made.append(Open(flow=flow, transport=transport, local=local, remote=remote if stream else None))
        opened = await self._opening[flow]
        protocol = factory()
        made = _Transport(self, flow, protocol, remote, stream=stream)
        made.local = opened
        self.transports[flow] = made
        protocol.connection_made(made)
        return made, protocol

    # --------------------------------------------------------------------------------------------------------- machine

    def start(self, coroutine: Coroutine[Any, Any, Any], *, now: Instant) -> asyncio.Task[Any]:
        task = self.create_task(coroutine)
        self._pump()
        return task

    def receive(self, input: Input, *, now: Instant) -> None:
        match input:
            case Opened():
                self._opening.pop(input.flow).set_result(input.local)
            case Closed() if input.flow in self._opening:
                self._opening.pop(input.flow).set_exception(OSError(input.errno, input.reason))
            case Closed():
                transport = self.transports.pop(input.flow, None)
                if transport is not None:
                    transport.closing = True
                    transport.protocol.connection_lost(None)
            case Datagram():
                if (transport := self.transports.get(input.flow)) is not None:
                    self.call_soon(transport.protocol.datagram_received, input.data, tuple(input.remote[:2]))
            case StreamData():
                if (transport := self.transports.get(input.flow)) is not None:
                    self.call_soon(transport.protocol.data_received, input.data)
            case SendFailed() | IcmpError() | InterfacesChanged():
                pass
        self._pump()

    def tick(self, *, now: Instant) -> None:
        self._pump()

    def _pump(self) -> None:
        """Run all callbacks that are due."""
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._ready or (self._scheduled and self._scheduled[0]._when <= self.time()):  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(running)

    def next_timer(self) -> Instant | None:
        due = [nanoseconds(handle._when) for handle in self._scheduled if not handle._cancelled]  # type: ignore[attr-defined]
        return Instant(max(min(due), self.network.now) + 1) if due else None

    def outputs(self) -> list[Output]:
        made, self.made = self.made, []
        return made

    def events(self) -> list[Any]:
        return []

    def finish(self, *, now: Instant) -> None:
        """Cancel the tasks that are left, and close the loop."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self._pump()
        self.close()


class Aioice:
    """An aioice connection on a host of the lab; it gathers, then signals everything in one text."""

    def __init__(self, network: Network, host: Host, *, controlling: bool, **options: Any) -> None:
        self.aioice = import_aioice()
        self.network = network
        self.host = host
        self.loop = VirtualLoop(network)
        self.process = host.run(self.loop)
        self.connected_at: Instant | None = None
        self.failed: str | None = None
        self.received: list[bytes] = []
        self.options = {"ice_controlling": controlling, "use_ipv6": False, **options}
        self.connection: Any = None

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.process.call(self.loop.start, coroutine)

    def gather(self, then: Any) -> None:
        """Gather; call `then` with the ufrag, the password and the candidate lines."""

        async def work() -> None:
            addresses = [host for interface in self.host.interfaces for host in interface.addresses if ":" not in host]
            self.aioice.ice.get_host_addresses = lambda **_: addresses
            self.connection = self.aioice.Connection(**self.options)
            await self.connection.gather_candidates()
            lines = [candidate.to_sdp() for candidate in self.connection.local_candidates]
            text = self.connection.local_username, self.connection.local_password, lines
            self.network.clock.after(0, then, *text)

        self._run(work())

    def meet(self, ufrag: str, password: str, lines: list[str]) -> None:
        """Connect to a peer with these credentials and candidates, which are all it has."""

        async def work() -> None:
            for line in lines:
                await self.connection.add_remote_candidate(self.aioice.Candidate.from_sdp(line))
            await self.connection.add_remote_candidate(None)
            self.connection.remote_username, self.connection.remote_password = ufrag, password
            try:
                await self.connection.connect()
            except ConnectionError as error:
                self.failed = str(error)
                return
            self.connected_at = self.network.now
            while True:
                try:
                    self.received.append(await self.connection.recv())
                except ConnectionError:
                    return

        self._run(work())

    def send(self, data: bytes) -> None:
        self._run(self.connection.send(data))

    def end(self) -> None:
        """Close the connection and the loop. Raises AssertionError if a callback of aioice failed."""
        self._run(self.connection.close())
        self.network.run_for(2 * SECOND)
        self.process.call(self.loop.finish)
        self.process.stop()
        assert self.loop.failures == []

    @property
    def pair(self) -> tuple[Address, Address] | None:
        """The local and the remote address of the pair in use, as aioice names them."""
        nominated = self.connection._nominated.get(1) if self.connection else None
        return None if nominated is None else (Address(*nominated.local_addr), Address(*nominated.remote_addr))
