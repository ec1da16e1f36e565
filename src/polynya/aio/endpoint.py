"""Base class of `Agent` and `MuxedAgent`: signaling, connecting, inspection.

It drives an ICE agent (`AgentMachine`) whose packets an `AgentTransport` moves, and keeps the connections of its
components.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from polynya.core.addresses import Address
from polynya.core.errors import Attempt, ConnectError, UsageError
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate, LocalCandidate
from polynya.ice.description import Description
from polynya.ice.events import (
    AgentState,
    AgentStateChanged,
    Failed,
    LocalCandidateAdded,
    RemoteAuthenticated,
    RemoteRevoked,
    Restarted,
    SelectedPairChanged,
)
from polynya.ice.pairs import PairView
from polynya.ice.report import PairReport
from polynya.ice.sdp.candidate import UnsupportedCandidate
from polynya.ice.sdp.signal import read_signal, write_signal
from polynya.session.events import GatheringState
from polynya.session.report import SessionReport
from polynya.session.session import DataReceived, SessionEvent

from .connection import Connection
from .statistics import whole_statistics
from .waiting import Waiting

R = TypeVar("R")

EVENTS_KEPT: Final = 4096
"""Events that wait for a slow reader of `Agent.events` before its oldest are dropped."""


class AgentMachine(Protocol):
    """The machine that an endpoint speaks for: an ICE agent and what is around it."""

    @property
    def agent(self) -> IceAgent: ...

    @property
    def counters(self) -> Mapping[str, int]: ...

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None: ...

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None: ...

    def set_controlling(self, controlling: bool, *, now: Instant) -> None: ...

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description: ...


class AgentTransport(Protocol):
    """Who moves its packets, as a `Driver` does."""

    @property
    def counters(self) -> dict[str, int]: ...

    def call(self, method: Callable[..., R], *args: Any) -> R: ...

    def accept_data(self, flow: Flow, remote: Address, deliver: Callable[[bytes], None]) -> None: ...

    def refuse_data(self, flow: Flow, remote: Address) -> None: ...

    def sender(self, flow: Flow, remote: Address) -> Callable[[bytes], bool]: ...


class Endpoint(Waiting, ABC):
    """What all agents have: signaling, connecting and seeing."""

    __slots__ = ("_candidates", "_closed", "_connections", "_described", "_failure", "_readers")

    def __init__(self) -> None:
        super().__init__()
        self._candidates: tuple[LocalCandidate, ...] = ()
        self._connections: tuple[Connection, ...] = ()
        self._described = False
        self._failure: ConnectError | None = None
        self._closed = False
        self._readers: tuple[deque[SessionEvent], ...] = ()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------------ what differs

    @abstractmethod
    def start(self) -> None:
        """Begin to gather; entering the context does this. Must be called inside a running event loop."""

    @property
    @abstractmethod
    def _machine(self) -> AgentMachine: ...

    @property
    @abstractmethod
    def _transport(self) -> AgentTransport | None:
        """None until it is started."""

    @property
    @abstractmethod
    def gathering_state(self) -> GatheringState:
        """Whether candidates may yet be found."""

    def _sender(
        self,
        connection: Connection,  # noqa: ARG002
        pair: PairView | None,
    ) -> Callable[[bytes], bool] | None:
        """What a connection sends with from now on."""
        return None if pair is None else self._running().sender(pair.flow, pair.remote_address)

    @abstractmethod
    def why(self) -> SessionReport:
        """Why it is as it is: what was gathered and what not, and each pair with every transition's reason."""

    @abstractmethod
    def interfaces_changed(self) -> bool:
        """Look at the interfaces of this host again: if addresses came or went, gather on them and restart.

        Returns whether it restarted; then signal `description` and `candidates()` as after `restart`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every connection and every socket. Safe to call twice, and to cancel: the sockets close either way."""

    # ---------------------------------------------------------------------------------------------------- signaling

    @property
    def description(self) -> Description:
        """What the other side's `set_remote` needs to know: credentials and options."""
        return self._machine.agent.local_description

    @property
    def controlling(self) -> bool:
        """The role of this side (RFC 8445, section 6.1.1); it may be set until `connect` is called."""
        return self._machine.agent.controlling

    @controlling.setter
    def controlling(self, controlling: bool) -> None:
        self._running().call(self._machine.set_controlling, controlling)

    async def candidates(self, stream: int = 0) -> AsyncIterator[Candidate]:
        """The candidates of a stream as they are found, from the first one on; ends when gathering has ended.

        After a restart they are told again, for the new generation. What a server answers after the end is told by
        `signals` and, as `LocalCandidateAdded`, by `events`; candidates of the other side may come at any time.
        """
        self._running()
        told, generation = 0, self.description.generation
        while True:
            if generation != self.description.generation:
                told, generation = 0, self.description.generation
            while told < len(self._candidates):
                told += 1
                local = self._candidates[told - 1]
                if local.stream == stream:
                    yield local.candidate
            if self._closed or self.gathering_state is GatheringState.COMPLETE:
                return
            await self._changed()

    async def to_signal(self) -> AsyncIterator[Description | LocalCandidate | None]:
        """What `signals` tells, as objects: the description, each candidate, None when they have all been told."""
        self._running()
        told, generation, ended = 0, -1, False
        while not self._closed:
            if generation != self.description.generation:
                told, generation, ended = 0, self.description.generation, False
                yield self.description
            elif told < len(self._candidates):
                told += 1
                yield self._candidates[told - 1]
            elif not ended and self.gathering_state is GatheringState.COMPLETE:
                ended = True
                yield None
            else:
                await self._changed()

    async def signals(self) -> AsyncIterator[str]:
        """Everything that the other side has to be told, as texts for its `signaled`, for the life of the agent.

        The description comes first, each candidate when it is found (RFC 8838), at last that there are no more (a
        server's late answer may add one all the same); after a restart of either side all of it again. Each text is a
        fragment as in RFC 8840. Any channel will do that keeps others from reading it: the texts hold the password of
        the checks.
        """
        async for signal in self.to_signal():
            if isinstance(signal, LocalCandidate):
                yield write_signal(self.description, [(signal.stream, signal.candidate)], ended=False)
            else:
                yield write_signal(self.description, ended=signal is None)

    def signaled(self, text: str) -> None:
        """What the other side's `signals` told, in any order, any number of times. DecodeError for what is none."""
        signal, driver = read_signal(text), self._running()
        self.set_remote(signal.description)
        for stream, candidate in signal.candidates:
            driver.call(self._machine.add_remote, candidate, stream)
        remote = self._machine.agent.remote_description
        if signal.ended and signal.description.same_credentials(remote):
            driver.call(self._machine.add_remote, None)

    def set_remote(self, description: Description, components: Sequence[int] | None = None) -> None:
        """What the other side signaled as its `description`, and the `components` if it restarted with others."""
        agreed = None if components is None else tuple(components)
        self._running().call(self._machine.set_remote, description, agreed)
        self._described = True

    def add_candidate(self, candidate: Candidate | str | None, stream: int = 0) -> None:
        """A candidate of the other side, as an object or its SDP line; None: it has told all, for every stream.

        Raises DecodeError, with what is wrong, for a line that cannot be read. One of an unknown type is ignored (RFC
        8839, section 5.1).
        """
        if isinstance(candidate, str):
            try:
                candidate = Candidate.parse(candidate)
            except UnsupportedCandidate:
                return
        self._running().call(self._machine.add_remote, candidate, stream)

    # ------------------------------------------------------------------------------------------------------ restart

    def restart(self, components: Sequence[int] | None = None) -> Description:
        """Begin anew with new credentials (RFC 8445, section 9); signal what is returned, and `candidates()` again.

        Connections stay and go on over the old pair until a new one is nominated. When the other side restarts, giving
        its new description to `set_remote` does the same here: a `Restarted` event tells to signal `description` anew.
        `signals` and a room do all of it by themselves.

        `components` adds and removes streams: how many components each has from now on, 0 for one that is removed (the
        others keep their numbers). Both sides have to agree on it: it is not signaled.
        """
        return self._running().call(self._machine.restart, None if components is None else tuple(components))

    # --------------------------------------------------------------------------------------------------- connecting

    async def connect(self, timeout: float | None = None, *, stream: int = 0, component: int = 1) -> Connection:
        """Wait for the first valid pair and return the connection over it; its path may improve until it is nominated.

        `timeout` is in seconds, for the other side to describe itself and the checks to work; without one the agent
        decides when nothing can come any more. Raises ConnectError with every attempt and why it failed. Cancelling
        leaves the agent as it is: `connect` may be called again.
        """
        connection = self.connection(stream, component)
        if not self._described and timeout is None:
            raise UsageError("the other side is not known: give what it signals first, or connect() a timeout")
        try:
            async with asyncio.timeout(timeout):
                while not connection.ready:
                    if self._failure is not None:
                        raise self._failure
                    self._running()
                    await self._changed()
        except TimeoutError:
            what = "no pair worked" if self._described else "the other side did not describe itself"
            raise ConnectError(f"{what} within {timeout:g} s", self.attempts()) from None
        return connection

    def connection(self, stream: int = 0, component: int = 1) -> Connection:
        """The connection of a component of a stream, be it ready or not; UsageError where there is no such one."""
        self._running()
        if not self._exists(stream, component):
            raise UsageError(f"there is no stream {stream} with a component {component}: give Agent(components=...)")
        return self._connection(stream, component)

    # ------------------------------------------------------------------------------------------------------- seeing

    @property
    def state(self) -> AgentState:
        return self._machine.agent.state

    def pairs(self) -> list[PairView]:
        """Every pair as it is now, by priority."""
        return self._machine.agent.pairs()

    def attempts(self) -> tuple[Attempt, ...]:
        """Every pair that does not work, and why."""
        return self._machine.agent.attempts()

    def why_pair(self, number: int) -> PairReport | None:
        """The story of one pair, by the `id` that `pairs()` gives it; None where there is no such pair any more."""
        return self._machine.agent.why_pair(number)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Pairs, candidates and transports in the terms of W3C's webrtc-stats, by their ids; each has a `type`.

        Durations are seconds, but `timestamp`, which is milliseconds since 1970 as it is there.
        """
        return whole_statistics(self._machine.agent.stats(), self._connections)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the start: by the agent, by what found each packet's machine, and by the sockets."""
        counted = Counter(self._machine.agent.counters)
        counted.update(self._machine.counters)
        if self._transport is not None:
            counted.update(self._transport.counters)
        return dict(counted)

    async def events(self) -> AsyncIterator[SessionEvent]:
        """What happens from now on, for a live display; ends when the agent is closed."""
        self._running()
        kept: deque[SessionEvent] = deque(maxlen=EVENTS_KEPT)
        self._readers = (*self._readers, kept)
        try:
            while True:
                while kept:
                    yield kept.popleft()
                if self._closed:
                    return
                await self._changed()
        finally:
            self._readers = tuple(reader for reader in self._readers if reader is not kept)

    # ------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: SessionEvent) -> None:
        match event:
            case DataReceived():
                self._connection(event.stream, event.component).deliver(event.data)
                return
            case Restarted():
                self._candidates = ()
                self._failure = None
                self._end_removed()
            case LocalCandidateAdded():
                self._candidates += (event.local,)
            case RemoteAuthenticated():
                connection = self._connection(event.stream, event.component)
                self._running().accept_data(event.flow, event.remote, connection.deliver)
            case RemoteRevoked():
                if self._transport is not None:
                    self._transport.refuse_data(event.flow, event.remote)
            case SelectedPairChanged():
                self._selected(event)
            case Failed():
                self._failure = ConnectError(event.reason, event.attempts)
            case AgentStateChanged(new=AgentState.FAILED | AgentState.CLOSED):
                for connection in self._connections:
                    connection._end(event.reason)
            case AgentStateChanged(old=AgentState.FAILED):
                self._failure = None
            case _:
                pass
        for kept in self._readers:
            kept.append(event)
        self._wake()

    def _selected(self, event: SelectedPairChanged) -> None:
        connection = self._connection(event.stream, event.component)
        pair = event.pair
        connection._move(self._sender(connection, pair), 0 if pair is None else pair.id, event.reason)

    def _connection(self, stream: int, component: int) -> Connection:
        for known in self._connections:
            if known.stream == stream and known.component == component:
                return known
        connection = Connection(stream=stream, component=component, agent=self)
        self._connections = (*self._connections, connection)
        return connection

    def selected(self, stream: int = 0, component: int = 1) -> PairView | None:
        """The pair that a component's data goes on now, if there is one."""
        return self._machine.agent.selected(stream, component)

    async def connection_closed(self) -> None:
        """A connection was closed by its user: with the last one the agent closes."""
        if all(connection.closed for connection in self._connections):
            await self.close()

    # -------------------------------------------------------------------------------------------------------- whether

    def _running(self) -> AgentTransport:
        if self._closed:
            raise UsageError("the agent is closed: make a new one")
        if self._transport is None:
            raise UsageError("the agent is not started: use it as `async with polynya.Agent(...) as agent`")
        return self._transport

    def _exists(self, stream: int, component: int) -> bool:
        streams = self._machine.agent.components
        return 0 <= stream < len(streams) and 1 <= component <= streams[stream]

    def _end_removed(self) -> None:
        """A restart may have removed streams: their connections are over."""
        for connection in self._connections:
            if not self._exists(connection.stream, connection.component):
                connection._end("its stream was removed")
        self._connections = tuple(known for known in self._connections if not known.closed)

    def _end_connections(self, reason: str) -> None:
        for connection in self._connections:
            connection._end(reason)  # a connection is its agent's part
