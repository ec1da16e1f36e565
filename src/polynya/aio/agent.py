"""The public agent: a session on the real sockets of this host, driven by the running event loop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal

from polynya.core.empty import NOTHING
from polynya.core.errors import Attempt, ConnectError, PolynyaError, UsageError
from polynya.core.flows import FlowIds
from polynya.core.machine import InterfacesChanged
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Candidate, LocalCandidate
from polynya.ice.config import IceConfig
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
from polynya.ice.sdp import UnsupportedCandidate
from polynya.session.gathering import GatheringState
from polynya.session.options import AddressFilter, InterfaceFilter, RelayServer
from polynya.session.relay_events import CredentialsWanted
from polynya.session.report import SessionReport
from polynya.session.session import DataReceived, Session, SessionEvent
from polynya.session.signals import read_signal, write_signal

from .connection import Connection
from .driver import Driver
from .interfaces import list_interfaces
from .options import session_config
from .packet_trace import Capture
from .relaying import RelayedPath
from .servers import IceServer
from .statistics import whole_statistics

EVENTS_KEPT: Final = 4096
"""Events that wait for a slow reader of `Agent.events` before its oldest are dropped."""

RANDOM: Final = random.SystemRandom()
"""The randomness of this process, the system's; one for all agents, for each would keep 2.5 KB it does not use."""

PACER: Final = Pacer()
"""The pacer of this process (RFC 8445, section 14.2): all agents share it."""


AskCredentials = Callable[[str, str], Awaitable[tuple[str, str]]]
"""Given a TURN server's URI and its realm, answers with a user name and password."""


