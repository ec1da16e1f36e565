"""Many agents on the sockets of one `Mux`: a server that talks with thousands of peers through a single port.

    async with polynya.Mux(port=5000) as mux, mux.agent() as agent:
        asyncio.create_task(send_all(agent.local_signals(), channel))
        ...
        connection = await agent.connect(timeout=30)

An agent of a mux is used like any other. Its candidates are the addresses of the mux, and those that STUN servers see,
which are asked once for all agents (`session.shared_bases`). Packets are routed by ufrag, then by remote address
(`session.mux`). A check for a ufrag that no agent has comes from an unknown peer: `on_unknown_peer` may make an agent
for it, and the check is then answered (libp2p's WebRTC Direct is such a protocol: libp2p/py-libp2p#1352).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from polynya.core.addresses import Address
from polynya.core.arguments import flag, function, number
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant
from polynya.core.machine import Closed
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.session.events import GatheringState
from polynya.session.interfaces import choose_addresses
from polynya.session.mux import AgentData, AgentEvent, FlowClosed, FlowOpened, UnknownUfrag
from polynya.session.mux import Mux as MuxMachine
from polynya.session.options import AddressFilter, HostAddress, InterfaceFilter
from polynya.session.report import SessionReport
from polynya.session.session import DataReceived

from .agent import PACER, RANDOM
from .connection import RECEIVE_BUFFER, check_receive_buffer
from .dns import ResolveName
from .driver import Driver
from .endpoint import CLOSED_REASON, Endpoint
from .interface_watch import HostChange, InterfaceWatch, follow_host
from .interfaces import list_interfaces
from .options import FAMILIES, check_callables, session_config
from .servers import IceServer
from .waiting import Waiting

R = TypeVar("R")

GONE: Final = "its address is gone from this host"
NOT_OPEN: Final = "the mux is not open: use it as `async with polynya.Mux(...) as mux`"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPeer:
    """A peer whose check is for a ufrag that no agent of the mux has. Nothing in the check is authenticated yet."""

    ufrag: str
    """The ufrag that the check is for: that of an agent which may be made now."""
    remote_ufrag: str
    """The peer's own ufrag."""
    remote: Address


