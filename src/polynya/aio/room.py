"""Rooms of many: a connection to each other member of a room of a signaling server.

    a member is in the room --> an agent, which trickles --+--> connected: `async for peer, connection in room`
                                                           +--> failed: `PeerFailed`
    the member leaves --------> its agent is closed, and its connection ends: `PeerGone`
    the server loses it ------> the connection is asked for consent, and stays while it works: `PeerGone`

Each pair of members is independent. The ids of the two decide the ICE roles. Signaling continues beside the
connections, which survive the loss of the signaling server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from polynya.core.errors import ConnectError, ConnectionClosed, PolynyaError, SignalingError, UsageError
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.description import Description
from polynya.ice.events import AgentState
from polynya.session.events import GatheringState

from .agent import Agent
from .connection import Connection
from .listed_credentials import ListedCredentials
from .meeting import PeerFound, PeerGone, SignalingLost, check_options, server_uris
from .servers import IceServer
from .signaling import Away, Joined, Left, Message, RemoteCandidate, Resumed, Signaling
from .waiting import Waiting

EVENTS_KEPT: Final = 4096
"""Events that wait for a slow reader of `events` before its oldest are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """The connection to another member is established."""

    peer: str
    connection: Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFailed:
    """No connection to another member could be established."""

    peer: str
    error: PolynyaError


RoomEvent = PeerFound | PeerConnected | PeerFailed | PeerGone | SignalingLost


