"""Meetings: two programs join a room of a signaling server and connect. `connect_room` is the short form.

A `Meeting` waits for the first other member of its room. The ids of the two members decide the ICE roles, and both
agents trickle their candidates. If the peer leaves before there is a connection, the meeting waits for the next one.
Signaling continues beside the connection: late candidates, ICE restarts and changes of the network are signaled in both
directions. A connection survives the loss of the signaling server.

If the peer leaves, the connection ends. If the server loses the peer, the peer is asked for consent at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from polynya.core.arguments import flag, function, items
from polynya.core.arguments import timeout as check_timeout
from polynya.core.errors import ConfigurationError, ConnectError, SignalingError, UsageError
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.ice.events import AgentState
from polynya.session.events import GatheringState

from .agent import Agent
from .connection import Connection
from .listed_credentials import ListedCredentials
from .options import check_callables
from .servers import IceServer
from .signaling import (
    Away,
    Joined,
    Left,
    Message,
    RemoteCandidate,
    RemoteDescription,
    Resumed,
    Signaling,
)

EARLY_MESSAGES = 512
"""Messages that are kept of a peer before the attempt to connect to it starts: more than any agent has candidates."""

MEMBERS = 2
"""Limit of a meeting's room: a third member would wait for an answer that never arrives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEntered:
    """This side has joined the room."""

    peer_id: str
    peers: tuple[str, ...]
    servers: tuple[str, ...]
    """URIs of the STUN and TURN servers in the signaling server's list."""
    no_relay: str = ""
    """The reason why the list has no TURN server, as the server puts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFound:
    """The other side is in the room, and the agent has started."""

    peer: str
    controlling: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """The other side has left the room."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidateSent:
    """A candidate of this side was signaled, or the end of candidates (None)."""

    candidate: Candidate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalingLost:
    """The signaling server is lost for good. An established connection continues."""

    reason: str


MeetingStep = (
    RoomEntered | PeerFound | PeerGone | LocalCandidateSent | RemoteCandidate | RemoteDescription | SignalingLost
)


def check_options(
    servers: Iterable[str | IceServer | Mapping[str, Any]],
    loopback: bool | None,
    trace: Tracer,
    options: Mapping[str, Any],
) -> tuple[str | IceServer | Mapping[str, Any], ...]:
    """Check the options that a room adds to those of its agents, and return the servers."""
    if "controlling" in options:
        raise ConfigurationError("controlling cannot be set: the ids of the two members decide the roles")
    if loopback is not None:
        flag("loopback", loopback)
    check_callables(trace=trace)
    return items("servers", servers)