class Mux(Waiting):
    """Sockets, one on each chosen address of this host, that any number of agents share.

    `servers` are STUN servers: behind a NAT they report the external address of the sockets. `port` is that of all
    sockets, 0 for any. `interfaces`, `addresses`, `families`, `loopback`, `nat_1to1` and `resolve` are those of an
    `Agent`. `follow_host`: whether `interfaces_changed` is called by itself when this host's addresses change.

    `on_unknown_peer` is called for each check for a ufrag that no agent has. It may make an agent with
    `mux.agent(ice=IceConfig(ufrag=peer.ufrag, ...))`, start it, and set the remote description that belongs to the
    ufrags. It should be quick, and accept only ufrags that it knows.

    Raises ConfigurationError if an option is wrong, and on entering if no socket can be opened.
    """

    def __init__(
        self,
        *,
        servers: Iterable[str | IceServer | Mapping[str, Any]] = (),
        port: int = 0,
        interfaces: Sequence[str] | InterfaceFilter | None = None,
        addresses: Sequence[str] | AddressFilter | None = None,
        families: Sequence[int] = FAMILIES,
        loopback: bool = False,
        nat_1to1: Mapping[str, str] | None = None,
        resolve: ResolveName | None = None,
        on_unknown_peer: Callable[[UnknownPeer], object] | None = None,
        follow_host: bool = True,
        trace: Tracer = NO_TRACE,
    ) -> None:
        super().__init__()
        check_callables(resolve=resolve, trace=trace)
        number("port", port, 0, 65535)
        if on_unknown_peer is not None:
            function("on_unknown_peer", on_unknown_peer, plain=True)
        self._config = session_config(
            servers=servers,
            controlling=None,
            components=None,
            policy="all",
            interfaces=interfaces,
            addresses=addresses,
            families=families,
            ports=(port, port) if port else None,
            loopback=loopback,
            nat_1to1=nat_1to1,
            ice=None,
        )
        if self._config.turn_servers:
            raise ConfigurationError(
                "a mux asks STUN servers only: a relay belongs to one agent, so give it to an Agent"
            )
        self._on_unknown_peer = on_unknown_peer
        self._resolve = resolve
        self._follows_host = flag("follow_host", follow_host)
        self._watch: InterfaceWatch | None = None
        self._trace = trace
        self._machine: MuxMachine[MuxedAgent] = MuxMachine(self._config, random=RANDOM, pacer=PACER, trace=trace)
        self._flow_ids = FlowIds()
        self._driver: Driver[MuxMachine[MuxedAgent]] | None = None
        self._opening: dict[Flow, HostAddress] = {}
        self._open: dict[Flow, Address] = {}
        self._agents: dict[MuxedAgent, None] = {}

    def __repr__(self) -> str:
        addresses = ", ".join(map(str, self.addresses)) or "not open"
        return f"<Mux {addresses}: {len(self)} agents>"

    # ------------------------------------------------------------------------------------------------------------ life

    async def __aenter__(self) -> Mux:
        if self._driver is not None:
            raise UsageError("this mux was started before: make a new one")
        self._driver = Driver(
            self._machine,
            on_event=self._on_event,
            flow_ids=self._flow_ids,
            trace=self._trace,
            resolve=self._resolve,
        )
        try:
            if self._follows_host:
                self._watch = follow_host(self)
            self.interfaces_changed()
            while self._opening:
                await self._changed()
        except BaseException:
            await self.close()
            raise
        if not self._open:
            await self.close()
            refused = "; ".join(f"{no.host}: {no.reason}" for no in self._machine.bases.refused)
            raise ConfigurationError(f"no socket could be opened: {refused}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes every agent, every connection and the sockets. Safe to call twice."""
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None
        for agent in list(self._agents):
            await agent.close()
        if self._driver is not None:
            await self._driver.aclose()

    # ---------------------------------------------------------------------------------------------------------- agents

    def agent(
        self,
        *,
        controlling: bool | None = None,
        ice: IceConfig | None = None,
        receive_buffer: int = RECEIVE_BUFFER,
        trace: Tracer = NO_TRACE,
    ) -> MuxedAgent:
        """Returns a new agent on these sockets. Packets reach it once it is started, as by entering its context."""
        check_callables(trace=trace)
        config = session_config(
            servers=(),
            controlling=controlling,
            components=None,
            policy="all",
            interfaces=None,
            addresses=None,
            families=self._config.families,
            ports=None,
            loopback=False,
            nat_1to1=None,
            ice=ice,
        ).ice
        if config.components != (1,):
            raise ConfigurationError("an agent of a mux has one component")
        buffer = check_receive_buffer(receive_buffer)
        return MuxedAgent(self, IceAgent(config, random=RANDOM, pacer=PACER, trace=trace.of("ice")), buffer)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of the sockets."""
        return tuple(self._open.values())

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the start: of datagrams that were dropped, by reason, and of the sockets."""
        counted = Counter(self._machine.counters)
        if self._driver is not None:
            counted.update(self._driver.counters)
        return dict(counted)

    def __len__(self) -> int:
        """The number of agents that are started."""
        return len(self._agents)

    def _join(self, agent: MuxedAgent) -> Driver[MuxMachine[MuxedAgent]]:
        """Adds an agent and returns the driver that moves its packets. Raises ValueError if its ufrag is taken."""
        if self._driver is None or self._driver.closed:
            raise UsageError(NOT_OPEN)
        self._driver.call(self._add, agent)
        self._agents[agent] = None
        return self._driver

    def _leave(self, agent: MuxedAgent) -> None:
        """Removes an agent; the sockets stay (pion/ice#550, #469)."""
        if self._agents.pop(agent, 0) is None and self._driver is not None:
            self._driver.call(self._machine.remove, agent)

    def _add(self, agent: MuxedAgent, *, now: Instant) -> None:
        self._machine.add(agent, agent._ice)
        self._machine.gather(agent, now=now)

    # ------------------------------------------------------------------------------------------------------ interfaces

    def interfaces_changed(self) -> bool:
        """Looks at the interfaces of this host again: opens sockets on new addresses, closes those on lost ones.

        STUN servers are asked again from all sockets, and every agent signals the new candidates. An agent whose
        connection used a closed socket restarts ICE. Returns whether any address came or went.
        """
        if self._driver is None or self._driver.closed:
            raise UsageError(NOT_OPEN)
        chosen, refused = choose_addresses(list_interfaces(), self._config)
        opened = [base.host for base in self._machine.bases.bases]
        known = [host.address for host in (*self._opening.values(), *opened)]
        hosts = [host.address for host in chosen]
        staying = {(no.interface, no.host) for no in refused if no.may_stay}
        gone = [
            base.flow
            for base in self._machine.bases.bases
            if base.host.address not in hosts and (base.host.interface, base.host.address.host) not in staying
        ]
        new = {self._flow_ids.new(): host for host in chosen if host.address not in known}
        self._machine.bases.refused = refused
        if not gone and not new:
            return False
        self._opening.update(new)
        cut = [agent for agent in self._agents if (pair := agent._ice.selected(0, 1)) is not None and pair.flow in gone]
        self._driver.call(self._move, gone, new, cut)
        return True

    def _host_changed(self, _change: HostChange) -> None:
        """Called by the watch of this host's interfaces."""
        if self._driver is not None and not self._driver.closed:
            self.interfaces_changed()

    def _move(self, gone: list[Flow], new: dict[Flow, HostAddress], cut: list[MuxedAgent], *, now: Instant) -> None:
        closed = [Closed(flow=flow, reason=GONE) for flow in gone]
        for agent in cut:
            self._machine.call(agent, lambda ice: ice.restart(now=now, gone=closed))
        for flow in gone:
            self._machine.close(flow, GONE, now=now)
        for flow, host in new.items():
            self._machine.open(flow, host)
        self._machine.network_changed(now=now)

    # ---------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: _MuxEvent) -> None:
        match event:
            case AgentEvent():
                event.name._on_event(event.event)
            case AgentData():
                event.name._on_event(DataReceived(event.stream, event.component, event.data))
            case UnknownUfrag():
                self._unknown(event)
            case FlowOpened():
                self._opening.pop(event.flow, None)
                self._open[event.flow] = event.local
            case FlowClosed():
                self._opening.pop(event.flow, None)
                self._open.pop(event.flow, None)
        self._wake()

    def _unknown(self, check: UnknownUfrag) -> None:
        if self._on_unknown_peer is None or self._driver is None:
            return
        remote = check.packet.remote
        self._on_unknown_peer(UnknownPeer(ufrag=check.ufrag, remote_ufrag=check.remote_ufrag, remote=remote))
        if self._machine.knows(check.ufrag):
            self._driver.take(check.packet)


class MuxedAgent(Endpoint):
    """An ICE agent on the sockets of a `Mux`, made by `Mux.agent`; it is used like an `Agent`.

    Leaving its context ends its connection. The sockets stay open.
    """

    __slots__ = ("__weakref__", "_ice", "_joined", "_mux", "_single")

    def __init__(self, mux: Mux, ice: IceAgent, receive_buffer: int) -> None:
        super().__init__(receive_buffer)
        self._ice = ice
        self._mux = mux
        self._single = _MuxedMachine(ice)
        self._joined: _MuxedTransport | None = None

    def start(self) -> None:
        """Adds the agent to the mux: packets reach it from now on. A second call changes nothing.

        Raises ConfigurationError if another agent of the mux has its ufrag, UsageError once the agent is closed.
        """
        if self._over:
            self._running()  # raises
        if self._joined is not None:
            return
        try:
            self._joined = _MuxedTransport(self._mux._join(self), self)
        except ValueError:
            raise ConfigurationError("another agent of the mux has this ufrag: each needs its own") from None

    async def close(self) -> None:
        """Closes its connection and leaves the mux. Safe to call twice."""
        if self._closed:
            return
        self._stop()
        self._closed = True
        self._end_connections(CLOSED_REASON)
        self._wake()

    def _stop(self) -> None:
        if self._joined is not None:
            self._mux._leave(self)

    @property
    def gathering_state(self) -> GatheringState:
        if self._joined is None:
            return GatheringState.NEW
        return GatheringState.GATHERING if self._mux._machine.gathers(self) else GatheringState.COMPLETE

    def interfaces_changed(self) -> bool:
        """Returns False: the sockets belong to the mux, which has a method of this name for all of its agents."""
        return False

    def why(self) -> SessionReport:
        return self._mux._machine.bases.why(self._ice)

    @property
    def _machine(self) -> _MuxedMachine:
        return self._single

    @property
    def _transport(self) -> _MuxedTransport | None:
        return self._joined


_MuxEvent = FlowOpened | FlowClosed | AgentEvent[MuxedAgent] | AgentData[MuxedAgent] | UnknownUfrag


class _MuxedMachine:
    """One ICE agent as the machine of an endpoint, in the place of a session."""

    __slots__ = ("agent",)

    counters: Mapping[str, int] = {}

    def __init__(self, agent: IceAgent) -> None:
        self.agent = agent

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None:  # fmt: skip
        _refuse_others(components)
        self.agent.set_remote(description, now=now)

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None:
        if candidate is None:
            self.agent.end_of_remote_candidates(now=now)
        else:
            self.agent.add_remote(candidate, now=now, stream=stream)

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        self.agent.set_controlling(controlling, now=now)

    def peer_left(self, reason: str, *, now: Instant) -> None:
        self.agent.peer_left(reason, now=now)

    def ask_consent(self, *, now: Instant) -> None:
        self.agent.ask_consent(now=now)

    def stop_asking(self, *, now: Instant) -> None:
        self.agent.stop_asking(now=now)

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description:
        _refuse_others(components)
        return self.agent.restart(now=now)


def _refuse_others(components: tuple[int, ...] | None) -> None:
    if components not in {None, (1,)}:
        raise UsageError("an agent of a mux has one component")


class _MuxedTransport:
    """The driver of a mux for one agent: after each call that agent is drained."""

    __slots__ = ("_agent", "_driver")

    counters: dict[str, int] = {}  # noqa: RUF012 - the sockets count for all of the agents

    def __init__(self, driver: Driver[MuxMachine[MuxedAgent]], agent: MuxedAgent) -> None:
        self._driver = driver
        self._agent = agent

    def call(self, method: Callable[..., R], *args: Any) -> R:
        return self._driver.call(
            lambda now: self._driver.machine.call(self._agent, lambda _: method(*args, now=now))
        )  # fmt: skip

    def accept_data(self, flow: Flow, remote: Address, deliver: Callable[[bytes], None]) -> None:
        self._driver.accept_data(flow, remote, deliver)

    def refuse_data(self, flow: Flow, remote: Address) -> None:
        """Does nothing if another agent has its peer there by now."""
        if self._driver.machine.reader(flow, remote) is None:
            self._driver.refuse_data(flow, remote)

    def sender(self, flow: Flow, remote: Address) -> Callable[[bytes], bool]:
        return self._driver.sender(flow, remote)

    def writable(self, flow: Flow) -> bool:
        return self._driver.writable(flow)