class _Member:
    """Another member of the room, with the agent that connects to it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.described = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []


class Room(Waiting):
    """All members of a room, each with a connection to each other one.

        async with polynya.Room("http://signal.example.org", "kitchen") as room:
            async for peer, connection in room:
                connection.send(b"hello")

    Iteration yields the id of each other member with its connection, in the order in which they are established. It
    ends when the room is closed, and raises SignalingError when the signaling server is lost for good; the connections
    survive that. Leaving the context leaves the room and closes every connection.

    - `limit`: the most members that the room may have, up to the server's own limit.
    - `servers`: STUN and TURN servers in addition to the signaling server's list.
    - `loopback`: whether to gather loopback addresses; by default, if the signaling server is on this host.
    - `reconnect`: seconds in which a broken connection to the signaling server is opened again; 0 for never.
    - `token`: the room token of the server's operator, if it needs one; by default POLYNYA_TOKEN of the environment.
    - `follow_host`: whether agents and signaling follow changes of this host's addresses by themselves.
    - All other options are those of `Agent`.

    Raises ConfigurationError before anything is opened. Entering raises SignalingError.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        limit: int | None = None,
        servers: Iterable[str | IceServer | Mapping[str, Any]] = (),
        loopback: bool | None = None,
        reconnect: float = 60.0,
        token: str | None = None,
        follow_host: bool = True,
        trace: Tracer = NO_TRACE,
        **options: Any,
    ) -> None:
        super().__init__()
        self._servers = check_options(servers, loopback, trace, options)
        self._signaling = Signaling(
            url,
            room,
            limit=limit,
            token=token,
            reconnect=reconnect,
            follow_host=follow_host,
            trace=trace.of("signaling"),
        )
        self._loopback = loopback
        self._credentials = ListedCredentials(self._signaling, token=token, lost=lambda: self._lost is not None)
        self._options = {"credentials": self._credentials.new, **options, "follow_host": follow_host, "trace": trace}
        self._members: dict[str, _Member] = {}
        self._departed: list[_Member] = []
        """Members that the server has lost, whose connections may still work."""
        self._connections: dict[str, Connection] = {}
        self._connected: deque[tuple[str, Connection]] = deque()
        self._readers: list[deque[RoomEvent]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._receiving: asyncio.Task[None] | None = None
        self._lost: SignalingError | None = None
        self._closed = False
        Agent(servers=self._servers, **self._options)  # raises ConfigurationError before anything is opened

    # ------------------------------------------------------------------------------------------------------------ life

    async def __aenter__(self) -> Room:
        signaling = await self._signaling.__aenter__()
        for peer in signaling.peers:
            self._begin(peer)
        self._receiving = asyncio.create_task(self._receive(), name=f"members of {signaling.room}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the room and close every connection. Safe to call twice."""
        self._closed = True
        members = [*self._members.values(), *self._departed]
        tasks = [task for member in members for task in member.tasks]
        tasks += [] if self._receiving is None else [self._receiving]
        for task in tasks:
            task.cancel()
        for member in members:
            member.agent._stop()
        self._signaling._leave()  # before the wait for the agents' sockets: the peers notice at once
        try:
            await asyncio.gather(*(member.agent.close() for member in members))
        finally:
            await self._signaling.close()
            self._wake()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------------- members

    @property
    def peer_id(self) -> str:
        """This member's own id."""
        return self._signaling.peer_id

    @property
    def peers(self) -> tuple[str, ...]:
        """Ids of the other members, connected or not, in the order in which they joined."""
        return self._signaling.peers

    @property
    def connections(self) -> Mapping[str, Connection]:
        """The open connections, by the id of the other member."""
        return {peer: connection for peer, connection in self._connections.items() if not connection.closed}

    def agent(self, peer: str) -> Agent:
        """Return the agent that connects to another member, for `why()` and other inspection.

        Raises UsageError if there is no such member.
        """
        if peer not in self._members:
            raise UsageError(f"the room has no member {peer!r}: see `peers`")
        return self._members[peer].agent

    def __aiter__(self) -> AsyncIterator[tuple[str, Connection]]:
        return self

    async def __anext__(self) -> tuple[str, Connection]:
        if self._receiving is None:
            raise UsageError("the room has not been entered: use `async with polynya.Room(url, room) as room`")
        while not self._connected:
            if self._closed:
                raise StopAsyncIteration
            if self._lost is not None:
                raise SignalingError(str(self._lost)) from self._lost
            await self._changed()
        return self._connected.popleft()

    async def events(self) -> AsyncIterator[RoomEvent]:
        """Yield `PeerFound`, `PeerConnected`, `PeerFailed`, `PeerGone` and `SignalingLost` until the room is closed."""
        kept: deque[RoomEvent] = deque(maxlen=EVENTS_KEPT)
        self._readers.append(kept)
        try:
            while kept or not self._closed:
                while kept:
                    yield kept.popleft()
                if not self._closed:
                    await self._changed()
        finally:
            self._readers.remove(kept)

    def _emit(self, event: RoomEvent) -> None:
        for kept in self._readers:
            kept.append(event)
        self._wake()

    # ------------------------------------------------------------------------------------------------------- connecting

    def _begin(self, peer: str) -> None:
        """Start to connect to a member."""
        signaling = self._signaling
        own = {uri for each in self._servers for uri in server_uris(each)}
        servers = (*(each for each in signaling.servers if each.uri not in own), *self._servers)
        loopback = signaling.loopback if self._loopback is None else self._loopback
        controlling = signaling.controls(peer)
        agent = Agent(servers=servers, controlling=controlling, loopback=loopback, **self._options)
        agent.start()
        member = self._members[peer] = _Member(agent)
        self._start(member, self._signal(peer, agent), f"candidates for {peer[:8]}")
        self._start(member, self._connect(peer, member), f"connect to {peer[:8]}")
        self._emit(PeerFound(peer=peer, controlling=controlling))

    @staticmethod
    def _start(member: _Member, work: Any, name: str) -> None:
        member.tasks = [task for task in member.tasks if not task.done()]
        member.tasks.append(asyncio.create_task(work, name=name))

    async def _connect(self, peer: str, member: _Member) -> None:
        await member.described.wait()
        try:
            connection = await member.agent.connect()
        except (ConnectError, ConnectionClosed) as error:
            self._emit(PeerFailed(peer=peer, error=error))
            return
        self._connections[peer] = connection
        self._connected.append((peer, connection))
        self._emit(PeerConnected(peer=peer, connection=connection))

    async def _signal(self, peer: str, agent: Agent) -> None:
        """Send the agent's descriptions and candidates to the peer, restarts included."""
        try:
            async for signal in agent._signals():
                if isinstance(signal, Description):
                    await self._signaling.send_description(peer, signal)
                else:
                    await self._signaling.send_candidate(peer, None if signal is None else signal.candidate)
        except SignalingError:
            return  # the receiving task reports it

    async def _repeat(self, peer: str, agent: Agent) -> None:
        """Send the agent's description and candidates again: some may be lost with a broken connection."""
        try:
            await self._signaling.send_description(peer, agent.description)
            for local in agent._candidates:
                await self._signaling.send_candidate(peer, local.candidate)
            if agent.gathering_state is GatheringState.COMPLETE:
                await self._signaling.send_candidate(peer, None)
        except SignalingError:
            return

    # -------------------------------------------------------------------------------------------------------- receiving

    async def _receive(self) -> None:
        try:
            async for message in self._signaling:
                self._on_message(message)
        except SignalingError as error:
            self._lost = error
            for peer, member in self._members.items():
                if peer not in self._connections and member.agent.state is not AgentState.CLOSED:
                    self._emit(PeerFailed(peer=peer, error=error))
            self._emit(SignalingLost(reason=str(error)))

    def _on_message(self, message: Message) -> None:
        peer = message.peer
        member = self._members.get(peer)
        if isinstance(message, Joined):
            self._begin(peer)
        elif member is None:
            return
        elif isinstance(message, Left):
            self._end(peer, message)
        elif member.agent.state is AgentState.CLOSED:
            return  # its connection was closed here
        elif isinstance(message, Away):
            member.agent._peer_away(True)
        elif isinstance(message, Resumed):
            member.agent._peer_away(False)
            self._start(member, self._repeat(peer, member.agent), f"signals again for {peer[:8]}")
        else:
            with suppress(UsageError):  # a member that returns our own signals: `why` reports them
                if isinstance(message, RemoteCandidate):
                    member.agent.add_candidate(message.candidate)
                else:
                    member.agent.set_remote(message.description)
                    member.described.set()

    def _end(self, peer: str, left: Left) -> None:
        """Close the agent of a member that has left. If the server has lost it, a connection stays while it works."""
        member = self._members.pop(peer)
        for task in member.tasks:
            task.cancel()
        member.agent._peer_left(left.reason, clean=left.clean)
        if left.clean or peer not in self._connections:
            self._connections.pop(peer, None)
            closing = asyncio.create_task(member.agent.close(), name=f"end of {peer[:8]}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        else:
            self._departed.append(member)
        self._emit(PeerGone(peer=peer, reason=left.reason))