class Meeting:
    """`async with Meeting(url, room) as meeting: connection = await meeting.connect()`.

    - `servers`: STUN and TURN servers in addition to the signaling server's list.
    - `loopback`: whether the agent gathers loopback addresses; by default, if the signaling server is on this host.
    - `reconnect`: seconds in which a broken connection to the signaling server is opened again; 0 for never.
    - `token`: the room token of the server's operator, if it needs one; by default POLYNYA_TOKEN of the environment.
    - `follow_host`: whether agent and signaling follow changes of this host's addresses by themselves.
    - `on_step`: gets each step, for a display.
    - All other options are those of `Agent`.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        servers: Iterable[str | IceServer] = (),
        loopback: bool | None = None,
        reconnect: float = 60.0,
        token: str | None = None,
        follow_host: bool = True,
        on_step: Callable[[MeetingStep], None] | None = None,
        trace: Tracer = NO_TRACE,
        **options: Any,
    ) -> None:
        if on_step is not None:
            function("on_step", on_step, plain=True)
        self._servers = check_options(servers, loopback, trace, options)
        self.signaling = Signaling(
            url,
            room,
            limit=MEMBERS,
            token=token,
            reconnect=reconnect,
            follow_host=follow_host,
            trace=trace.of("signaling"),
        )
        self.agent: Agent | None = None
        """The agent of the current or latest attempt."""
        self.peer = ""
        """Id of the peer of the current attempt."""
        self._loopback = loopback
        self._options = {**options, "follow_host": follow_host, "trace": trace}
        self._on_step = on_step or (lambda _: None)
        self._tasks: list[asyncio.Task[None]] = []
        self._present: list[str] = []
        self._described: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._early: dict[str, list[RemoteDescription | RemoteCandidate]] = {}
        """Messages of each peer before the attempt to connect to it."""
        self._lost: SignalingError | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._credentials = ListedCredentials(self.signaling, token=token, lost=lambda: self._lost is not None)
        Agent(servers=self._servers, **self._options)  # raises ConfigurationError before anything is opened

    async def __aenter__(self) -> Meeting:
        signaling = await self.signaling.__aenter__()
        self._present = list(signaling.peers)
        uris = tuple(each.uri for each in signaling.servers)
        no_relay = signaling.no_relay
        self._on_step(RoomEntered(peer_id=signaling.peer_id, peers=signaling.peers, servers=uris, no_relay=no_relay))
        self._receiving = asyncio.create_task(self._receive(), name=f"meeting in {signaling.room}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the room and close the agent with its connections. Safe to call twice."""
        receiving, self._receiving = self._receiving, None
        tasks = [*self._tasks, *([receiving] if receiving else [])]
        for task in tasks:
            task.cancel()
        if self.agent is not None:
            self.agent._stop()
        self.signaling._leave()  # before the wait for the agent's sockets: the peer notices at once
        try:
            if self.agent is not None:
                await self.agent.close()
        finally:
            await self.signaling.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection_closed(self) -> None:
        """Close the meeting, when it owns a connection and the user has closed that."""
        await self.close()

    # ------------------------------------------------------------------------------------------------------- connecting

    async def connect(self, timeout: float | None = None) -> Connection:
        """Wait for the other side and connect to it.

        `timeout` is in seconds and covers both the other side's arrival and the connection. Without it, this method
        waits for the other side indefinitely. Raises ConnectError with every attempt, and SignalingError if the server
        is lost before the other side arrived.
        """
        check_timeout(timeout)
        if self._receiving is None:
            raise UsageError("the room has not been entered: use `async with Meeting(url, room) as meeting`")
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline) as limit:
                while True:
                    connection = await self._attempt(await self._find_peer())
                    if connection is not None:
                        return connection
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._timed_out(timeout or 0.0) from None

    async def _find_peer(self) -> str:
        while not self._present:
            if self._lost is not None:
                raise SignalingError(str(self._lost)) from self._lost
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._present[0]

    async def _attempt(self, peer: str) -> Connection | None:
        """Connect to this peer. Returns None if it leaves first."""
        controlling = self.signaling.controls(peer)
        known = {uri for each in self._servers for uri in server_uris(each)}
        servers = (*(each for each in self.signaling.servers if each.uri not in known), *self._servers)
        loopback = self.signaling.loopback if self._loopback is None else self._loopback
        loop = asyncio.get_running_loop()
        gone = self._gone = loop.create_future()
        described = self._described = loop.create_future()
        options = {"credentials": self.new_credentials, **self._options}
        agent = self.agent = Agent(servers=servers, controlling=controlling, loopback=loopback, **options)
        agent.start()
        self.peer = peer
        self._on_step(PeerFound(peer=peer, controlling=controlling))
        self._tasks.append(asyncio.create_task(self._trickle(agent, peer), name=f"candidates for {peer[:8]}"))
        for message in self._early.pop(peer, []):
            self._apply(agent, message)
        connecting = asyncio.ensure_future(self._connect(agent, described))
        try:
            await asyncio.wait([connecting, gone], return_when=asyncio.FIRST_COMPLETED)
            if connecting.done() and (connection := connecting.result()) is not None:
                return connection
        finally:
            self._gone = self._described = None
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        self.peer = ""
        await agent.close()
        return None

    async def _connect(self, agent: Agent, described: asyncio.Future[None]) -> Connection | None:
        await described
        if self._lost is not None:
            raise SignalingError(str(self._lost)) from self._lost
        try:
            return await agent.connect()
        except ConnectError:
            if agent._abandoned:
                return None  # the peer has left, and perhaps comes back
            raise

    async def _trickle(self, agent: Agent, peer: str) -> None:
        """Send the agent's descriptions and candidates to the peer, for the life of the agent, restarts included."""
        try:
            async for signal in agent._signals():
                if isinstance(signal, Description):
                    await self.signaling.send_description(peer, signal)
                else:
                    candidate = None if signal is None else signal.candidate
                    await self.signaling.send_candidate(peer, candidate)
                    self._on_step(LocalCandidateSent(candidate=candidate))
        except SignalingError:
            return  # the receiving task reports it

    async def _repeat(self, agent: Agent, peer: str) -> None:
        """Send the agent's description and candidates again: some may be lost with a broken connection."""
        try:
            await self.signaling.send_description(peer, agent.description)
            for local in agent._candidates:
                await self.signaling.send_candidate(peer, local.candidate)
            if agent.gathering_state is GatheringState.COMPLETE:
                await self.signaling.send_candidate(peer, None)
        except SignalingError:
            return

    def _timed_out(self, timeout: float) -> ConnectError:
        if not self.peer or self.agent is None:
            return ConnectError(f"no other member joined the room {self.signaling.room!r} within {timeout:g} s")
        return ConnectError(f"no connection within {timeout:g} s", self.agent.attempts())

    async def new_credentials(self, uri: str, realm: str) -> tuple[str, str]:
        """Return new credentials of a TURN server in the signaling server's list."""
        return await self._credentials.new(uri, realm)

    # -------------------------------------------------------------------------------------------------------- receiving

    async def _receive(self) -> None:
        try:
            async for message in self.signaling:
                self._on_message(message)
        except SignalingError as error:
            self._lost = error
            self._on_step(SignalingLost(reason=str(error)))
            _set(self._arrival)
            _set(self._described)
            self._end_stranded()

    def _end_stranded(self) -> None:
        """End a connection that lost its path and waits for the other side's description, which cannot arrive now."""
        agent = self.agent
        if agent is None or agent.state is AgentState.CLOSED or self._described is not None:
            return
        machine = agent._machine.agent
        if machine.remote_description is None and machine.selected() is None:
            agent._end_connections(f"the path was lost, and then the signaling server: {self._lost}")
            agent._stop()

    def _on_message(self, message: Message) -> None:
        peer = message.peer
        if isinstance(message, Joined):
            self._present.append(peer)
            _set(self._arrival)
        elif isinstance(message, Resumed):
            if peer == self.peer and self.agent is not None and self.agent.state is not AgentState.CLOSED:
                self.agent._peer_away(False)
                repeating = asyncio.create_task(self._repeat(self.agent, peer), name=f"signals again for {peer[:8]}")
                self._tasks = [*(task for task in self._tasks if not task.done()), repeating]
        elif isinstance(message, Left):
            self._present = [each for each in self._present if each != peer]
            self._early.pop(peer, None)
            if peer == self.peer:
                self._on_step(PeerGone(peer=peer, reason=message.reason))
                _set(self._gone)
                if self.agent is not None:
                    self.agent._peer_left(message.reason, clean=message.clean)
        elif isinstance(message, Away):
            if peer == self.peer and self.agent is not None:
                self.agent._peer_away(True)
        elif peer != self.peer or self.agent is None:
            early = self._early.setdefault(peer, [])
            if len(early) < EARLY_MESSAGES:
                early.append(message)
        elif self.agent.state is not AgentState.CLOSED:
            self._apply(self.agent, message)

    def _apply(self, agent: Agent, message: RemoteDescription | RemoteCandidate) -> None:
        self._on_step(message)
        with suppress(UsageError):  # a member that returns our own signals: `why` reports them
            if isinstance(message, RemoteCandidate):
                agent.add_candidate(message.candidate)
            else:
                agent.set_remote(message.description)
                _set(self._described)


