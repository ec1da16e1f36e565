"""The meeting: an embedded server, two child processes that connect through it, and the result."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from polynya.aio import clock
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.trace import TraceEvent, Tracer
from polynya.serve import ServeConfig, Server

from .children import COMMAND, Child
from .recording import Recording
from .records import Outcome, PacketRecord, Progress, Record, Task, TraceRecord
from .result import MeetingResult, PeerResult, count_data, judge
from .watch import PeerView

PEERS: Final = ("alice", "bob")
SERVER: Final = "server"
LOOPBACK: Final = ("127.0.0.1", "::1")

HOLD: Final = 50 * MILLISECOND
"""Nanoseconds that an event waits for earlier events of the other process before it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingOptions:
    """Options of a meeting. Raises ConfigurationError for a value out of range."""

    messages: int = 20
    """Messages that each peer sends."""
    timeout: float = 10.0
    """Seconds for the peers to connect and exchange the messages."""
    grace: float = 10.0
    """Additional seconds for each process to start, and again to exit before it is killed."""
    command: tuple[str, ...] = COMMAND
    """The command that starts a peer."""
    loopback: tuple[str, ...] = LOOPBACK
    """The loopback addresses to use, as far as they can be bound."""

    def __post_init__(self) -> None:
        if not 1 <= self.messages <= 1000:
            raise ConfigurationError(f"messages must be within 1..1000, not {self.messages}")
        if not 0 < self.timeout <= 600:
            raise ConfigurationError(f"timeout must be more than 0 and at most 600 seconds, not {self.timeout:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """The server is ready."""

    stun: tuple[str, ...]
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStarted:
    """The process of a peer has started."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChanged:
    """A trace event of a peer, already applied to `view`. The events of both peers are in the order of time."""

    event: TraceEvent
    view: PeerView


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTalked:
    """The message counts of a peer changed."""

    view: PeerView


Notice = ServerReady | PeerStarted | PeerChanged | PeerTalked


def usable_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses that can be bound. Raises ConfigurationError if there are none."""
    usable = []
    for host in hosts:
        with (
            suppress(OSError),
            socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s,
        ):
            s.bind((host, 0))
            usable.append(host)
    if not usable:
        raise ConfigurationError("this host has no loopback address: set the interface lo up")
    return tuple(usable)


async def meet(
    options: MeetingOptions, notify: Callable[[Notice], None] = lambda _: None, recording: Recording | None = None
) -> MeetingResult:
    """Run a meeting. Both processes are ended and the server is closed even if it fails."""
    return await _Meeting(options, notify, recording or Recording()).run()


class _Meeting:
    def __init__(self, options: MeetingOptions, notify: Callable[[Notice], None], recording: Recording) -> None:
        self.options = options
        self.notify = notify
        self.recording = recording
        self.views = {name: PeerView(name) for name in PEERS}
        self.held: list[TraceEvent] = []

    async def run(self) -> MeetingResult:
        began = time.perf_counter()
        hosts = usable_hosts(self.options.loopback)
        config = ServeConfig(listen=tuple(Address(host, 0) for host in hosts), http=(Address(hosts[0], 0),))
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(config, trace=Tracer(self.recording.event, SERVER)))
            stun, url = server.stun_addresses, server.url
            self._introduce(SERVER, "server", [str(each) for each in (*stun, *server.http_addresses)])
            self.notify(ServerReady(stun=server.stun_uris, url=url))
            notifying = asyncio.create_task(self._notify_in_order(), name="events by time")
            stack.push_async_callback(_cancelled, notifying)
            children = await self._run_peers(url, hosts)
        self._release(None)
        peers = self._results(children)
        packets = self.recording.packets()
        data, with_server, through = count_data(packets, peers, (*stun, *server.http_addresses))
        faults = judge(peers, self.options.messages, self.recording.events())
        if through:
            faults.append(f"{through} datagrams of application data were sent to or by the server")
        return MeetingResult(
            stun=tuple(str(each) for each in stun),
            url=url,
            peers=peers,
            messages=self.options.messages,
            seconds=time.perf_counter() - began,
            faults=tuple(faults),
            data_datagrams=data,
            server_datagrams=with_server,
            server_data_datagrams=through,
        )

    async def _run_peers(self, url: str, hosts: tuple[str, ...]) -> list[Child]:
        room = f"demo {secrets.token_hex(8)}"
        options = self.options
        children = [
            Child(self._task(name, url, room, hosts), self._take, command=options.command, grace=options.grace)
            for name in PEERS
        ]
        try:
            for child in children:
                self._introduce(child.name, "peer", list(hosts))
                await child.start()
                self.notify(PeerStarted(name=child.name, pid=child.pid or 0))
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.timeout + self.options.grace):
                    await asyncio.gather(*(asyncio.shield(child.ended) for child in children))
        finally:
            await asyncio.gather(*(child.stop() for child in children))
        return children

    def _task(self, name: str, url: str, room: str, hosts: tuple[str, ...]) -> Task:
        return Task(
            name=name,
            other=next(each for each in PEERS if each != name),
            url=url,
            room=room,
            messages=self.options.messages,
            timeout=self.options.timeout,
            families=[6 if ":" in host else 4 for host in hosts],
        )

    def _introduce(self, node: str, role: str, addresses: list[str]) -> None:
        self.recording.event(
            TraceEvent(clock.now(), node, "demo", "node", fields={"role": role, "addresses": list(addresses)})
        )

    # ------------------------------------------------------------------------------------------------------- records

    def _take(self, name: str, record: Record) -> None:
        match record:
            case TraceRecord():
                event = record.event()
                if event.node != name:
                    raise DecodeError(f"{name} wrote a trace event of another node: {event.node}")
                self.recording.event(event)
                self.held.append(event)
            case PacketRecord():
                self.recording.packet(Instant(record.at), name, record.packet())
            case Progress():
                view = self.views[name]
                view.sent, view.received = record.sent, record.received
                self.notify(PeerTalked(view=view))
            case Outcome():
                pass

    async def _notify_in_order(self) -> None:
        while True:
            await asyncio.sleep(HOLD / 1e9)
            self._release(Instant(clock.now() - HOLD))

    def _release(self, until: Instant | None) -> None:
        """Notify of the events up to `until`, in the order of time; None releases all."""
        self.held.sort(key=lambda event: event.at)
        due = [event for event in self.held if until is None or event.at <= until]
        self.held = self.held[len(due) :]
        for event in due:
            view = self.views[event.node]
            view.apply(event)
            self.notify(PeerChanged(event=event, view=view))

    def _results(self, children: list[Child]) -> tuple[PeerResult, PeerResult]:
        one, other = (
            PeerResult(
                name=child.name,
                pid=child.pid,
                exit_code=child.exit_code,
                outcome=child.ended.result() if child.ended.done() else None,
                times=self.views[child.name].times(),
                errors=child.errors.decode(errors="replace").strip(),
            )
            for child in children
        )
        return one, other


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
