"""Many ICE agents on sockets that none of them owns.

A server that talks with thousands of peers does so through one port. The mux holds the agents and finds the one that a
packet is for by key, never by offering it around:

    response            the agents that sent a check to (flow, remote), and of these the one whose transaction it is
                        else `shared_bases`, which asks STUN servers for all of them
    request, indication the agent whose ufrag begins the USERNAME; else the agent that knows (flow, remote)
    data                the agent whose authenticated check came from (flow, remote)

A request for a ufrag that nobody has is told as `UnknownUfrag` with the packet, so that an owner who can tell from the
ufrag what to do makes an agent and hands the packet in again (libp2p's WebRTC Direct does). An agent that leaves takes
no socket with it (pion/ice#550, #469).

An agent that `gather` is called for gets the sockets' addresses as its candidates, and what STUN servers see of them.
"""

from __future__ import annotations

import random as random_module
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Datagram, IcmpError, Input, Opened, Output, Resolved, Send, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.agent import IceAgent
from polynya.ice.config import IceConfig
from polynya.ice.events import IceEvent, InternalEvent, RemoteAuthenticated, RemoteRevoked, SelectedPairChanged
from polynya.stun.attributes import USERNAME
from polynya.stun.message import Received, decode, is_stun
from polynya.stun.registry import Class

from .options import HostAddress, SessionConfig
from .shared_bases import AddressFound, SharedBases

R = TypeVar("R")
NameT = TypeVar("NameT")

