"""The signaling client: a member of a room of `polynya serve`, over a WebSocket.

    async with polynya.Signaling("http://signal.example.org", "kitchen") as room:
        async for message in room:
            match message:
                case polynya.RemoteDescription(peer=peer, description=description): ...

A broken WebSocket is opened again, for up to a minute; the member keeps its id and its place. Needs the extra
`polynya[signaling]`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from random import SystemRandom
from types import TracebackType
from typing import Any, Final, NamedTuple

from polynya.core.arguments import flag, instance, number, secret, shown, text
from polynya.core.errors import ConfigurationError, DecodeError, SignalingError, UsageError
from polynya.core.instants import MILLISECOND, duration, nanoseconds
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.signaling import messages
from polynya.signaling.client import (
    BodyReceived,
    ClientEvent,
    ClientState,
    ClientTimeouts,
    Ended,
    Entered,
    Interrupted,
    PeerAway,
    PeerJoined,
    PeerLeft,
    PeerResumed,
    RoomClient,
    ServersReceived,
    ServersRefused,
)
from polynya.signaling.messages import IceServer as ListedServer
from polynya.signaling.servers import ServerListClient

from .interface_watch import HostChange, InterfaceWatch, follow_host
from .servers import IceServer, usable
from .waiting import Waiting
from .websocket import WebSockets, websocket_url

LEAVE_TIMEOUT: Final = 1.0
"""Seconds to wait for the server's close after the client has left."""

VARIABLE: Final = "POLYNYA_TOKEN"
"""Environment variable with the room token."""

