"""Base class of `Agent` and `MuxedAgent`: signaling, connecting, inspection.

It drives an ICE agent (`AgentMachine`) whose packets an `AgentTransport` moves, and keeps the connections of its
components.

Calls that set something (the role, the remote description, candidates) may come before `start`: the machine holds their
effects until it has a transport.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from polynya.core.errors import Attempt, ConnectError, ConnectionClosed, UsageError
from polynya.core.flows import Flow
from polynya.ice.candidates import Candidate, LocalCandidate
from polynya.ice.description import Description
from polynya.ice.events import (
    AgentState,
    AgentStateChanged,
    ConsentLost,
    Failed,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    PairChanged,
    RemoteAuthenticated,
    RemoteRevoked,
    Restarted,
    RoleChanged,
    SelectedPairChanged,
)
from polynya.ice.pairs import PairView
from polynya.ice.report import PairReport
from polynya.ice.sdp.candidate import UnsupportedCandidate
from polynya.ice.sdp.signal import read_signal, write_signal
from polynya.session.events import GatheringState, GatheringStateChanged
from polynya.session.report import SessionReport
from polynya.session.session import DataReceived, SessionEvent
from polynya.turn.client.report import RelayOverhead

from . import checked, clock
from .agent_machine import AgentMachine, AgentTransport
from .connection import Connection, ReceiveBufferFull
from .signal_texts import fragments, shorten
from .sizes import max_datagram_size, max_length
from .statistics import whole_statistics
from .waiting import Waiting

R = TypeVar("R")

AgentEvent = (
    LocalCandidateAdded
    | LocalCandidatesEnded
    | GatheringStateChanged
    | PairChanged
    | SelectedPairChanged
    | AgentStateChanged
    | RoleChanged
    | ConsentLost
    | Failed
    | Restarted
    | ReceiveBufferFull
)
"""The events that `events` yields."""

CLOSED_REASON: Final = "the agent was closed"

EVENTS_KEPT: Final = 4096
"""Events that wait for a slow reader of `events` before its oldest are dropped."""


class Endpoint(Waiting, ABC):
    """Base class of `Agent` and `MuxedAgent`: signaling, connecting, inspection."""

    __slots__ = ("_buffer", "_candidates", "_closed", "_closing", "_connections", "_described", "_failure", "_readers")

    def __init__(self, receive_buffer: int) -> None:
        super().__init__()
        self._buffer = receive_buffer
        self._candidates: tuple[LocalCandidate, ...] = ()
        self._connections: tuple[Connection, ...] = ()
        self._described = False
        self._failure: Failed | None = None
        self._closed = False
        self._closing = False
        """Whether `close` has begun and not ended."""
        self._readers: tuple[deque[AgentEvent], ...] = ()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        role = "controlling" if self.is_controlling else "controlled"
        paths = ", ".join(str(each.path) for each in self._connections if each.ready)
        return f"<{type(self).__name__} {self.state.value}, {role}{': ' if paths else ''}{paths}>"

    # ------------------------------------------------------------------------------------------------ what differs

    @abstractmethod
    def start(self) -> None:
        """Starts to gather; entering the context does this. A second call changes nothing.

        Call it inside a running event loop. Raises UsageError once the agent is closed.
        """

    @property
    @abstractmethod
    def _machine(self) -> AgentMachine: ...

    @property
    @abstractmethod
    def _transport(self) -> AgentTransport | None:
        """None until the agent is started."""

    @property
    @abstractmethod
    def gathering_state(self) -> GatheringState:
        """Whether more local candidates may be found."""

    def _sender(
        self,
        connection: Connection,  # noqa: ARG002
        pair: PairView | None,
    ) -> Callable[[bytes], bool] | None:
        """Returns the function that a connection sends with from now on."""
        return None if pair is None else self._running().sender(pair.flow, pair.remote_address)

    def _overhead(self, pair: PairView) -> RelayOverhead | None:  # noqa: ARG002
        """Returns how a pair's datagrams are carried to a TURN server; None if they go directly."""
        return None

    @abstractmethod
    def _stop(self) -> None:
        """Closes the ICE agent: it sends nothing more, consent checks included."""

    @abstractmethod
    def why(self) -> SessionReport:
        """Returns a report of what was gathered, and of each pair with every transition and its reason."""

    @abstractmethod
    def interfaces_changed(self) -> bool:
        """Looks at the interfaces of this host again; if addresses came or went, gathers on them and restarts ICE.

        Returns whether it restarted. `local_signals` then yields the new description and candidates by itself; with
        signaling of your own, send `description` and `candidates()` as after `restart`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Closes every connection and every socket. Safe to call twice and to cancel: the sockets close anyway."""

    # ---------------------------------------------------------------------------------------------------- signaling

    async def local_signals(self) -> AsyncIterator[str]:
        """Yields everything to signal, as texts for `add_remote_signal` of the other side, until the agent is closed.

        The description comes first, then each candidate when it is found (RFC 8838), then the end of candidates; a
        candidate may follow even then, if a server answers late. After a restart of either side all of it comes again.
        Each text is complete in itself, a fragment as in RFC 8840: texts may arrive in any order, and more than once.

        Any channel will do that keeps others from reading it: the texts hold the password of the checks.
        """
        async for signal in self._signals():
            if isinstance(signal, LocalCandidate):
                yield write_signal(self.description, [(signal.stream, signal.candidate)], ended=False)
            else:
                yield write_signal(self.description, ended=signal is None)

    async def signal_text(self) -> str:
        """Waits until gathering has ended and returns everything to signal in one short line, for one-shot signaling.

        Pass it to `add_remote_signal` of the other side. With a host, a server-reflexive and a relayed candidate it has
        about 145 characters. A restart needs another one. Raises UsageError unless the agent is started, and
        ConnectionClosed if it is closed meanwhile.
        """
        self._waitable()
        while self.gathering_state is not GatheringState.COMPLETE:
            await self._changed()
            self._not_over()
        candidates = [(local.stream, local.candidate) for local in self._candidates]
        return shorten(write_signal(self.description, candidates, ended=True))

    def add_remote_signal(self, text: str) -> None:
        """Takes a text of the other side's `local_signals` or `signal_text`, or several of them joined.

        They may come in any order, and more than once. Raises DecodeError, and changes nothing, if one of them cannot
        be read, UsageError for bytes and other types, and for a text of this agent itself.
        """
        signals = [read_signal(each) for each in fragments(text)]
        for signal in signals:
            self._call(self._machine.agent.refuse_own, signal.description, [each for _, each in signal.candidates])
        for signal in signals:
            self.set_remote(signal.description)
            for stream, candidate in signal.candidates:
                self._call(self._machine.add_remote, candidate, stream)
            if signal.ended and signal.description.same_credentials(self._machine.agent.remote_description):
                self._call(self._machine.add_remote, None)

    @property
    def description(self) -> Description:
        """The credentials and options of this side, for `set_remote` of the other side."""
        return self._machine.agent.local_description

    async def candidates(self, stream: int = 0) -> AsyncIterator[Candidate]:
        """Yields the local candidates of a stream as they are found, from the first one on, until gathering ends.

        After a restart they come again, for the new generation. A server's answer after the end of gathering is in
        `local_signals` and, as `LocalCandidateAdded`, in `events`.
        """
        checked.stream(stream)
        yielded, generation = 0, self.description.generation
        while True:
            if generation != self.description.generation:
                yielded, generation = 0, self.description.generation
            while yielded < len(self._candidates):
                yielded += 1
                local = self._candidates[yielded - 1]
                if local.stream == stream:
                    yield local.candidate
            if self._over or self.gathering_state is GatheringState.COMPLETE:
                return
            await self._changed()

    def set_remote(self, description: Description, components: Sequence[int] | None = None) -> None:
        """Sets the other side's `description`, and its `components` if it restarted with others.

        A description with new credentials is a restart of the other side; this side follows. Raises UsageError for a
        description of this agent itself.
        """
        self._call(self._machine.set_remote, checked.description(description), checked.components(components))
        self._described = True

    def add_candidate(self, candidate: Candidate | str | None, stream: int = 0) -> None:
        """Adds a candidate of the other side, as an object or its SDP line; None ends the candidates of all streams.

        Raises DecodeError, with the reason, for a line that cannot be read. A candidate of an unknown type is ignored
        (RFC 8839, section 5.1).
        """
        if isinstance(candidate, str):
            try:
                candidate = Candidate.parse(candidate)
            except UnsupportedCandidate:
                return
        self._call(self._machine.add_remote, checked.candidate(candidate), checked.stream(stream))

    def remote_candidates(self, stream: int | None = None) -> list[Candidate]:
        """Returns the other side's candidates: those that were added, and peer-reflexive ones that checks came from.

        Of one stream, or of all.
        """
        return self._machine.agent.remote_candidates(checked.stream_or_all(stream))

    @property
    def is_controlling(self) -> bool:
        """Whether this side is the controlling agent, which nominates (RFC 8445, section 6.1.1)."""
        return self._machine.agent.controlling

    def set_controlling(self, controlling: bool) -> None:
        """Sets the role of this side; call it before the other side's description is known, or at a restart."""
        self._call(self._machine.set_controlling, checked.controlling(controlling))

    async def _signals(self) -> AsyncIterator[Description | LocalCandidate | None]:
        """Yields what `local_signals` yields, as objects; None for the end of candidates."""
        yielded, generation, ended = 0, -1, False
        while not self._over:
            if generation != self.description.generation:
                yielded, generation, ended = 0, self.description.generation, False
                yield self.description
            elif yielded < len(self._candidates):
                yielded += 1
                yield self._candidates[yielded - 1]
            elif not ended and self.gathering_state is GatheringState.COMPLETE:
                ended = True
                yield None
            else:
                await self._changed()

    # ------------------------------------------------------------------------------------------------------ restart

    def restart(self, components: Sequence[int] | None = None) -> Description:
        """Restarts ICE with new credentials (RFC 8445, section 9) and returns the new description.

        Connections stay: they use the old pair until a new one is nominated. `local_signals` yields the new description
        and candidates.

        With signaling of your own, send the returned description and `candidates()` again. If the other side restarts,
        pass its new description to `set_remote`. This side then restarts too, with the event `Restarted`; send its new
        `description`.

        `components` adds and removes streams: the number of components of each from now on, 0 for one that is removed
        (the others keep their numbers). Both sides have to agree on it: it is not signaled.
        """
        return self._running().call(self._machine.restart, checked.components(components))

    # --------------------------------------------------------------------------------------------------- connecting

    async def connect(self, timeout: float | None = None, *, stream: int = 0, component: int = 1) -> Connection:
        """Waits for the first valid pair of a component and returns the connection over it.

        The path may improve until a pair is nominated: see `completed`. `timeout` is in seconds, for the other side's
        description to arrive and for a check to succeed. Without one, the agent decides when no pair can work any more.

        Raises ConnectError with every attempt and why it failed. Raises ConnectionClosed if the connection was closed
        before, or if the agent is closed meanwhile. Canceling leaves the agent as it is: `connect` may be called again.
        After a failure, too: with a restart or a new candidate of the other side, it returns a new connection.
        """
        self._waitable()
        connection = self.connection(stream, component)

        def ready() -> bool:
            nonlocal connection
            self._not_over()
            if connection._failed:
                connection = self.connection(stream, component)
            if connection._closed is not None and self._failure is None:
                raise ConnectionClosed(connection._closed)
            return connection.ready

        await self._until(ready, timeout, "no pair worked")
        return connection

    async def completed(self, timeout: float | None = None) -> None:
        """Waits until a pair is nominated for every component of every stream: the paths are then settled.

        `timeout` is in seconds. Raises ConnectError with every attempt and why it failed, ConnectionClosed if the agent
        is closed meanwhile.
        """
        self._waitable()
        await self._until(
            lambda: self.state is AgentState.COMPLETED, timeout, "not every component has a nominated pair"
        )

    async def _until(self, condition: Callable[[], bool], timeout: float | None, otherwise: str) -> None:
        if checked.timeout(timeout) is None and not self._described:
            raise UsageError("the other side is unknown: add its signals first, or give a timeout")
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    if self._failure is not None:
                        raise ConnectError(self._failure.reason, self._failure.attempts)
                    await self._changed()
                    self._not_over()
        except TimeoutError:
            what = otherwise if self._described else "no description of the other side arrived"
            raise ConnectError(f"{what} within {timeout:g} s", self.attempts()) from None

    def connection(self, stream: int = 0, component: int = 1) -> Connection:
        """Returns the connection of a component, ready or not; UsageError if there is no such component.

        A connection that ended because no pair worked is replaced by a new one when the agent tries again.
        """
        if self._over:
            self._running()
        if not self._exists(stream, component):
            raise UsageError(f"there is no stream {stream} with a component {component}: give Agent(components=...)")
        return self._connection(stream, component)

    # ------------------------------------------------------------------------------------------------------- seeing

    @property
    def state(self) -> AgentState:
        return self._machine.agent.state

    def pairs(self) -> list[PairView]:
        """Returns every candidate pair as it is now, the highest priority first."""
        return self._machine.agent.pairs()

    def attempts(self) -> tuple[Attempt, ...]:
        """Returns every pair that does not work, and why."""
        return self._machine.agent.attempts()

    def why_pair(self, number: int) -> PairReport | None:
        """Returns the report of one pair, by its `id` in `pairs()`; None if there is no such pair any more."""
        return self._machine.agent.why_pair(checked.pair(number))

    def stats(self) -> dict[str, dict[str, Any]]:
        """Returns pairs, candidates and transports in the terms of W3C's webrtc-stats, by their ids.

        Each has a `type`. Durations are seconds; times of day, like `timestamp`, are milliseconds since 1970 as there.
        """
        return whole_statistics(self._machine.agent.stats(), self._connections)

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the start: of the agent, of packets that were dropped, and of the sockets."""
        counted = Counter(self._machine.agent.counters)
        counted.update(self._machine.counters)
        if self._transport is not None:
            counted.update(self._transport.counters)
        return dict(counted)

    async def events(self) -> AsyncIterator[AgentEvent]:
        """Yields every event from now on, for a live display, until the agent is closed."""
        kept: deque[AgentEvent] = deque(maxlen=EVENTS_KEPT)
        self._readers = (*self._readers, kept)
        try:
            while True:
                while kept:
                    yield kept.popleft()
                if self._over:
                    return
                await self._changed()
        finally:
            self._readers = tuple(reader for reader in self._readers if reader is not kept)

    # ------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: SessionEvent) -> None:
        match event:
            case DataReceived():
                self._connection(event.stream, event.component)._deliver(event.data)
                return
            case Restarted():
                self._candidates = ()
                self._failure = None
                self._end_removed()
            case LocalCandidateAdded():
                self._candidates += (event.local,)
            case RemoteAuthenticated():
                connection = self._connection(event.stream, event.component)
                self._running().accept_data(event.flow, event.remote, connection._deliver)
            case RemoteRevoked():
                if self._transport is not None:
                    self._transport.refuse_data(event.flow, event.remote)
            case SelectedPairChanged():
                self._selected_changed(event)
            case Failed():
                self._failure = event
            case AgentStateChanged(new=AgentState.FAILED):
                self._end_connections(event.reason, failed=True)
            case AgentStateChanged(new=AgentState.CLOSED):
                self._end_connections(event.reason)
            case AgentStateChanged(old=AgentState.FAILED):
                self._failure = None
            case _:
                pass
        if self._readers and isinstance(event, AgentEvent):
            self._emit(event)
        self._wake()

    def _emit(self, event: AgentEvent) -> None:
        for kept in self._readers:
            kept.append(event)

    def _selected_changed(self, event: SelectedPairChanged) -> None:
        connection = self._connection(event.stream, event.component)
        pair = event.pair
        connection._move(
            self._sender(connection, pair),
            0 if pair is None else pair.id,
            event.reason,
            max_length=0 if pair is None else max_length(pair, self._overhead(pair)),
        )

    def _connection(self, stream: int, component: int) -> Connection:
        for known in self._connections:
            if known.stream == stream and known.component == component:
                if not known._failed or self.state in {AgentState.FAILED, AgentState.CLOSED}:
                    return known
                self._connections = tuple(other for other in self._connections if other is not known)
        connection = Connection(stream=stream, component=component, agent=self, owner=self, receive_buffer=self._buffer)
        self._connections = (*self._connections, connection)
        return connection

    # --------------------------------------------------------------------------------------------- for its connections

    def _selected(self, stream: int, component: int) -> PairView | None:
        return self._machine.agent.selected(stream, component)

    def _max_datagram_size(self, pair: PairView) -> int:
        return max_datagram_size(pair, self._overhead(pair))

    def _writable(self, stream: int, component: int) -> bool:
        pair = self._selected(stream, component)
        return pair is None or self._transport is None or self._transport.writable(self._socket_flow(pair))

    def _socket_flow(self, pair: PairView) -> Flow:
        """Returns the flow whose socket sends the datagrams of a pair."""
        return pair.flow

    def _deliver_late(self, connection: Connection, data: bytes) -> None:
        """Passes data of a path that a closed connection had to the connection that replaced it, if there is one."""
        current = self._connection(connection.stream, connection.component)
        if not current.closed:
            current._deliver(data)

    def _receive_buffer_full(self, event: ReceiveBufferFull) -> None:
        """The receive buffer of a connection overflowed for the first time."""
        self._emit(event)
        self._wake()

    # ------------------------------------------------------------------------------------------------ for its meeting

    def _peer_left(self, reason: str, *, clean: bool) -> None:
        """The other side left its room: with its connections if it did so by itself, otherwise it is asked."""
        if not self._over and clean:
            self._running().call(self._machine.peer_left, f"the other side left: {reason}")
        elif not self._over:
            self._running().call(self._machine.ask_consent)

    def _peer_away(self, away: bool) -> None:
        """The other side lost its connection to the signaling server, or has it again."""
        if not self._over:
            self._running().call(self._machine.ask_consent if away else self._machine.stop_asking)

    @property
    def _abandoned(self) -> bool:
        """Whether the other side has closed its agent."""
        return self._machine.agent.generation.over is not None

    async def _connection_closed(self) -> None:
        """A user closed one of the connections: with the last one the agent stops sending.

        A failed agent sends nothing anyway, and stays open for a restart.
        """
        if self._over or self.state is AgentState.FAILED or not self._connections:
            return
        if all(connection.closed for connection in self._connections):
            self._stop()

    # -------------------------------------------------------------------------------------------------------- state

    @property
    def _over(self) -> bool:
        """Whether the agent is closed, or has stopped with its last connection."""
        return self._closed or self.state is AgentState.CLOSED

    def _running(self) -> AgentTransport:
        if self._over:
            raise UsageError("the agent is closed: make a new one")
        if self._transport is None:
            raise UsageError("the agent is not started: use it as `async with polynya.Agent(...) as agent`")
        return self._transport

    def _waitable(self) -> None:
        """Raises ConnectionClosed while the agent is being closed, UsageError unless it is running."""
        if self._closing:
            self._not_over()
        self._running()

    def _not_over(self) -> None:
        """Raises ConnectionClosed if the agent was closed: what a task waited for will not happen."""
        if self._over:
            raise ConnectionClosed(next((known._closed for known in self._connections if known._closed), CLOSED_REASON))

    def _call(self, method: Callable[..., R], *args: Any) -> R:
        """Calls a method of the machine, before or after the start."""
        if self._over:
            raise UsageError("the agent is closed: make a new one")
        if self._transport is not None:
            return self._transport.call(method, *args)
        result = method(*args, now=clock.now())
        self._wake()
        return result

    def _exists(self, stream: int, component: int) -> bool:
        streams = self._machine.agent.components
        return 0 <= checked.index(stream) < len(streams) and 1 <= checked.index(component) <= streams[stream]

    def _end_removed(self) -> None:
        """Ends the connections of streams that a restart has removed."""
        for connection in self._connections:
            if not self._exists(connection.stream, connection.component):
                connection._end("its stream was removed")
        self._connections = tuple(known for known in self._connections if not known.closed)

    def _end_connections(self, reason: str, *, failed: bool = False) -> None:
        for connection in self._connections:
            connection._end(reason, failed=failed)
