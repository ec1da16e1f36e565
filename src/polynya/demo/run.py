"""The meeting: an embedded server here, two processes that find each other through it, and what came of it."""

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
from .records import Captured, Happened, Outcome, Progress, Record, Task
from .result import MeetingResult, PeerResult, count_data, judge
from .watch import PeerPicture

PEERS: Final = ("alice", "bob")
SERVER: Final = "server"
LOOPBACK: Final = ("127.0.0.1", "::1")

HOLD: Final = 50 * MILLISECOND
"""How long an event waits for earlier ones of the other process before it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingOptions:
    """What is to be done. Raises ConfigurationError for what cannot be."""

    messages: int = 20
    """That each side sends."""
    timeout: float = 10.0
    """Seconds for the peers to meet, connect and talk."""
    grace: float = 3.0
    """Seconds that their processes get besides: once to start, and once to leave before they are killed."""
    command: tuple[str, ...] = COMMAND
    """What starts a peer's process."""

    def __post_init__(self) -> None:
        if not 1 <= self.messages <= 1000:
            raise ConfigurationError(f"the peers exchange 1 to 1000 messages, not {self.messages}")
        if not 0 < self.timeout <= 600:
            raise ConfigurationError(f"a timeout is more than 0 and at most 600 seconds, not {self.timeout:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """The server accepts."""

    stun: tuple[str, ...]
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStarted:
    name: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChanged:
    """One event of a peer; the picture has it already. The events of both peers come in the order of time."""

    event: TraceEvent
    picture: PeerPicture


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTalked:
    """The counts of messages changed."""

    picture: PeerPicture


Notice = ServerReady | PeerStarted | PeerChanged | PeerTalked


def loopback_hosts() -> tuple[str, ...]:
    """The loopback addresses of this host that can be bound; ConfigurationError when there is none."""
    usable = []
    for host in LOOPBACK:
        with (
            suppress(OSError),
            socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s,
        ):
            s.bind((host, 0))
            usable.append(host)
    if not usable:
        raise ConfigurationError("this host has no loopback address; is the interface lo up?")
    return tuple(usable)


async def meet(
    options: MeetingOptions, tell: Callable[[Notice], None] = lambda _: None, recording: Recording | None = None
) -> MeetingResult:
    """Run the meeting to its end. Whatever happens, both processes are ended and the server is closed."""
    return await _Meeting(options, tell, recording or Recording()).run()


class _Meeting:
    def __init__(self, options: MeetingOptions, tell: Callable[[Notice], None], recording: Recording) -> None:
        self.options = options
        self.tell = tell
        self.recording = recording
        self.pictures = {name: PeerPicture(name) for name in PEERS}
        self.held: list[TraceEvent] = []

    async def run(self) -> MeetingResult:
        began = time.perf_counter()
        hosts = loopback_hosts()
        config = ServeConfig(listen=tuple(Address(host, 0) for host in hosts), http=(Address(hosts[0], 0),))
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(config, trace=Tracer(self.recording.event, SERVER)))
            stun, url = server.stun_addresses, server.url
            self._introduce(SERVER, "server", [str(each) for each in (*stun, *server.http_addresses)])
            self.tell(ServerReady(stun=server.stun_uris, url=url))
            telling = asyncio.create_task(self._tell_in_order(), name="events by time")
            stack.push_async_callback(_cancelled, telling)
            children = await self._run_peers(url, hosts)
        self._release(None)
        peers = self._results(children)
        packets = self.recording.packets()
        data, asked, through = count_data(packets, peers, (*stun, *server.http_addresses))
        faults = judge(peers, self.options.messages, self.recording.events())
        if through:
            faults.append(f"{through} datagrams of application data went to or came from the server")
        return MeetingResult(
            stun=tuple(str(each) for each in stun),
            url=url,
            peers=peers,
            messages=self.options.messages,
            seconds=time.perf_counter() - began,
            faults=tuple(faults),
            data_datagrams=data,
            server_datagrams=asked,
            server_data_datagrams=through,
        )

    async def _run_peers(self, url: str, hosts: tuple[str, ...]) -> list[Child]:
        room = f"demo {secrets.token_hex(8)}"
        options = self.options
        children = [
            Child(self._task(name, url, room, hosts), self._take, command=options.command, patience=options.grace)
            for name in PEERS
        ]
        try:
            for child in children:
                self._introduce(child.name, "peer", list(hosts))
                await child.start()
                self.tell(PeerStarted(name=child.name, pid=child.pid or 0))
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
            case Happened():
                event = record.event()
                if event.node != name:
                    raise DecodeError(f"{name} told an event of {event.node}")
                self.recording.event(event)
                self.held.append(event)
            case Captured():
                self.recording.packet(Instant(record.at), name, record.packet())
            case Progress():
                picture = self.pictures[name]
                picture.sent, picture.received = record.sent, record.received
                self.tell(PeerTalked(picture=picture))
            case Outcome():
                pass

    async def _tell_in_order(self) -> None:
        while True:
            await asyncio.sleep(HOLD / 1e9)
            self._release(Instant(clock.now() - HOLD))

    def _release(self, until: Instant | None) -> None:
        """Tell the events that nothing earlier can come before any more, in the order of time."""
        self.held.sort(key=lambda event: event.at)
        due = [event for event in self.held if until is None or event.at <= until]
        self.held = self.held[len(due) :]
        for event in due:
            picture = self.pictures[event.node]
            picture.see(event)
            self.tell(PeerChanged(event=event, picture=picture))

    def _results(self, children: list[Child]) -> tuple[PeerResult, PeerResult]:
        one, other = (
            PeerResult(
                name=child.name,
                pid=child.pid,
                exit_code=child.exit_code,
                outcome=child.ended.result() if child.ended.done() else None,
                times=self.pictures[child.name].times(),
                errors=child.errors.decode(errors="replace").strip(),
            )
            for child in children
        )
        return one, other


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