QUEUE_LENGTH: Final = 256
"""Queued messages from which on `send_description` and `send_candidate` wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Another member joined the room."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Another member left the room for good."""

    peer: str
    reason: str = ""
    clean: bool = False
    """Whether it left by itself. Then it has closed its connections, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """The connection of another member to the server broke: it may resume, or its host or program may be gone."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteDescription:
    """The ICE description of another member's agent, for `Agent.set_remote`."""

    peer: str
    description: Description


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCandidate:
    """A candidate of another member's agent, or None for the end of candidates, for `Agent.add_candidate`."""

    peer: str
    candidate: Candidate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The way to another member was interrupted, here or there, and is whole again.

    Messages that were sent just before, in either direction, may be lost: send the description and the candidates of
    this side's agent again. The other side gets this message as well and does the same. Known ones change nothing.
    """

    peer: str


Message = Joined | Resumed | Left | Away | RemoteDescription | RemoteCandidate


class Signaling(Waiting):
    """A member of a room of a signaling server: `async with Signaling(url, room) as room`.

    - `url`: the server, http or https.
    - `limit`: the most members that the room may have, up to the server's own limit.
    - `timeout`: seconds for the server to answer.
    - `token`: the room token of the server's operator, if it needs one; by default POLYNYA_TOKEN of the environment.
    - `reconnect`: seconds in which a broken connection is opened again; 0 for never.
    - `follow_host`: whether a change of this host's addresses opens a new connection at once, if the old one has lost
      its address.

    Entering raises SignalingError if the server cannot be reached or refuses. Iteration yields `Joined`, `Resumed`,
    `Left`, `Away`, `RemoteDescription` and `RemoteCandidate` from then on; `peers` lists the members that were there
    before. Iteration ends when this member leaves, and raises SignalingError when the server is lost for good.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        limit: int | None = None,
        token: str | None = None,
        timeout: float = 10.0,
        reconnect: float = 60.0,
        follow_host: bool = True,
        trace: Tracer = NO_TRACE,
    ) -> None:
        super().__init__()
        text("the URL", url)
        text("the room", room)
        self.url = url
        self.room = room
        if not 1 <= len(room) <= 128 or any(ord(each) < 32 or ord(each) == 127 for each in room):
            raise ConfigurationError(
                f"a room's name must have 1 to 128 characters and no control characters, not {shown(room)}"
            )
        if limit is not None:
            number("the limit of a room", limit, 2, sys.maxsize)
        instance("trace", trace, Tracer, hint="write trace=polynya.Tracer(polynya.TraceWriter(file))")
        timeouts = ClientTimeouts(
            answer=duration("timeout", timeout, above_zero=True), give_up=duration("reconnect", reconnect)
        )
        self._machine = RoomClient(
            room, random=SystemRandom(), limit=limit, token=room_token(token), timeouts=timeouts, trace=trace
        )
        self._websockets = WebSockets(self._machine, websocket_url(url), timeout=timeout, on_step=self._on_step)
        self._follows_host = flag("follow_host", follow_host)
        self._watch: InterfaceWatch | None = None
        self._counters: Counter[str] = Counter()
        self._messages: deque[Message] = deque()
        self._generations: dict[str, int] = {}
        """Generation of the last description that was sent to each peer."""
        self._entered = False
        self._lists_received = 0
        self._no_relay = ""
        self._refusal: ServersRefused | None = None
        self._end: Ended | None = None

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def __aenter__(self) -> Signaling:
        self._websockets.call(self._machine.start)
        if self._follows_host:
            self._watch = follow_host(self)
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

    def _leave(self) -> None:
        """Leave the room: the message is sent at once, and `close` waits until it is."""
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None
        if self._machine.state is not ClientState.IDLE:
            self._websockets.call(self._machine.leave)

    async def close(self) -> None:
        """Leave the room and close the connection. Safe to call twice."""
        self._leave()
        try:
            await self._websockets.aclose(LEAVE_TIMEOUT)
        finally:
            self._wake()

    def _host_changed(self, change: HostChange) -> None:
        """Called by the watch of this host's interfaces."""
        hosts = {address.host for interface in change.interfaces for address in interface.addresses}
        self._websockets.network_changed(hosts)

    # --------------------------------------------------------------------------------------------------------- the room

    @property
    def peer_id(self) -> str:
        """This member's id. It changes only if the server removes this member during a broken connection."""
        self._check_entered()
        return self._machine.peer_id

    @property
    def peers(self) -> tuple[str, ...]:
        """Ids of the other members, in the order in which they joined."""
        return self._machine.peers

    @property
    def loopback(self) -> bool:
        """Whether the server was reached by its loopback address, and so runs on this host."""
        return self._websockets.loopback

    @property
    def stun_servers(self) -> tuple[str, ...]:
        """URIs of the STUN servers in the server list, for `Agent(servers=...)`."""
        return tuple(each.uri for each in self.servers if each.uri.startswith("stun"))

    @property
    def servers(self) -> tuple[IceServer, ...]:
        """All STUN and TURN servers in the server list, with credentials, for `Agent(servers=...)`."""
        return _usable(self._machine.servers)

    async def refresh_servers(self) -> tuple[IceServer, ...]:
        """Request a new server list, with new TURN credentials, and return it as `servers`.

        Raises SignalingError if the server refuses, because of too many requests for example, or is lost for good.
        """
        self._check_entered()
        self._raise_if_ended()
        received, self._refusal = self._lists_received, None
        self._websockets.call(self._machine.request_servers)
        while self._lists_received == received:
            self._raise_if_ended()
            if self._refusal is not None:
                raise SignalingError(f"{self.url} sent no server list: {self._refusal.reason}")
            await self._changed()
        return self.servers

    @property
    def counters(self) -> dict[str, int]:
        """Messages that were dropped or refused, and interruptions, by reason."""
        return {**self._machine.counters, **self._counters}

    def controls(self, peer: str) -> bool:
        """Whether this side has the controlling role: the member with the larger id has it."""
        return self._machine.controls(text("the peer", peer, error=UsageError))

    # ---------------------------------------------------------------------------------------------------------- sending

    async def send_description(self, peer: str, description: Description) -> None:
        """Send the description of this side's agent to a peer. Waits only while many messages are queued.

        Raises SignalingError when the server is lost for good. A message for a peer that has left is dropped.
        """
        text("the peer", peer, error=UsageError)
        instance("description", description, Description, error=UsageError)
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
        """Send a candidate of this side to a peer, or None for the end of candidates."""
        text("the peer", peer, error=UsageError)
        if candidate is not None:
            instance("candidate", candidate, Candidate, hint="write Candidate.parse(line)", error=UsageError)
        if candidate is None:
            body = messages.Candidate(candidate=None, generation=self._generations.get(peer, 0))
        else:
            body = messages.Candidate(candidate=str(candidate), generation=candidate.generation)
        await self._send(peer, body)

    async def _send(self, peer: str, body: messages.Body) -> None:
        self._check_entered()
        self._raise_if_ended()
        while self._machine.queued >= QUEUE_LENGTH:
            await self._changed()
            self._raise_if_ended()
        self._websockets.call(self._machine.send, peer, body)

    # -------------------------------------------------------------------------------------------------------- receiving

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

    def _on_step(self, events: list[Any]) -> None:
        for event in events:
            self._on_event(event)
        self._wake()

    def _on_event(self, event: ClientEvent) -> None:
        match event:
            case Entered():
                if self._entered and not event.resumed:
                    self._messages.extend(Joined(peer=peer) for peer in event.peers)
                self._entered = True
                self._no_relay = event.no_relay
            case PeerJoined():
                self._messages.append(Joined(peer=event.peer))
            case PeerResumed():
                self._messages.append(Resumed(peer=event.peer))
            case PeerAway():
                self._messages.append(Away(peer=event.peer))
            case PeerLeft():
                self._generations.pop(event.peer, None)
                self._messages.append(Left(peer=event.peer, reason=event.reason, clean=event.clean))
            case BodyReceived():
                self._received(event.peer, event.body)
            case ServersReceived():
                self._lists_received += 1
            case ServersRefused():
                self._refusal = event
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

    # ------------------------------------------------------------------------------------------------------------ state

    @property
    def no_relay(self) -> str:
        """The reason why the server list has no TURN server, as the server puts it; empty if it has one."""
        return self._no_relay

    def _check_entered(self) -> None:
        if not self._entered:
            self._raise_if_ended()
            raise UsageError("the room has not been entered: use `async with Signaling(url, room) as room`")

    def _raise_if_ended(self) -> None:
        if self._end is not None:
            raise SignalingError(f"{self.url}, room {self.room!r}: {self._end.reason}")


