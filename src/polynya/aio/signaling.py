"""The signaling client: a member of a room of `polynya serve`, over a WebSocket.

    async with polynya.Signaling("http://signal.example.org", "kitchen") as room:
        async for message in room:
            match message:
                case RemoteDescription(peer=peer, description=description): ...

The WebSocket is made again when it breaks, for up to a minute, and the member keeps its id and its place. Needs the
extra `polynya[signaling]`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from random import SystemRandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from polynya.core.addresses import scope
from polynya.core.errors import ConfigurationError, DecodeError, SignalingError, UsageError
from polynya.core.instants import MILLISECOND, SECOND, nanoseconds
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.signaling import messages
from polynya.signaling.client import (
    BodyReceived,
    ClientEvent,
    ClientState,
    Ended,
    Entered,
    Interrupted,
    Patience,
    PeerJoined,
    PeerLeft,
    RoomClient,
)
from polynya.signaling.links import CloseLink, LinkClosed, LinkOutput, OpenLink, SendText
from polynya.signaling.messages import IceServer as OfferedServer

from . import clock
from .connection import Connection
from .servers import IceServer, usable
from .waiting import Waiting
from .websocket import Link, websocket_url

if TYPE_CHECKING:
    from .meeting import Meeting

LEAVE_TIMEOUT: Final = 1.0
"""Seconds that the server gets to take the goodbye."""

WAITING_LIMIT: Final = 256
"""Messages that wait to be sent before `send_description` and `send_candidate` wait too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Another member came."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Another member is gone for good."""

    peer: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteDescription:
    """Another member described itself: for `Agent.set_remote`."""

    peer: str
    description: Description


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCandidate:
    """Another member's candidate, or None when it has told all: for `Agent.add_candidate`."""

    peer: str
    candidate: Candidate | None


Message = Joined | Left | RemoteDescription | RemoteCandidate