class PendingConnection(Coroutine[Any, Any, Connection]):
    """Result of `connect_room`: await it, run it as a task, or enter it with `async with`."""

    def __init__(self, meeting: Meeting, timeout: float | None) -> None:
        self._meeting = meeting
        self._timeout = timeout
        self._used = False
        self._running: Coroutine[Any, Any, Connection] | None = None

    def __await__(self) -> Generator[Any, Any, Connection]:
        return self._connect().__await__()

    def send(self, value: Any, /) -> Any:
        """Run as a coroutine; a task calls this."""
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception inside the coroutine; a task calls this."""
        return self._coroutine().throw(*error)

    def close(self) -> None:
        """Stop the coroutine."""
        if self._running is not None:
            self._running.close()

    def _coroutine(self) -> Coroutine[Any, Any, Connection]:
        if self._running is None:
            self._running = self._connect()
        return self._running

    async def __aenter__(self) -> Connection:
        return await self._connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._meeting.close()

    async def _connect(self) -> Connection:
        if self._used:
            raise UsageError("connect_room() makes one connection: call it again for another one")
        self._used = True
        meeting = self._meeting
        try:
            await meeting.__aenter__()
            connection = await meeting.connect(self._timeout)
        except BaseException:
            await meeting.close()
            raise
        connection._owner = meeting
        return connection


def connect_room(
    url: str,
    room: str,
    *,
    timeout: float | None = None,
    servers: Iterable[str | IceServer] = (),
    loopback: bool | None = None,
    reconnect: float = 60.0,
    token: str | None = None,
    follow_host: bool = True,
    **options: Any,
) -> PendingConnection:
    """Connect to the other program that joins the same room of a signaling server (`polynya serve`).

        async with polynya.connect_room("http://signal.example.org", "kitchen") as connection:
            connection.send(b"hello")

    `connection = await polynya.connect_room(...)` works, too; then `connection.close()` is the end. Both ways close the
    agent and leave the room. A room holds two members.

    Signaling continues beside the connection. If this host's address changes, the connection to the server is opened
    again at once, the new candidates are signaled, and data flows again. A restart of `connection.agent` is signaled,
    too.

    - `timeout`: seconds for the other side to join and for the connection. By default there is no limit.
    - `servers`: STUN and TURN servers in addition to the signaling server's list.
    - `loopback`: whether to gather loopback addresses; by default, if the signaling server is on this host.
    - `reconnect`: seconds in which a broken connection to the signaling server is opened again; 0 for never.
    - `token`: the room token of the server's operator, if it needs one; by default POLYNYA_TOKEN of the environment.
    - `follow_host`: whether agent and signaling follow changes of this host's addresses by themselves.
    - All other options are those of `Agent`.

    The call raises ConfigurationError before anything is opened. Awaiting or entering raises SignalingError or
    ConnectError and leaves nothing open.
    """
    check_timeout(timeout, error=ConfigurationError)
    meeting = Meeting(
        url,
        room,
        servers=servers,
        loopback=loopback,
        reconnect=reconnect,
        token=token,
        follow_host=follow_host,
        **options,
    )
    return PendingConnection(meeting, timeout)


def server_uris(server: str | IceServer | Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(server, str):
        return (server,)
    if isinstance(server, Mapping):  # as in WebRTC's iceServers
        urls = server["urls"]
        return (urls,) if isinstance(urls, str) else tuple(urls)
    return (server.uri,)


def _set(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