class ServerOffer(NamedTuple):
    """The result of `fetch_servers`."""

    servers: tuple[IceServer, ...]
    loopback: bool
    """Whether the signaling server was reached by its loopback address, and so runs on this host."""
    no_relay: str
    """The reason why the list has no TURN server, as the server puts it; empty if it has one."""


def room_token(token: str | None) -> str:
    """Return a room token; by default that of the environment. Raises ConfigurationError if it is too long."""
    chosen = os.environ.get(VARIABLE, "") if token is None else secret("token", token)
    if len(chosen) > 512:
        raise ConfigurationError(f"a room token has at most 512 characters, not {len(chosen)}")
    return chosen


async def fetch_servers(url: str, *, token: str | None = None, timeout: float = 10.0) -> ServerOffer:
    """Request the server list of a signaling server, without joining a room. Raises SignalingError.

    `token` is as in `Signaling`, `timeout` is in seconds.
    """
    machine = ServerListClient(token=room_token(token), timeout=duration("timeout", timeout, above_zero=True))
    answer: asyncio.Future[ServersReceived | Ended] = asyncio.get_running_loop().create_future()

    def on_step(events: list[Any]) -> None:
        for event in events:
            if not answer.done():
                answer.set_result(event)

    websockets = WebSockets(machine, websocket_url(url), timeout=timeout, on_step=on_step)
    websockets.call(machine.start)
    try:
        event = await answer
    finally:
        websockets.call(machine.leave)
        await websockets.aclose(LEAVE_TIMEOUT)
    if isinstance(event, Ended):
        raise SignalingError(f"{url}: {event.reason}")
    return ServerOffer(_usable(event.servers), websockets.loopback, event.no_relay)


def _usable(listed: tuple[ListedServer, ...]) -> tuple[IceServer, ...]:
    return tuple(each for one in listed for each in usable(one.uris, one.username, one.credential))


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
