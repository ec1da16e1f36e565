"""Many agents on the sockets of one: a server that talks with thousands of peers through a single port.

    async with polynya.Mux(port=5000) as mux, mux.agent() as agent:
        asyncio.create_task(send_all(agent.signals(), channel))
        ...
        connection = await agent.connect(timeout=30)

An agent of a mux is used like any other; it has the mux's addresses as its candidates, and those that STUN servers see,
which are asked once for all agents (`session.shared_bases`). Whose a packet is says its ufrag or where it came from
(`session.mux`). A check for a ufrag that nobody has is a stranger's:
`on_unknown_peer` may make the agent that it is for, and the check is then answered (libp2p's WebRTC Direct is such a
protocol: libp2p/py-libp2p#1352).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.agent import IceAgent
from polynya.ice.config import IceConfig
from polynya.session.interfaces import choose_addresses
from polynya.session.mux import AgentData, AgentEvent, FlowClosed, FlowOpened, UnknownUfrag
from polynya.session.mux import Mux as MuxMachine
from polynya.session.options import AddressFilter, HostAddress, InterfaceFilter
from polynya.session.session import DataReceived

from .agent import PACER, RANDOM
from .driver import Driver
from .interfaces import list_interfaces
from .muxed import MuxedAgent
from .options import session_config
from .servers import IceServer
from .waiting import Waiting

NOT_OPEN: Final = "the mux is not open: use it as `async with polynya.Mux(...) as mux`"

MuxEvent = FlowOpened | FlowClosed | AgentEvent[MuxedAgent] | AgentData[MuxedAgent] | UnknownUfrag


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPeer:
    """Somebody whose check is for a ufrag that no agent of the mux has. Nothing it says is proven yet."""

    ufrag: str
    """The one that it believes to be ours."""
    remote_ufrag: str
    """Its own."""
    remote: Address


class Mux(Waiting):
    """Sockets, one on each chosen address of this host, that any number of agents share.

    `servers` are STUN servers' URIs: behind a NAT they tell what address the sockets have outside. `port` is that of
    all sockets, 0 for any. `interfaces`, `addresses`, `families`, `loopback` and `external` say which addresses, as for
    an `Agent`. `on_unknown_peer` is called for each check that is for nobody: it may make an agent with
    `mux.agent(ice=IceConfig(ufrag=stranger.ufrag, ...))`, start it and `set_remote` what the ufrags stand for; so it
    should be quick, and know which ufrags to believe.

    Raises ConfigurationError for what cannot be, and on entering where no socket can be opened.
    """

    def __init__(
        self,
        *,
        servers: Iterable[str | IceServer] = (),
        port: int = 0,
        interfaces: Sequence[str] | InterfaceFilter | None = None,
        addresses: Sequence[str] | AddressFilter | None = None,
        families: Sequence[int] = (6, 4),
        loopback: bool = False,
        external: Mapping[str, str] | None = None,
        on_unknown_peer: Callable[[UnknownPeer], object] | None = None,
        trace: Tracer = NO_TRACE,
    ) -> None:
        super().__init__()
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
            external=external,
            ice=None,
        )
        if self._config.turn_servers:
            raise ConfigurationError("a mux asks STUN servers only: a relay is one agent's own, so give it to an Agent")
        self._on_stranger = on_unknown_peer
        self._trace = trace
        self.machine: MuxMachine[MuxedAgent] = MuxMachine(self._config, random=RANDOM, pacer=PACER, trace=trace)
        """What finds whose a packet is; what changes it goes through this object."""
        self._flow_ids = FlowIds()
        self._driver: Driver[MuxMachine[MuxedAgent]] | None = None
        self._opening: dict[Flow, HostAddress] = {}
        self._open: dict[Flow, Address] = {}
        self._members: dict[MuxedAgent, None] = {}

    # ------------------------------------------------------------------------------------------------------------ life

    async def __aenter__(self) -> Mux:
        if self._driver is not None:
            raise UsageError("this mux was started before: make a new one")
        self._driver = Driver(self.machine, on_event=self._on_event, flow_ids=self._flow_ids, trace=self._trace)
        try:
            self.interfaces_changed()
            while self._opening:
                await self._changed()
        except BaseException:
            await self.close()
            raise
        if not self._open:
            await self.close()
            refused = "; ".join(f"{no.host}: {no.reason}" for no in self.machine.bases.refused)
            raise ConfigurationError(f"no socket could be opened: {refused}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every agent, every connection and the sockets. Safe to call twice."""
        for member in list(self._members):
            await member.close()
        if self._driver is not None:
            await self._driver.aclose()

    # ---------------------------------------------------------------------------------------------------------- agents

    def agent(
        self,
        *,
        controlling: bool | None = None,
        ice: IceConfig | None = None,
        trace: Tracer = NO_TRACE,
    ) -> MuxedAgent:
        """A new agent on these sockets. It is there for packets once it is started, as by entering its context."""
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
            external=None,
            ice=ice,
        ).ice
        if config.components != (1,):
            raise ConfigurationError("an agent of a mux has one component: packets for others could not be told apart")
        return MuxedAgent(self, IceAgent(config, random=RANDOM, pacer=PACER, trace=trace.of("ice")))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the sockets stand."""
        return tuple(self._open.values())

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped and why, and what the sockets counted, since the start."""
        counted = Counter(self.machine.counters)
        if self._driver is not None:
            counted.update(self._driver.counters)
        return dict(counted)

    def __len__(self) -> int:
        """How many agents there are."""
        return len(self._members)

    def join(self, member: MuxedAgent) -> Driver[MuxMachine[MuxedAgent]]:
        """Let an agent's packets reach it; the driver that moves them. ValueError where another has its ufrag."""
        if self._driver is None or self._driver.closed:
            raise UsageError(NOT_OPEN)
        self._driver.call(self._add, member)
        self._members[member] = None
        return self._driver

    def leave(self, member: MuxedAgent) -> None:
        """Let an agent go; the sockets stay (pion/ice#550, #469)."""
        if self._members.pop(member, 0) is None and self._driver is not None:
            self._driver.call(self.machine.remove, member)

    def _add(self, member: MuxedAgent, *, now: Instant) -> None:
        self.machine.add(member, member.ice)
        self.machine.gather(member, now=now)

    # ------------------------------------------------------------------------------------------------------ interfaces

    def interfaces_changed(self) -> bool:
        """Look at the interfaces of this host again: open sockets on addresses that came, close those of which went.

        STUN servers are asked anew from all sockets. Every agent is told what is found, and signals it; one whose
        connection went through a socket that is gone restarts. Returns whether any address came or went.
        """
        if self._driver is None or self._driver.closed:
            raise UsageError(NOT_OPEN)
        chosen, refused = choose_addresses(list_interfaces(), self._config)
        standing = [*self._opening.values(), *(base.host for base in self.machine.bases.bases)]
        gone = [base.flow for base in self.machine.bases.bases if base.host not in chosen]
        new = {self._flow_ids.new(): host for host in chosen if host not in standing}
        self.machine.bases.refused = refused
        if not gone and not new:
            return False
        self._opening.update(new)
        cut = [
            member for member in self._members if (pair := member.ice.selected(0, 1)) is not None and pair.flow in gone
        ]
        self._driver.call(self._move, gone, new)
        for member in cut:
            member.restart()
        return True

    def _move(self, gone: list[Flow], new: dict[Flow, HostAddress], *, now: Instant) -> None:
        for flow in gone:
            self.machine.close(flow, "its address is gone from this host", now=now)
        for flow, host in new.items():
            self.machine.open(flow, host)
        self.machine.network_changed(now=now)

    # ---------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: MuxEvent) -> None:
        match event:
            case AgentEvent():
                event.name.take(event.event)
            case AgentData():
                event.name.take(DataReceived(event.stream, event.component, event.data))
            case UnknownUfrag():
                self._stranger(event)
            case FlowOpened():
                self._opening.pop(event.flow, None)
                self._open[event.flow] = event.local
            case FlowClosed():
                self._opening.pop(event.flow, None)
                self._open.pop(event.flow, None)
        self._wake()

    def _stranger(self, unknown: UnknownUfrag) -> None:
        if self._on_stranger is None or self._driver is None:
            return
        remote = unknown.packet.remote
        self._on_stranger(UnknownPeer(ufrag=unknown.ufrag, remote_ufrag=unknown.remote_ufrag, remote=remote))
        if self.machine.knows(unknown.ufrag):
            self._driver.take(unknown.packet)
