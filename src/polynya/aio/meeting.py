"""A meeting: a member of a room, an agent, and the connection that comes of both.

It waits for the first other member of the room, takes the role that the two ids give, and lets both agents trickle. A
peer that leaves before a connection stands is given up and the next one waited for. Once it stands, signaling goes on
beside it: late candidates reach the agent, a restart of either side and a change of the network are told to the other,
and a signaling server that goes away takes nothing along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from polynya.core.errors import ConnectError, SignalingError, UsageError
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.ice.events import AgentState
from polynya.stun.uris import TurnUri

from .agent import Agent
from .connection import Connection
from .servers import IceServer
from .signaling import Joined, Left, Message, RemoteCandidate, RemoteDescription, Signaling, ask_servers

EARLY_MESSAGES = 512
"""From one peer; more candidates than any agent has."""

RENEWAL = 30.0
"""Seconds between two questions for a TURN server's credentials, should it refuse the newest ones, too."""

MEMBERS = 2
"""A meeting's room has no more: a third would wait for an answer that never comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomEntered:
    """This side is in the room."""

    peer_id: str
    peers: tuple[str, ...]
    servers: tuple[str, ...]
    """URIs of the STUN and TURN servers that the signaling server offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFound:
    """The other side is there, and the agent has been started."""

    peer: str
    controlling: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """The other side left the room."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidateSent:
    """A candidate of this side was told; None: there are no more."""

    candidate: Candidate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalingLost:
    """The signaling server is gone for good; a connection that stands goes on."""

    reason: str


Step = RoomEntered | PeerFound | PeerGone | LocalCandidateSent | RemoteCandidate | RemoteDescription | SignalingLost


class Meeting:
    """`async with Meeting(url, room) as meeting: connection = await meeting.connect()`.

    `servers` are asked besides those that the signaling server tells. `loopback` left out means: when the signaling
    server is on this host. The other options are `Agent`'s. `tell` gets each step, for a display.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        servers: Iterable[str | IceServer] = (),
        loopback: bool | None = None,
        tell: Callable[[Step], None] | None = None,
        trace: Tracer = NO_TRACE,
        **options: Any,
    ) -> None:
        self.signaling = Signaling(url, room, limit=MEMBERS, trace=trace.of("signaling"))
        self.agent: Agent | None = None
        """The agent of the present or last attempt."""
        self.peer = ""
        self._servers = tuple(servers)
        self._loopback = loopback
        self._options = {**options, "trace": trace}
        self._tell = tell or (lambda _: None)
        self._tasks: list[asyncio.Task[None]] = []
        self._present: list[str] = []
        self._described: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._early: dict[str, list[RemoteDescription | RemoteCandidate]] = {}
        """What those said with whom no attempt is under way yet."""
        self._lost: SignalingError | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._renewals: dict[str, float] = {}
        """When a server's credentials may be asked for again."""
        Agent(servers=self._servers, **self._options)  # what cannot be is told before anybody is waited for

    async def __aenter__(self) -> Meeting:
        signaling = await self.signaling.__aenter__()
        self._present = list(signaling.peers)
        uris = tuple(each.uri for each in signaling.servers)
        self._tell(RoomEntered(peer_id=signaling.peer_id, peers=signaling.peers, servers=uris))
        self._hearing = asyncio.create_task(self._hear(), name=f"meeting in {signaling.room}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the room and close the agent with its connection. Safe to call twice."""
        hearing, self._hearing = self._hearing, None
        tasks = [*self._tasks, *([hearing] if hearing else [])]
        for task in tasks:
            task.cancel()
        try:
            if self.agent is not None:
                await self.agent.close()
        finally:
            await self.signaling.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ----------------------------------------------------------------------------------------------------- connecting

    async def connect(self, timeout: float | None = None) -> Connection:
        """Wait for the other side and connect with it.

        `timeout` is in seconds, for the other side to come and the connection to stand; without one, the other side is
        waited for as long as it takes. Raises ConnectError with every attempt, and SignalingError when the server is
        lost before the other side was found.
        """
        if self._hearing is None:
            raise UsageError("not in the room: use `async with Meeting(url, room) as meeting`")
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
            raise self._out_of_time(timeout or 0.0) from None

    async def _find_peer(self) -> str:
        while not self._present:
            if self._lost is not None:
                raise self._lost
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._present[0]

    async def _attempt(self, peer: str) -> Connection | None:
        """The connection with this peer; None when it left before one stood."""
        controlling = self.signaling.controls(peer)
        known = {_uri(each) for each in self._servers}
        servers = (*(each for each in self.signaling.servers if each.uri not in known), *self._servers)
        loopback = self.signaling.loopback if self._loopback is None else self._loopback
        loop = asyncio.get_running_loop()
        gone = self._gone = loop.create_future()
        described = self._described = loop.create_future()
        options = {"credentials": self._renew, **self._options}
        agent = self.agent = Agent(servers=servers, controlling=controlling, loopback=loopback, **options)
        agent.start()
        self.peer = peer
        self._tell(PeerFound(peer=peer, controlling=controlling))
        self._tasks.append(asyncio.create_task(self._trickle(agent, peer), name=f"candidates for {peer[:8]}"))
        for message in self._early.pop(peer, []):
            self._hand_over(agent, message)
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
            raise self._lost
        return await agent.connect()

    async def _trickle(self, agent: Agent, peer: str) -> None:
        """Tell the peer all there is to signal, for the life of the agent: after a restart all of it anew."""
        try:
            async for signal in agent._signals():
                if isinstance(signal, Description):
                    await self.signaling.send_description(peer, signal)
                else:
                    candidate = None if signal is None else signal.candidate
                    await self.signaling.send_candidate(peer, candidate)
                    self._tell(LocalCandidateSent(candidate=candidate))
        except SignalingError:
            return  # the hearing task tells it

    def _out_of_time(self, timeout: float) -> ConnectError:
        if not self.peer or self.agent is None:
            return ConnectError(f"nobody came to the room {self.signaling.room!r} within {timeout:g} s")
        return ConnectError(f"no connection within {timeout:g} s", self.agent.attempts())

    async def _renew(self, uri: str, _realm: str) -> tuple[str, str]:
        """New credentials for a TURN server that the signaling server offers; not more often than is of use."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._renewals.get(uri, loop.time()) - loop.time())
        self._renewals[uri] = loop.time() + RENEWAL
        offered, _ = await ask_servers(self.signaling.url)
        for server in offered:
            if server.username and str(TurnUri.parse(server.uri)) == uri:
                return server.username, server.password
        raise SignalingError(f"{self.signaling.url} does not offer {uri} any more")

    # -------------------------------------------------------------------------------------------------------- hearing

    async def _hear(self) -> None:
        try:
            async for message in self.signaling:
                self._heard(message)
        except SignalingError as error:
            self._lost = error
            self._tell(SignalingLost(reason=str(error)))
            _set(self._arrival)
            _set(self._described)

    def _heard(self, message: Message) -> None:
        peer = message.peer
        if isinstance(message, Joined):
            self._present.append(peer)
            _set(self._arrival)
        elif isinstance(message, Left):
            self._present = [each for each in self._present if each != peer]
            self._early.pop(peer, None)
            if peer == self.peer:
                self._tell(PeerGone(peer=peer, reason=message.reason))
                _set(self._gone)
        elif peer != self.peer or self.agent is None:
            early = self._early.setdefault(peer, [])
            if len(early) < EARLY_MESSAGES:
                early.append(message)
        elif self.agent.state is not AgentState.CLOSED:
            self._hand_over(self.agent, message)

    def _hand_over(self, agent: Agent, message: RemoteDescription | RemoteCandidate) -> None:
        self._tell(message)
        if isinstance(message, RemoteCandidate):
            agent.add_candidate(message.candidate)
        else:
            agent.set_remote(message.description)
            _set(self._described)


def _uri(server: str | IceServer) -> str:
    return server if isinstance(server, str) else server.uri


def _set(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