class Agent:
    """One end of a connection that is to be: gathers, checks, and hands out connections.

    Use it as an async context manager: entering starts to gather, leaving closes every socket. Signal `description` and
    each of `candidates()` to the other side by any means, and give `set_remote` and `add_candidate` what it signals:

        async with polynya.Agent(servers=["stun:stun.example.org"], controlling=True) as agent:
            await channel.send(agent.description)
            ...
            connection = await agent.connect(timeout=30)

    `servers`     URIs (RFC 7064, 7065); a TURN server as `IceServer(uri, username, password)`
    `controlling` one side should be, the other not; if both say the same, one more round trip decides
    `components`  how many each stream has: `(1,)` is one stream of one, `(2, 1)` are two streams
    `policy`      `all`, `no-host` (host addresses are told to nobody) or `relay` (no address of this host is)
    `interfaces`, `addresses`  which to use: names, or a callable that is asked for each
    `families`    4 and 6, best first
    `ports`       the lowest and the highest local port
    `loopback`    also gather loopback addresses, which only reach this host
    `external`    local address to external one, of a NAT that maps 1:1: a candidate without a STUN server
    `ice`         everything else about ICE, as an IceConfig; what is given above goes first
    `credentials` is asked for others, with URI and realm, when a TURN server takes those that it had no longer
    `trace`, `capture`  what is told of everything that happens, and what gets the packets

    Raises ConfigurationError, before anything is opened, for what cannot be.
    """

    __slots__ = (
        "__weakref__",
        "_ask_credentials",
        "_asking",
        "_candidates",
        "_capture",
        "_closed",
        "_connections",
        "_described",
        "_driver",
        "_failure",
        "_flow_ids",
        "_readers",
        "_relayed",
        "_session",
        "_trace",
        "_waiters",
    )

    def __init__(
        self,
        *,
        servers: Iterable[str | IceServer] = (),
        controlling: bool | None = None,
        components: Sequence[int] | None = None,
        policy: Literal["all", "no-host", "relay"] = "all",
        interfaces: Sequence[str] | InterfaceFilter | None = None,
        addresses: Sequence[str] | AddressFilter | None = None,
        families: Sequence[int] = (4, 6),
        ports: tuple[int, int] | None = None,
        loopback: bool = False,
        external: Mapping[str, str] | None = None,
        ice: IceConfig | None = None,
        credentials: AskCredentials | None = None,
        trace: Tracer = NO_TRACE,
        capture: Capture | None = None,
    ) -> None:
        config = session_config(
            servers=servers,
            controlling=controlling,
            components=components,
            policy=policy,
            interfaces=interfaces,
            addresses=addresses,
            families=families,
            ports=ports,
            loopback=loopback,
            external=external,
            ice=ice,
        )
        flow_ids = FlowIds()
        self._session = Session(config, random=RANDOM, pacer=PACER, flow_ids=flow_ids, trace=trace)
        self._flow_ids = flow_ids
        self._trace = trace
        self._capture = capture
        self._driver: Driver[Session] | None = None
        self._candidates: tuple[LocalCandidate, ...] = ()
        # Few entries or none at all for most agents: tuples and shared empty mappings, replaced when they change.
        self._connections: tuple[Connection, ...] = ()
        self._relayed: Mapping[tuple[int, int], RelayedPath] = NOTHING
        self._ask_credentials = credentials
        self._asking: Mapping[str, asyncio.Task[None]] = NOTHING
        self._described = False
        self._failure: ConnectError | None = None
        self._closed = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        self._readers: tuple[deque[SessionEvent], ...] = ()

    # --------------------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> Agent:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to gather; entering the context does this. Must be called inside a running event loop."""
        if self._driver is not None or self._closed:
            raise UsageError("this agent was started before: make a new one for each connection")
        self._driver = Driver(
            self._session,
            on_event=self._on_event,
            flow_ids=self._flow_ids,
            trace=self._trace,
            capture=self._capture,
        )
        self._driver.call(self._session.start, InterfacesChanged(interfaces=list_interfaces()))

    async def close(self) -> None:
        """Close every connection and every socket. Safe to call twice, and to cancel: the sockets close either way."""
        if self._closed:
            return
        self._closed = True
        driver = self._driver
        if driver is not None and not driver.closed:
            driver.call(self._session.close)
        for connection in self._connections:
            connection._end("the agent was closed")  # a connection is its agent's part
        self._wake()
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        if driver is not None:
            await driver.aclose()
        await asyncio.gather(*asking, return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------- signaling

    @property
    def description(self) -> Description:
        """What the other side's `set_remote` needs to know: credentials and options."""
        return self._session.agent.local_description

    @property
    def controlling(self) -> bool:
        """The role of this side (RFC 8445, section 6.1.1); it may be set until `connect` is called."""
        return self._session.agent.controlling

    @controlling.setter
    def controlling(self, controlling: bool) -> None:
        if self._driver is None:
            raise UsageError("the agent is not started: use it as `async with polynya.Agent(...) as agent`")
        self._driver.call(self._session.set_controlling, controlling)

    async def candidates(self, stream: int = 0) -> AsyncIterator[Candidate]:
        """The candidates of a stream as they are found, from the first one on; ends when gathering has ended.

        After a restart they are told again, for the new generation.
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
        """Everything that the other side has to be told, as texts for its `signalled`, for the life of the agent.

        The description comes first, each candidate when it is found (RFC 8838), at last that there are no more; after
        a restart of either side all of it again. Each text is a fragment as in RFC 8840. Any channel will do that keeps
        others from reading it: the texts hold the password of the checks.
        """
        async for signal in self.to_signal():
            if isinstance(signal, LocalCandidate):
                yield write_signal(self.description, [(signal.stream, signal.candidate)], ended=False)
            else:
                yield write_signal(self.description, ended=signal is None)

    def signalled(self, text: str) -> None:
        """What the other side's `signals` told, in any order, any number of times. DecodeError for what is none."""
        signal, driver = read_signal(text), self._running()
        self.set_remote(signal.description)
        for stream, candidate in signal.candidates:
            driver.call(self._session.add_remote, candidate, stream)
        remote = self._session.agent.remote_description
        if signal.ended and signal.description.same_credentials(remote):
            driver.call(self._session.add_remote, None)

    @property
    def gathering_state(self) -> GatheringState:
        return self._session.gathering.state

    def set_remote(self, description: Description) -> None:
        """What the other side signalled as its `description`."""
        self._running().call(self._session.set_remote, description)
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
        self._running().call(self._session.add_remote, candidate, stream)

    # ------------------------------------------------------------------------------------------------------ restart

    def restart(self) -> Description:
        """Begin anew with new credentials (RFC 8445, section 9); signal what is returned, and `candidates()` again.

        Connections stay and go on over the old pair until a new one is nominated. When the other side restarts, giving
        its new description to `set_remote` does the same here: a `Restarted` event tells to signal `description` anew.
        """
        return self._running().call(self._session.restart)

    def interfaces_changed(self) -> bool:
        """Look at the interfaces of this host again: if addresses came or went, gather on them and restart.

        Returns whether it restarted; then signal `description` and `candidates()` as after `restart`.
        """
        return self._running().call(self._session.interfaces_changed, InterfacesChanged(interfaces=list_interfaces()))

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
        streams = self._session.agent.components
        if not 0 <= stream < len(streams) or not 1 <= component <= streams[stream]:
            raise UsageError(f"there is no stream {stream} with a component {component}: give Agent(components=...)")
        return self._connection(stream, component)

    # ------------------------------------------------------------------------------------------------------- seeing

    @property
    def state(self) -> AgentState:
        return self._session.agent.state

    def pairs(self) -> list[PairView]:
        """Every pair as it is now, by priority."""
        return self._session.agent.pairs()

    def attempts(self) -> tuple[Attempt, ...]:
        """Every pair that does not work, and why."""
        return self._session.agent.attempts()

    def why(self) -> SessionReport:
        """Why it is as it is: what was gathered and what not, and each pair with every transition's reason."""
        return self._session.why()

    def stats(self) -> dict[str, dict[str, Any]]:
        """Pairs, candidates and transports in the terms of W3C's webrtc-stats, by their ids; each has a `type`.

        Durations are seconds, but `timestamp`, which is milliseconds since 1970 as it is there.
        """
        return whole_statistics(self._session.agent.statistics(), self._connections)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the start: by the agent, by what found each packet's machine, and by the sockets."""
        counted = Counter(self._session.agent.stats())
        counted.update(self._session.counters)
        if self._driver is not None:
            counted.update(self._driver.counters)
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
            case CredentialsWanted():
                self._renew(event)
            case Restarted():
                self._candidates = ()
                self._failure = None
            case LocalCandidateAdded():
                self._candidates += (event.local,)
            case RemoteAuthenticated():
                connection = self._connection(event.stream, event.component)
                self._running().accept_data(event.flow, event.remote, connection.deliver)
            case RemoteRevoked():
                if self._driver is not None:
                    self._driver.refuse_data(event.flow, event.remote)
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
        pair, place = event.pair, (event.stream, event.component)
        sender: Callable[[bytes], bool] | None = None
        if (left := self._relayed.get(place)) is not None:
            self._relayed = {key: path for key, path in self._relayed.items() if key != place}
            left.close()
        if pair is not None and self._session.gathering.relays.owns(pair.flow):
            path = RelayedPath(
                self._running(),
                pair.flow,
                pair.remote_address,
                connection.deliver,
                stream=event.stream,
                component=event.component,
            )
            self._relayed = {**self._relayed, place: path}
            sender = path.send
        elif pair is not None:
            sender = self._running().sender(pair.flow, pair.remote_address)
        connection._move(sender, 0 if pair is None else pair.id, event.reason)

    def _renew(self, wanted: CredentialsWanted) -> None:
        """Ask the user for credentials, one question for each server at a time."""
        uri = str(wanted.server.uri)
        if self._ask_credentials is None:
            self._running().call(self._session.no_credentials, wanted)
        elif uri not in self._asking:
            task = asyncio.create_task(self._ask(wanted, self._ask_credentials), name=f"credentials for {uri}")
            self._asking = {**self._asking, uri: task}
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = {uri: other for uri, other in self._asking.items() if other is not task}

    async def _ask(self, wanted: CredentialsWanted, ask: AskCredentials) -> None:
        try:
            username, password = await ask(str(wanted.server.uri), wanted.realm)
        except PolynyaError:  # there are none to be had: a relay that stands ends at its time, and `why` tells
            if not self._closed:
                self._running().call(self._session.no_credentials, wanted)
            return
        if not self._closed:
            server = RelayServer(wanted.server.uri, username, password)
            self._running().call(self._session.set_credentials, server)

    def _connection(self, stream: int, component: int) -> Connection:
        for known in self._connections:
            if known.stream == stream and known.component == component:
                return known
        connection = Connection(stream=stream, component=component, agent=self)
        self._connections = (*self._connections, connection)
        return connection

    def selected(self, stream: int = 0, component: int = 1) -> PairView | None:
        """The pair that a component's data goes on now, if there is one."""
        return self._session.agent.selected(stream, component)

    async def connection_closed(self) -> None:
        """A connection was closed by its user: with the last one the agent closes."""
        if all(connection.closed for connection in self._connections):
            await self.close()

    # ------------------------------------------------------------------------------------------------------ waiting

    def _running(self) -> Driver[Session]:
        if self._closed:
            raise UsageError("the agent is closed: make a new one")
        if self._driver is None:
            raise UsageError("the agent is not started: use it as `async with polynya.Agent(...) as agent`")
        return self._driver

    async def _changed(self) -> None:
        """Wait until something has happened since the call."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
