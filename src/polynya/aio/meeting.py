"""Meetings: two programs join a room of a signaling server and connect. `connect_room` is the short form.

A `Meeting` waits for the first other member of its room. The ids of the two members decide the ICE roles, and both
agents trickle their candidates. If the peer leaves before there is a connection, the meeting waits for the next one.
Signaling continues beside the connection: late candidates, ICE restarts and changes of the network are signaled in both
directions. A connection survives the loss of the signaling server.
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
from polynya.stun.uris import TurnUri

from .agent import Agent
from .connection import Connection
from .servers import IceServer
from .signaling import Joined, Left, Message, RemoteCandidate, RemoteDescription, Signaling, fetch_servers

EARLY_MESSAGES = 512
"""Messages that are kept of a peer before the attempt to connect to it starts: more than any agent has candidates."""

RENEWAL = 30.0
"""Seconds between two requests of a new server list, in case a TURN server refuses the new credentials, too."""

MEMBERS = 2
"""Limit of a meeting's room: a third member would wait for an answer that never arrives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEntered:
    """This side has joined the room."""

    peer_id: str
    peers: tuple[str, ...]
    servers: tuple[str, ...]
    """URIs of the STUN and TURN servers in the signaling server's list."""


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


class Meeting:
    """`async with Meeting(url, room) as meeting: connection = await meeting.connect()`.

    - `servers`: STUN and TURN servers in addition to the signaling server's list.
    - `loopback`: whether the agent gathers loopback addresses; by default, if the signaling server is on this host.
    - `reconnect`: seconds in which a broken connection to the signaling server is opened again; 0 for never.
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
        on_step: Callable[[MeetingStep], None] | None = None,
        trace: Tracer = NO_TRACE,
        **options: Any,
    ) -> None:
        if "controlling" in options:
            raise ConfigurationError("controlling cannot be set: the ids of the two members decide the roles")
        if loopback is not None:
            flag("loopback", loopback)
        if on_step is not None:
            function("on_step", on_step, plain=True)
        self._servers = items("servers", servers)
        self.signaling = Signaling(url, room, limit=MEMBERS, reconnect=reconnect, trace=trace.of("signaling"))
        self.agent: Agent | None = None
        """The agent of the current or latest attempt."""
        self.peer = ""
        """Id of the peer of the current attempt."""
        self._loopback = loopback
        self._options = {**options, "trace": trace}
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
        self._renewing = asyncio.Lock()
        self._listed: tuple[IceServer, ...] = ()
        self._listed_at: float | None = None
        """The newest server list that was requested for new credentials, and the loop time of that request."""
        self._renewals: dict[str, float | None] = {}
        """By URI of a TURN server: `_listed_at` of the list with its newest credentials."""
        Agent(servers=self._servers, **self._options)  # raises ConfigurationError before anything is opened

    async def __aenter__(self) -> Meeting:
        signaling = await self.signaling.__aenter__()
        self._present = list(signaling.peers)
        uris = tuple(each.uri for each in signaling.servers)
        self._on_step(RoomEntered(peer_id=signaling.peer_id, peers=signaling.peers, servers=uris))
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
        known = {uri for each in self._servers for uri in _uris(each)}
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
            if connecting.done():
                return connecting.result()
        finally:
            self._gone = self._described = None
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        self.peer = ""
        await agent.close()
        return None

    async def _connect(self, agent: Agent, described: asyncio.Future[None]) -> Connection:
        await described
        if self._lost is not None:
            raise SignalingError(str(self._lost)) from self._lost
        return await agent.connect()

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

    def _timed_out(self, timeout: float) -> ConnectError:
        if not self.peer or self.agent is None:
            return ConnectError(f"no other member joined the room {self.signaling.room!r} within {timeout:g} s")
        return ConnectError(f"no connection within {timeout:g} s", self.agent.attempts())

    async def new_credentials(self, uri: str, _realm: str) -> tuple[str, str]:
        """Return new credentials of a TURN server in the signaling server's list.

        Requests a new list at most every RENEWAL seconds. All TURN servers get their credentials from the same list.
        """
        async with self._renewing:
            if self._renewals.get(uri) == self._listed_at:
                await self._request_list(uri)
            self._renewals[uri] = self._listed_at
        for server in self._listed:
            if server.username and str(TurnUri.parse(server.uri)) == uri:
                return server.username, server.password
        raise SignalingError(f"{self.signaling.url} no longer lists {uri}")

    async def _request_list(self, uri: str) -> None:
        loop = asyncio.get_running_loop()
        if self._listed_at is not None:
            await asyncio.sleep(self._listed_at + RENEWAL - loop.time())
        self._listed_at = self._renewals[uri] = loop.time()  # a request that fails counts, too
        if self._lost is None:
            self._listed = await self.signaling.refresh_servers()
        else:
            self._listed, _ = await fetch_servers(self.signaling.url)  # the server may be back, without this member

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

    def _on_message(self, message: Message) -> None:
        peer = message.peer
        if isinstance(message, Joined):
            self._present.append(peer)
            _set(self._arrival)
        elif isinstance(message, Left):
            self._present = [each for each in self._present if each != peer]
            self._early.pop(peer, None)
            if peer == self.peer:
                self._on_step(PeerGone(peer=peer, reason=message.reason))
                _set(self._gone)
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
    **options: Any,
) -> PendingConnection:
    """Connect to the other program that joins the same room of a signaling server (`polynya serve`).

        async with polynya.connect_room("http://signal.example.org", "kitchen") as connection:
            connection.send(b"hello")

    `connection = await polynya.connect_room(...)` works, too; then `connection.close()` is the end. Both ways close the
    agent and leave the room. A room holds two members.

    Signaling continues beside the connection: a restart of `connection.agent`, or a change of the network that it
    follows (`interfaces_changed`), is signaled to the other side.

    - `timeout`: seconds for the other side to join and for the connection. By default there is no limit.
    - `servers`: STUN and TURN servers in addition to the signaling server's list.
    - `loopback`: whether to gather loopback addresses; by default, if the signaling server is on this host.
    - `reconnect`: seconds in which a broken connection to the signaling server is opened again; 0 for never.
    - All other options are those of `Agent`.

    The call raises ConfigurationError before anything is opened. Awaiting or entering raises SignalingError or
    ConnectError and leaves nothing open.
    """
    check_timeout(timeout, error=ConfigurationError)
    meeting = Meeting(url, room, servers=servers, loopback=loopback, reconnect=reconnect, **options)
    return PendingConnection(meeting, timeout)


def _uris(server: str | IceServer | Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(server, str):
        return (server,)
    if isinstance(server, Mapping):  # as in WebRTC's iceServers
        urls = server["urls"]
        return (urls,) if isinstance(urls, str) else tuple(urls)
    return (server.uri,)


def _set(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