class Signaling(Waiting):
    """One member of one room: `async with Signaling(url, room) as room`.

    `url` is the server's, http or https. Entering raises SignalingError when it cannot be reached within `timeout`
    seconds or refuses. `limit` is the most members that the room may have, if it is more than the server's own limit
    that one holds. `reconnect` is for how many seconds a broken connection is tried again; 0 for never.

    Iterating gives what happens from entering on; who was there before is in `peers`. It ends when the room is left,
    and raises SignalingError when the server is lost for good.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        limit: int | None = None,
        timeout: float = 10.0,
        reconnect: float = 60.0,
        trace: Tracer = NO_TRACE,
    ) -> None:
        super().__init__()
        self.url = url
        self.room = room
        self.loopback = False
        """Whether the server is on this host, reached by its loopback address."""
        self._target = websocket_url(url)
        if not 1 <= len(room) <= 128 or any(ord(each) < 32 or ord(each) == 127 for each in room):
            raise ConfigurationError(f"a room's name has 1 to 128 characters and no control characters, not {room!r}")
        if limit is not None and limit < 2:
            raise ConfigurationError(f"a room for {limit} has no use: the limit is at least 2")
        patience = Patience(join=nanoseconds(timeout), give_up=nanoseconds(reconnect))
        self._timeout = timeout
        self._machine = RoomClient(room, random=SystemRandom(), limit=limit, patience=patience, trace=trace)
        self._counters: Counter[str] = Counter()
        self._messages: deque[Message] = deque()
        self._generations: dict[str, int] = {}
        self._links: dict[int, Link] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._entered = False
        self._end: Ended | None = None

    # ------------------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> Signaling:
        self._call(self._machine.start)
        try:
            while not self._entered:
                self._raise_if_ended()
                await self._changed()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the room and close the connection. Safe to call twice."""
        if self._machine.state is not ClientState.IDLE:
            self._call(self._machine.leave)
        if self._timer is not None:
            self._timer.cancel()
        links = list(self._links.values())
        try:
            for link in links:
                await link.finished(LEAVE_TIMEOUT)
        finally:
            for link in links:
                link.cancel()
        self._wake()

    # -------------------------------------------------------------------------------------------------- who is here

    @property
    def peer_id(self) -> str:
        """This member's id. It changes only when the server forgot this member while it could not be reached."""
        self._check_entered()
        return self._machine.peer_id

    @property
    def peers(self) -> tuple[str, ...]:
        """The ids of the others, in the order of their coming."""
        return self._machine.peers

    @property
    def stun_servers(self) -> tuple[str, ...]:
        """URIs of the STUN servers that the signaling server offers: for `Agent(servers=...)`."""
        return tuple(each.uri for each in self.servers if each.uri.startswith("stun"))

    @property
    def servers(self) -> tuple[IceServer, ...]:
        """All STUN and TURN servers that it offers, with credentials: for `Agent(servers=...)`."""
        offered = self._machine.servers
        return tuple(each for one in offered for each in usable(one.uris, one.username, one.credential))

    @property
    def ice_servers(self) -> tuple[OfferedServer, ...]:
        """What it offers as it says it, with the lifetime of credentials."""
        return self._machine.servers

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped because it could not be understood or came too late."""
        return {**self._machine.counters, **self._counters}

    def controls(self, peer: str) -> bool:
        """Whether this side has the controlling role towards a peer: the larger id has."""
        return self._machine.controls(peer)

    # -------------------------------------------------------------------------------------------------------- saying

    async def send_description(self, peer: str, description: Description) -> None:
        """Tell a peer about this side's agent. Waits only while much else waits to be sent.

        Raises SignalingError when the server is lost for good. What is for a peer that left is dropped.
        """
        pacing = description.pacing
        body = messages.Description(
            ufrag=description.ufrag,
            pwd=description.password,
            options=description.options,
            lite=description.lite,
            pacing=None if pacing is None else -(-nanoseconds(pacing) // MILLISECOND),
            generation=description.generation,
        )
        self._generations[peer] = description.generation
        await self._send(peer, body)

    async def send_candidate(self, peer: str, candidate: Candidate | None) -> None:
        """Tell a peer a candidate of this side, or None when it has been told all."""
        if candidate is None:
            body = messages.Candidate(candidate=None, generation=self._generations.get(peer, 0))
        else:
            body = messages.Candidate(candidate=str(candidate), generation=candidate.generation)
        await self._send(peer, body)

    async def _send(self, peer: str, body: messages.Body) -> None:
        self._check_entered()
        self._raise_if_ended()
        while self._machine.waiting >= WAITING_LIMIT:
            await self._changed()
            self._raise_if_ended()
        self._call(self._machine.send, peer, body)

    # ------------------------------------------------------------------------------------------------------- hearing

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._check_entered()
        while not self._messages:
            if self._end is not None and self._end.code == "left":
                raise StopAsyncIteration
            self._raise_if_ended()
            await self._changed()
        return self._messages.popleft()

    def _on_event(self, event: ClientEvent) -> None:
        match event:
            case Entered():
                if self._entered and not event.resumed:
                    self._messages.extend(Joined(peer=peer) for peer in event.peers)
                self._entered = True
            case PeerJoined():
                self._messages.append(Joined(peer=event.peer))
            case PeerLeft():
                self._generations.pop(event.peer, None)
                self._messages.append(Left(peer=event.peer, reason=event.reason))
            case BodyReceived():
                self._received(event.peer, event.body)
            case Ended():
                self._end = event
            case Interrupted():
                self._counters["interrupted"] += 1
            case _:
                self._counters[f"refused-{event.code}"] += 1

    def _received(self, peer: str, body: messages.Body) -> None:
        try:
            if isinstance(body, messages.Description):
                self._messages.append(RemoteDescription(peer=peer, description=_description(body)))
            else:
                self._messages.append(RemoteCandidate(peer=peer, candidate=_candidate(body)))
        except DecodeError:
            self._counters["dropped-bad-body"] += 1

    # ------------------------------------------------------------------------------------------------------- machine

    def _call(self, method: Callable[..., None], *args: object) -> None:
        """One step: call the machine, carry out what it wants, and set the timer."""
        method(*args, now=clock.now())
        for output in self._machine.outputs():
            self._perform(output)
        for event in self._machine.events():
            self._on_event(event)
        self._set_timer()
        self._wake()

    def _perform(self, output: LinkOutput) -> None:
        if isinstance(output, OpenLink):
            self._links[output.link] = Link(output.link, self._target, self._timeout, self._take)
        elif (link := self._links.get(output.link)) is None:
            return
        elif isinstance(output, SendText):
            link.send(output.text)
        elif isinstance(output, CloseLink):
            link.close(output.code)

    def _take(self, input: Any) -> None:
        if isinstance(input, LinkClosed):
            self._links.pop(input.link, None)
        elif (link := self._links.get(input.link)) is not None and link.remote:
            self.loopback = scope(link.remote) == "loopback"
        self._call(self._machine.receive, input)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.next_timer()
        if due is not None:
            delay = max(0, due - clock.now()) / SECOND
            self._timer = asyncio.get_running_loop().call_later(delay, self._call, self._machine.tick)

    # ------------------------------------------------------------------------------------------------------- waiting

    def _check_entered(self) -> None:
        if not self._entered:
            self._raise_if_ended()
            raise UsageError("the room has not been entered: use `async with Signaling(url, room) as room`")

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise SignalingError(f"{self.url}, room {self.room!r}: {self._end.reason}")


async def ask_servers(url: str) -> tuple[tuple[IceServer, ...], bool]:
    """The servers that a signaling server offers, and whether it is on this host. Raises SignalingError."""
    # a room of our own, for a moment: a server tells its members
    async with Signaling(url, f"servers {uuid4()}", reconnect=0) as room:
        return room.servers, room.loopback


async def connect_room(
    url: str,
    room: str,
    *,
    timeout: float | None = None,
    servers: Iterable[str | IceServer] = (),
    loopback: bool | None = None,
    **options: Any,
) -> Connection:
    """Meet the first other member of a room and connect with it; closing the connection leaves the room.

        async with await polynya.connect_room("http://signal.example.org", "kitchen") as connection:
            connection.send(b"hello")

    The room is for two. Signaling stays beside the connection: when `connection.agent` restarts, or follows a change of
    the network (`interfaces_changed`), the other side is told.

    `timeout` is in seconds, for the other side to come and the connection to stand. The STUN and TURN servers that the
    signaling server tells are used besides `servers`; `loopback` left out means: when the signaling server is on this
    host. The other options are `Agent`'s. Raises ConfigurationError, SignalingError or ConnectError, with nothing left
    open.
    """
    from .meeting import Meeting  # noqa: PLC0415 - it needs this module

    meeting = Meeting(url, room, servers=servers, loopback=loopback, **options)
    try:
        await meeting.__aenter__()
        connection = await meeting.connect(timeout)
    except BaseException:
        await meeting.close()
        raise
    connection.owner = _Guest(meeting)
    return connection


class _Guest:
    """The owner of a connection that came about in a room: leaves the room with it."""

    __slots__ = ("_meeting",)

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    async def connection_closed(self) -> None:
        await self._meeting.close()  # which closes the agent too


def _description(body: messages.Description) -> Description:
    return Description(
        ufrag=body.ufrag,
        password=body.pwd,
        options=body.options,
        lite=body.lite,
        pacing=None if body.pacing is None else body.pacing / 1000,
        generation=body.generation,
    )


def _candidate(body: messages.Candidate) -> Candidate | None:
    if body.candidate is None:
        return None
    return replace(Candidate.parse(body.candidate), generation=body.generation)
