"""Mux: many ICE agents on shared sockets.

A server talks with thousands of peers through one port. The mux holds the agents and routes each packet by key:

    response            the agent with this transaction, of those that sent a check to (flow, remote)
                        else `shared_bases`, which asks STUN servers for all agents
    request, indication the agent whose ufrag begins the USERNAME; else the agent that knows (flow, remote)
    data                the agent with an authenticated check from (flow, remote)

A request for a ufrag that no agent has is emitted as `UnknownUfrag` with the packet. An owner that can serve the ufrag
adds an agent and passes the packet in again, as libp2p's WebRTC Direct does. The sockets stay when an agent is removed
(pion/ice#550, #469). `gather` gives an agent the sockets' addresses as candidates, with the mappings that STUN servers
report.
"""

from __future__ import annotations

import random as random_module
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    IcmpError,
    Input,
    Opened,
    Output,
    Resolve,
    Resolved,
    Send,
    SendFailed,
)
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
"""Options without STUN servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOpened:
    """A shared socket was opened; agents may get candidates on it."""

    flow: Flow
    local: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowClosed:
    """A shared socket was closed; its agents have been informed."""

    flow: Flow
    reason: str


@dataclass(frozen=True, slots=True)
class AgentEvent(Generic[NameT]):
    """An event of one agent."""

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
    """A request names a ufrag that no agent has. To serve it, add an agent with it and `receive` the packet again."""

    ufrag: str
    remote_ufrag: str
    packet: Datagram


class Mux(Generic[NameT]):
    """Machine of many ICE agents, by the names that the owner gives them."""

    def __init__(
        self,
        config: SessionConfig = ALONE,
        *,
        random: random_module.Random,
        pacer: Pacer,
        trace: Tracer = NO_TRACE,
    ) -> None:
        """`config` has the STUN servers; its ICE options are unused, since each agent has its own."""
        self._outbox: Queue[Output] = Queue()
        self.bases = SharedBases(config, random=random, pacer=pacer, outbox=self._outbox, trace=trace)
        self.counters: Counter[str] = Counter()
        self._gathering: dict[NameT, bool] = {}
        """The agents that gather, and whether more candidates may follow."""
        self._trace = trace
        self._agents: dict[NameT, IceAgent] = {}
        self._ufrags: dict[str, NameT] = {}
        self._known_ufrags: dict[NameT, tuple[str, ...]] = {}
        self._looking_up: dict[Resolve, list[NameT]] = {}
        """The agents that wait for the answer to a query."""
        self._asked: dict[FlowPath, dict[NameT, None]] = {}
        self._asked_by: dict[NameT, dict[FlowPath, None]] = {}
        self._readable: dict[FlowPath, tuple[NameT, int, int]] = {}
        self._selected: dict[tuple[NameT, int, int], FlowPath] = {}
        self._timers: Timers[NameT] = Timers()
        self._events: Queue[FlowOpened | FlowClosed | AgentEvent[NameT] | AgentData[NameT] | UnknownUfrag] = Queue()

    # ------------------------------------------------------------------------------------------------ sockets and data

    def open(self, flow: Flow, host: HostAddress) -> None:
        """Open a shared UDP socket on this address; `FlowOpened` or `FlowClosed` follows."""
        self.bases.open(flow, host)

    def close(self, flow: Flow, reason: str, *, now: Instant) -> None:
        """Close a shared socket and inform its agents; `FlowClosed` follows."""
        self._outbox.append(Close(flow=flow))
        self.receive(Closed(flow=flow, reason=reason), now=now)

    def network_changed(self, *, now: Instant) -> None:
        """Ask the STUN servers for the mappings in a changed network; agents get the new candidates."""
        self.bases.network_changed(now=now)
        self._collect_bases(now=now)

    def send(self, name: NameT, data: bytes, stream: int = 0, component: int = 1) -> bool:
        """Send application data on an agent's selected pair; return False if there is none."""
        path = self._selected.get((name, stream, component))
        if path is not None:
            self._outbox.append(Send(*path, data))
        return path is not None

    # ------------------------------------------------------------------------------------------------------- agents

    def add(self, name: NameT, agent: IceAgent) -> None:
        """Add an agent. Raises ValueError if its name or ufrag is in use."""
        taken = [ufrag for ufrag in agent.local_ufrags if ufrag in self._ufrags]
        if name in self._agents or taken:
            raise ValueError(f"the name {name!r} or the ufrag of this agent is in use by another agent")
        self._agents[name] = agent
        self._asked_by[name] = {}
        self._known_ufrags[name] = ()
        self._collect(name)

    def gather(self, name: NameT, *, now: Instant) -> None:
        """Give an agent the sockets' addresses as candidates: the known ones now, others as they are found.

        The first agent starts the questions to the STUN servers, which serve all agents.
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
        """Whether an agent that gathers may get more candidates."""
        return self._gathering.get(name, False)

    def remove(self, name: NameT, *, now: Instant) -> None:
        """Close and remove an agent; the sockets stay. Raises KeyError for an unknown name."""
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
        """Call an agent: `mux.call("bob", lambda agent: agent.set_remote(description, now=now))`."""
        result = act(self._agents[name])
        self._collect(name)
        return result

    def __getitem__(self, name: NameT) -> IceAgent:
        """Return an agent for reading; change it through `call`."""
        return self._agents[name]

    def reader(self, flow: Flow, remote: Address) -> NameT | None:
        """Return the agent that gets data from `remote` on `flow`."""
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
                for name in self._looking_up.pop(input.query, ()):
                    if name in self._agents:
                        self._agents[name].receive(input, now=now)
                        self._collect(name)
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
        return self._outbox.drain()

    def events(self) -> list[FlowOpened | FlowClosed | AgentEvent[NameT] | AgentData[NameT] | UnknownUfrag]:
        return self._events.drain()

    # ----------------------------------------------------------------------------------------------------- dispatch

    def _datagram(self, datagram: Datagram, *, now: Instant) -> None:
        path = (datagram.flow, datagram.remote)
        if not is_stun(datagram.data):
            place = self._readable.get(path)
            if place is None:
                self._drop("unauthenticated", "data from an address without an authenticated check", datagram, now=now)
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
            self._response(received, datagram, now=now)
            return
        ufrag, _, remote_ufrag = (message.get(USERNAME) or "").partition(":")
        name = self._ufrags.get(ufrag) if ufrag else self._readable.get(path, (None,))[0]
        if name is None:
            if message.cls is Class.INDICATION:
                self._drop("no matching agent", "an indication for no agent of the mux", datagram, now=now)
            else:
                self._unmatched(ufrag, remote_ufrag, datagram, now=now)
            return
        self._agents[name].receive(received, now=now)
        self._collect(name)

    def _response(self, received: Received, datagram: Datagram, *, now: Instant) -> None:
        """Pass a response to the agent with this transaction, of those that sent to the path; peers may share it."""
        path = (received.flow, received.remote)
        for name in self._asked.get(path, ()):
            if self._agents[name].receive(received, now=now):
                self._collect(name)
                return
        if self.bases.expects(*path):
            self.bases.receive(received, now=now)
        else:
            self._drop("unexpected", "a response to no pending request", datagram, now=now)

    def _unmatched(self, ufrag: str, remote_ufrag: str, datagram: Datagram, *, now: Instant) -> None:
        if ufrag:
            self.counters["unknown ufrag"] += 1
            self._events.append(UnknownUfrag(ufrag=ufrag, remote_ufrag=remote_ufrag, packet=datagram))
        else:
            self._drop("no matching agent", "a request without a ufrag from an unknown address", datagram, now=now)

    def _drop(self, count: str, reason: str, datagram: Datagram, *, now: Instant) -> None:
        self.counters[count] += 1
        self._trace.message_dropped(reason, now=now, remote=datagram.remote, packet=datagram.packet)

    # ----------------------------------------------------------------------------------------------------- children

    def _collect(self, name: NameT) -> None:
        """Drain one agent, and update the keys that route packets to it."""
        agent = self._agents[name]
        asked_by = self._asked_by[name]
        for output in agent.outputs():
            self._outbox.append(output)
            if isinstance(output, Resolve):
                self._looking_up.setdefault(output, []).append(name)
            elif isinstance(output, Send):
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
        """Give new addresses to every agent that gathers."""
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