ALONE: Final = SessionConfig(ice=IceConfig())
"""No server is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOpened:
    """A shared socket stands; agents may be given candidates on it."""

    flow: Flow
    local: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowClosed:
    """A shared socket is gone; its agents were told."""

    flow: Flow
    reason: str


@dataclass(frozen=True, slots=True)
class AgentEvent(Generic[NameT]):
    """What one agent has to say."""

    name: NameT
    event: IceEvent | InternalEvent


@dataclass(slots=True)
class AgentData(Generic[NameT]):
    """Application data from the peer of one agent."""

    name: NameT
    stream: int
    component: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownUfrag:
    """A request for a ufrag that no agent has. Add an agent that has it and `receive` the packet again, or leave it."""

    ufrag: str
    remote_ufrag: str
    packet: Datagram


class Mux(Generic[NameT]):
    """A machine of machines. Agents are known by the names that their owner gives them."""

    def __init__(
        self,
        config: SessionConfig = ALONE,
        *,
        random: random_module.Random,
        pacer: Pacer,
        trace: Tracer = NO_TRACE,
    ) -> None:
        """`config` says which STUN servers are asked; what it says of ICE is each agent's own."""
        self.bases = SharedBases(config, random=random, pacer=pacer, trace=trace)
        self.counters: Counter[str] = Counter()
        self._gathering: dict[NameT, bool] = {}
        """Those who were given the sockets' addresses, and whether more may come."""
        self._trace = trace
        self._agents: dict[NameT, IceAgent] = {}
        self._ufrags: dict[str, NameT] = {}
        self._known_ufrags: dict[NameT, tuple[str, ...]] = {}
        self._asked: dict[FlowPath, dict[NameT, None]] = {}
        self._asked_by: dict[NameT, dict[FlowPath, None]] = {}
        self._readable: dict[FlowPath, tuple[NameT, int, int]] = {}
        self._selected: dict[tuple[NameT, int, int], FlowPath] = {}
        self._timers: Timers[NameT] = Timers()
        self._outputs: list[Output] = []
        self._events: list[FlowOpened | FlowClosed | AgentEvent[NameT] | AgentData[NameT] | UnknownUfrag] = []

    # ------------------------------------------------------------------------------------------------ sockets and data

    def open(self, flow: Flow, host: HostAddress) -> None:
        """Ask for a shared UDP socket on this address; `FlowOpened` or `FlowClosed` follows."""
        self.bases.open(flow, host)

    def close(self, flow: Flow, reason: str, *, now: Instant) -> None:
        """Close a shared socket; its agents are told, and `FlowClosed` follows."""
        self._outputs.append(Close(flow=flow))
        self.receive(Closed(flow=flow, reason=reason), now=now)

    def network_changed(self, *, now: Instant) -> None:
        """Servers may see the sockets at other addresses now: agents are told of those."""
        self.bases.network_changed(now=now)
        self._collect_bases(now=now)

    def send(self, name: NameT, data: bytes, stream: int = 0, component: int = 1) -> bool:
        """Send application data to the peer of an agent, on its selected pair; False while there is none."""
        path = self._selected.get((name, stream, component))
        if path is not None:
            self._outputs.append(Send(*path, data))
        return path is not None

    # ------------------------------------------------------------------------------------------------------- agents

    def add(self, name: NameT, agent: IceAgent) -> None:
        """Take an agent in. ValueError when the name or its ufrag is taken."""
        taken = [ufrag for ufrag in agent.local_ufrags if ufrag in self._ufrags]
        if name in self._agents or taken:
            raise ValueError(f"an agent named {name!r} or with one of its ufrags is there already")
        self._agents[name] = agent
        self._asked_by[name] = {}
        self._known_ufrags[name] = ()
        self._collect(name)

    def gather(self, name: NameT, *, now: Instant) -> None:
        """Give an agent the addresses of the sockets: what is known at once, the rest as it is found.

        Servers are asked when the first agent needs them, and once for all.
        """
        self.bases.want(now=now)
        self._gathering[name] = True
        for gathered in self.bases.candidates():
            self._agents[name].add_local(gathered, now=now)
        self._collect(name)
        self._collect_bases(now=now)
        if self.bases.complete:
            self._complete(name, now=now)

    def gathers(self, name: NameT) -> bool:
        """Whether an agent that was to gather may yet be given addresses."""
        return self._gathering.get(name, False)

    def remove(self, name: NameT, *, now: Instant) -> None:
        """Close an agent and forget it; the sockets stay. KeyError when there is none of that name."""
        agent = self._agents[name]
        if self._gathering.pop(name, None) is not None:
            self.bases.release(now=now)
        agent.close(now=now)
        self._collect(name)
        for path in self._asked_by.pop(name):
            self._forget_asked(path, name)
        for ufrag in self._known_ufrags.pop(name):
            del self._ufrags[ufrag]
        for stream, count in enumerate(agent.config.components):
            for component in range(1, count + 1):
                self._selected.pop((name, stream, component), None)
        self._timers.cancel(name)
        del self._agents[name]

    def call(self, name: NameT, act: Callable[[IceAgent], R]) -> R:
        """Do something with one agent: `mux.call("bob", lambda agent: agent.set_remote(description, now))`."""
        result = act(self._agents[name])
        self._collect(name)
        return result

    def __getitem__(self, name: NameT) -> IceAgent:
        """An agent, to look at; what changes it goes through `call`."""
        return self._agents[name]

    def reader(self, flow: Flow, remote: Address) -> NameT | None:
        """Whose data it is that comes from there."""
        place = self._readable.get((flow, remote))
        return None if place is None else place[0]

    def knows(self, ufrag: str) -> bool:
        """Whether an agent has this ufrag."""
        return ufrag in self._ufrags

    def __contains__(self, name: object) -> bool:
        return name in self._agents

    def __len__(self) -> int:
        return len(self._agents)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Input, *, now: Instant) -> None:
        match input:
            case Datagram():
                self._datagram(input, now=now)
            case IcmpError() | SendFailed():
                self.bases.receive(input, now=now)
                for name in list(self._asked.get((input.flow, input.remote), ())):
                    self._agents[name].receive(input, now=now)
                    self._collect(name)
            case Opened():
                self._events.append(FlowOpened(flow=input.flow, local=input.local))
                self.bases.opened(input, now=now)
            case Resolved():
                self.bases.receive(input, now=now)
            case Closed():
                self.bases.closed(input.flow, input.reason, now=now)
                for name, agent in list(self._agents.items()):
                    agent.receive(input, now=now)
                    self._collect(name)
                self._events.append(FlowClosed(flow=input.flow, reason=input.reason))
            case _:
                self.counters["not for a mux"] += 1
        self._collect_bases(now=now)

    def tick(self, *, now: Instant) -> None:
        self.bases.tick(now=now)
        self._collect_bases(now=now)
        for name in self._timers.due(now=now):
            self._agents[name].tick(now=now)
            self._collect(name)

    def next_timer(self) -> Instant | None:
        due = (self._timers.next(), self.bases.next_timer())
        return min((at for at in due if at is not None), default=None)

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs + self.bases.outputs(), []
        return drained

    def events(self) -> list[FlowOpened | FlowClosed | AgentEvent[NameT] | AgentData[NameT] | UnknownUfrag]:
        drained, self._events = self._events, []
        return drained

    # ----------------------------------------------------------------------------------------------------- dispatch

    def _datagram(self, datagram: Datagram, *, now: Instant) -> None:
        path = (datagram.flow, datagram.remote)
        if not is_stun(datagram.data):
            place = self._readable.get(path)
            if place is None:
                self._drop("unauthenticated", "data from where no authenticated check came", datagram, now=now)
            else:
                self._events.append(AgentData(*place, datagram.data))
            return
        try:
            message = decode(datagram.data)
        except DecodeError as error:
            self._drop("malformed", str(error), datagram, now=now)
            return
        received = Received(datagram.flow, datagram.remote, message, datagram.data, datagram.packet)
        if message.cls is Class.SUCCESS or message.cls is Class.ERROR:
            name = self._asker(path, message.transaction_id)
            if name is None and self.bases.expects(*path):
                self.bases.receive(received, now=now)
                return
            if name is None:
                self._drop("unexpected", "an answer to nothing that was asked", datagram, now=now)
                return
        else:
            ufrag, _, remote_ufrag = (message.get(USERNAME) or "").partition(":")
            found = self._ufrags.get(ufrag) if ufrag else self._readable.get(path, (None,))[0]
            if found is None:
                self._stranger(ufrag, remote_ufrag, datagram, now=now)
                return
            name = found
        self._agents[name].receive(received, now=now)
        self._collect(name)

    def _asker(self, path: FlowPath, transaction_id: bytes) -> NameT | None:
        """Whose transaction it is, among those who sent there: mostly one, several where peers share an address."""
        for name in self._asked.get(path, ()):
            if self._agents[name].owns_transaction(transaction_id):
                return name
        return None

    def _stranger(self, ufrag: str, remote_ufrag: str, datagram: Datagram, *, now: Instant) -> None:
        if ufrag:
            self.counters["unknown ufrag"] += 1
            self._events.append(UnknownUfrag(ufrag=ufrag, remote_ufrag=remote_ufrag, packet=datagram))
        else:
            self._drop("nobody's", "a request without a ufrag from where no agent expects one", datagram, now=now)

    def _drop(self, count: str, reason: str, datagram: Datagram, *, now: Instant) -> None:
        self.counters[count] += 1
        if self._trace.enabled:
            self._trace.message_dropped(reason, now=now, remote=str(datagram.remote), packet=datagram.packet)

    # ----------------------------------------------------------------------------------------------------- children

    def _collect(self, name: NameT) -> None:
        """Drain one agent, and keep the keys by which it is found in step with it."""
        agent = self._agents[name]
        asked_by = self._asked_by[name]
        for output in agent.outputs():
            self._outputs.append(output)
            if isinstance(output, Send):
                path = (output.flow, output.remote)
                if path not in asked_by:
                    asked_by[path] = None
                    self._asked.setdefault(path, {})[name] = None
        for event in agent.events():
            if isinstance(event, RemoteAuthenticated):
                self._readable[event.flow, event.remote] = (name, event.stream, event.component)
            elif (
                isinstance(event, RemoteRevoked) and self._readable.get((event.flow, event.remote), (None,))[0] == name
            ):
                del self._readable[event.flow, event.remote]
            elif isinstance(event, SelectedPairChanged):
                place = (name, event.stream, event.component)
                if event.pair is None:
                    self._selected.pop(place, None)
                else:
                    self._selected[place] = (event.pair.flow, event.pair.remote_address)
            self._events.append(AgentEvent(name, event))
        if (ufrags := agent.local_ufrags) != self._known_ufrags[name]:
            for ufrag in self._known_ufrags[name]:
                del self._ufrags[ufrag]
            self._ufrags.update(dict.fromkeys(ufrags, name))
            self._known_ufrags[name] = ufrags
        due = agent.next_timer()
        if due is None:
            self._timers.cancel(name)
        elif self._timers.at(name) != due:
            self._timers.set(name, due)

    def _collect_bases(self, *, now: Instant) -> None:
        """What was found is a candidate of every agent that gathers."""
        for event in self.bases.events():
            for name in list(self._gathering):
                if isinstance(event, AddressFound):
                    self._agents[name].add_local(event.gathered, now=now)
                    self._collect(name)
                elif self._gathering[name]:
                    self._complete(name, now=now)

    def _complete(self, name: NameT, *, now: Instant) -> None:
        self._gathering[name] = False
        self._agents[name].end_of_local_candidates(now=now)
        self._collect(name)

    def _forget_asked(self, path: FlowPath, name: NameT) -> None:
        askers = self._asked[path]
        del askers[name]
        if not askers:
            del self._asked[path]
