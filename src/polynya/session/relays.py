"""Relays: the TURN allocations of a session, and the flows that stand for them (RFC 8445, section 5.1.1.2).

Each TURN URI is resolved once, and then one search for each base and URI allocates a relay; all run at once. Over UDP a
client shares the base's socket, so that one response gives a relayed candidate and a server-reflexive one. Over TCP and
TLS it opens a stream from the base's address. A relayed address is a flow of its own: data that the agent sends on it
goes through the client, and a peer's data arrives as a datagram on it.

    state    | allocated | no server left    | gathering stops waiting | allocation lost | retry
    ---------+-----------+-------------------+-------------------------+-----------------+----------
    AWAITED  | FOUND     | FAILED            | LATE                    |                 |
    LATE     | FOUND     | FAILED            |                         |                 |
    FOUND    |           |                   |                         | LOST            |
    LOST     |           |                   |                         |                 | RETRYING
    RETRYING | FOUND     | LOST, or FAILED + |                         |                 |
    FAILED: final

    +  if the same request would be refused again

Gathering waits for relays that are AWAITED. LATE ones continue, and so do URIs that are still being resolved; their
candidates count like any other. A lost relay is allocated again with a backoff, and gets another relayed address.

If a server refuses the credentials (401), `CredentialsWanted` asks the owner for others, which `set_credentials` or
`no_credentials` answers. While a request waits for credentials, the owner is asked again with a backoff, also if the
server has refused the new ones.

A peer must be permitted before packets are exchanged with it. The agent requests a path with `want`; `PathReady` or
`PathRefused` follows.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, FlowPath, Transport
from polynya.core.instants import Instant, earliest
from polynya.core.machine import (
    Closed,
    Datagram,
    IcmpError,
    Input,
    Opened,
    Output,
    Resolved,
    Send,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.turn.client.client import TurnClient
from polynya.turn.client.config import ClientConfig
from polynya.turn.client.credentials import Credentials
from polynya.turn.client.events import (
    Allocated,
    AllocationFailed,
    CredentialsNeeded,
    Lost,
    PeerUnreachable,
    PermissionFailed,
    Permitted,
    RelayedData,
    ServerAddress,
    ServerFailed,
    TurnEvent,
)
from polynya.turn.client.search import RelaySearch
from polynya.turn.discovery import Discovery

from .backoff import Backoff
from .demands import Demands
from .events import CredentialsWanted, PathReady, PathRefused, RelayEvent, RelayFailed, RelayFound, RelayLost
from .options import Base, TurnCredentials

FIRST_TOKEN: Final = 1 << 16
"""Token of the first TURN URI's queries; STUN servers use smaller ones, so that no answer reaches the wrong query."""


class State(Enum):
    AWAITED = "awaited"
    LATE = "late"
    FOUND = "found"
    LOST = "lost"
    RETRYING = "retrying"
    FAILED = "failed"


TRANSITIONS: Final[Mapping[State, tuple[State, ...]]] = {
    State.AWAITED: (State.FOUND, State.FAILED, State.LATE),
    State.LATE: (State.FOUND, State.FAILED),
    State.FOUND: (State.LOST,),
    State.LOST: (State.RETRYING,),
    State.RETRYING: (State.FOUND, State.LOST, State.FAILED),
    State.FAILED: (),
}
"""The allowed transitions, asserted by the one writer."""


@dataclass(slots=True, eq=False)
class _Relay:
    """The relay of one base from one TURN URI."""

    base: Base
    index: int
    """Of the URI, among the session's."""
    search: RelaySearch
    backoff: Backoff
    state: State = State.AWAITED
    flows: dict[int, Flow] = field(default_factory=dict)
    """The flow of the relayed address, by its family."""
    paths: tuple[FlowPath, ...] = ()
    """The flows and server addresses whose packets are routed to the search."""

    def move(self, state: State) -> None:
        """Change the state; the one writer of it."""
        assert state in TRANSITIONS[self.state], f"{self.state} does not become {state}"
        self.state = state

    @property
    def client(self) -> TurnClient:
        """The client of a relay that was found."""
        assert self.search.found is not None
        return self.search.found


class Relays:
    """Machine of a session's relays: bases and packets in, outputs, `RelayEvent`s and relayed datagrams out.

    Its outputs are appended to `outbox`; without one they wait in `outputs`.
    """

    def __init__(
        self,
        servers: tuple[TurnCredentials, ...],
        families: tuple[int, ...],
        *,
        random: random_module.Random,
        pacer: Pacer,
        flow_ids: FlowIds,
        trace: Tracer = NO_TRACE,
        outbox: Queue[Output] | None = None,
    ) -> None:
        self._servers = list(servers)
        self._families = families
        self._random = random
        self._pacer = pacer
        self._flow_ids = flow_ids
        self._trace = trace
        self._discoveries: dict[int, Discovery] = {}
        """URIs that are being resolved, by index."""
        self._resolved: dict[int, tuple[ServerAddress, ...]] = {}
        """The servers of each URI, best first."""
        self._awaited = True
        """Whether gathering waits for the URIs that are being resolved."""
        self.heard_by_udp = False
        """Whether a server has answered over UDP; the owner resets it when the network changes."""
        self._demands = Demands()
        self._bases: dict[Flow, Base] = {}
        self._relays: list[_Relay] = []
        self._by_path: dict[FlowPath, _Relay] = {}
        """Routes for packets from TURN servers."""
        self._by_own_flow: dict[Flow, _Relay] = {}
        """Routes for the flows that TURN clients opened."""
        self._by_relayed: dict[Flow, _Relay] = {}
        """Relays by the flow of a relayed address."""
        self._lost: set[Flow] = set()
        """Flows of relayed addresses that are lost, until the agent has been informed."""
        self._outbox: Queue[Output] = Queue() if outbox is None else outbox
        self._events: Queue[RelayEvent] = Queue()
        self._inputs: Queue[Datagram | IcmpError] = Queue()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Resolve all URIs."""
        for index, server in enumerate(self._servers):
            discovery = Discovery(server.uri, random=self._random, token=FIRST_TOKEN + index)
            self._discoveries[index] = discovery
            discovery.start(now=now)
        self._collect_servers(now=now)

    def add_base(self, base: Base, *, now: Instant) -> None:
        """Allocate relays from a new base, at once or when the URIs are resolved."""
        self._bases[base.flow] = base
        for index in self._resolved:
            self._allocate(base, index, State.AWAITED, now=now)

    def remove_base(self, flow: Flow, reason: str, *, now: Instant, closed: bool = False) -> None:
        """Free the relays of a base; with `closed` the system has closed its socket, and nothing is sent on it."""
        self._bases.pop(flow, None)
        for relay in [relay for relay in self._relays if relay.base.flow == flow]:
            self._lose(relay, reason)
            self._remove(relay, now=now, broken=flow if closed else None)

    def want(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """Request permission for a path from a relay to a peer; `PathReady` or `PathRefused` follows."""
        relay = self._by_relayed.get(flow)
        if relay is not None:
            if relay.client.permitted(peer):
                self._events.append(PathReady(flow=flow, host=peer.host))
            relay.client.permit((peer,), now=now)
            self._collect(relay, now=now)

    def bind(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """Bind a channel for a nominated path: 4 bytes in each packet instead of 36 or more."""
        relay = self._by_relayed.get(flow)
        if relay is not None:
            relay.client.bind(peer, now=now)
            self._collect(relay, now=now)

    def verify(self, *, now: Instant) -> None:
        """Refresh all allocations now, because their servers may have lost them."""
        for relay in list(self._relays):
            if relay.state is State.FOUND:
                relay.client.renew(now=now)
                self._collect(relay, now=now)

    def send(self, send: Send, *, now: Instant) -> None:
        """Send a datagram through a relay; it is dropped if the relay is lost."""
        relay = self._by_relayed.get(send.flow)
        if relay is not None:
            relay.client.send(send.remote, send.data, now=now)

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these credentials for the server of the same URI."""
        self._servers = [server if each.uri == server.uri else each for each in self._servers]
        for index in self._indices(server):
            self._demands.answered(index)
        credentials = _credentials(server)
        for relay in list(self._relays):
            if credentials is not None and relay.search.uri == server.uri:
                relay.search.set_credentials(credentials, now=now)
                self._collect(relay, now=now)

    def no_credentials(self, wanted: CredentialsWanted, reason: str = "", *, now: Instant) -> None:
        """Stop waiting for the relays of a URI that lack credentials.

        Without a `reason` there are none: relays that were not allocated are given up. With one, the owner could not
        get them now, and is asked again with a backoff.
        """
        for index in self._indices(wanted.server):
            again = bool(reason) and self._demands.failed(index, now=now)
            for relay in [relay for relay in self._relays if relay.index == index]:
                if relay.state is State.AWAITED and again:
                    relay.move(State.LATE)
                elif relay.state in (State.AWAITED, State.LATE) and not again:
                    self._remove(relay, now=now)
        if reason:
            self._events.append(RelayFailed(base=None, server=str(wanted.server.uri), reason=reason))

    def _indices(self, server: TurnCredentials) -> list[int]:
        return [index for index, each in enumerate(self._servers) if each.uri == server.uri]

    def forget(self, flow: Flow) -> None:
        """Drop the last trace of a lost relay: the agent has been informed and sends nothing more on its flow."""
        self._lost.discard(flow)

    def close(self, *, now: Instant) -> None:
        """Free all allocations without waiting for a response."""
        for relay in list(self._relays):
            self._remove(relay, now=now)
        self._discoveries.clear()
        self._demands.clear()

    # ------------------------------------------------------------------------------------------------------ queries

    def owns(self, flow: Flow) -> bool:
        """Whether a flow is a relayed address, also a lost one that the agent may still use."""
        return flow in self._by_relayed or flow in self._lost

    def client(self, flow: Flow) -> TurnClient | None:
        """Return the TURN client of a relayed address."""
        relay = self._by_relayed.get(flow)
        return None if relay is None else relay.client

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether packets from `remote` by `flow` are for a TURN client."""
        return (flow, remote) in self._by_path

    @property
    def pending(self) -> bool:
        """Whether gathering waits for a relay."""
        return self.asking or any(relay.state is State.AWAITED for relay in self._relays)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction for each awaited relay whose server is silent over UDP."""
        for relay in list(self._relays):
            if relay.state is State.AWAITED:
                relay.search.ask_again(now=now)
                self._collect(relay, now=now)

    @property
    def asking(self) -> bool:
        """Whether gathering waits for a URI that is being resolved."""
        return self._awaited and bool(self._discoveries)

    def release(self, *, heard: bool = True, streams: bool = False) -> list[tuple[Base, ServerAddress]]:
        """Stop waiting for relays, or with `heard=False` for those whose servers are silent; return the late ones.

        An allocation takes a round trip more than a Binding request, and three more over TLS: servers that have
        answered get the time for it. A stream is not silent before it is open, unless `streams` counts it.
        """
        self._awaited = False
        late = []
        for relay in self._relays:
            silent = not relay.search.heard if streams else relay.search.silent
            if relay.state is State.AWAITED and (heard or silent):
                relay.move(State.LATE)
                late += [(relay.base, server) for server in relay.search.asked]
        return late

    @property
    def size(self) -> int:
        """Entries in all tables: what the relays keep in memory."""
        tables = (self._bases, self._relays, self._by_path, self._by_own_flow, self._by_relayed, self._lost)
        return len(self._demands) + sum(map(len, tables))

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Input | Received, *, now: Instant) -> None:
        """Handle an input for a TURN client; any other input is ignored."""
        match input:
            case Datagram() | Received() | IcmpError() | SendFailed():
                relay = self._by_path.get((input.flow, input.remote)) or self._by_own_flow.get(input.flow)
            case StreamData() | Opened() | Closed():
                relay = self._by_own_flow.get(input.flow)
            case Resolved():
                relay = None
                for discovery in self._discoveries.values():
                    discovery.receive(input, now=now)
                self._collect_servers(now=now)
            case _:
                relay = None
        if relay is not None:
            relay.search.receive(input, now=now)
            self.heard_by_udp = self.heard_by_udp or relay.search.heard_by_udp
            self._collect(relay, now=now)

    def tick(self, *, now: Instant) -> None:
        self._demand_credentials(now=now)
        for relay in list(self._relays):
            if relay.backoff.due(now=now):
                self._retry(relay, now=now)
            due = relay.search.next_timer()
            if due is not None and due <= now:
                relay.search.tick(now=now)
                self._collect(relay, now=now)

    def next_timer(self) -> Instant | None:
        searches = [relay.search.next_timer() for relay in self._relays]
        return earliest(self._demands.next_timer(), *searches, *(relay.backoff.next_timer() for relay in self._relays))

    def outputs(self) -> list[Output]:
        """Return and remove the outputs; empty with an outbox that the owner drains."""
        return self._outbox.drain()

    def events(self) -> list[RelayEvent]:
        return self._events.drain()

    def inputs(self) -> list[Datagram | IcmpError]:
        """Return and remove the peers' datagrams and ICMP errors, each on the flow of its relayed address."""
        return self._inputs.drain()

    # --------------------------------------------------------------------------------------------------- allocating

    def _collect_servers(self, *, now: Instant) -> None:
        for index, discovery in list(self._discoveries.items()):
            self._outbox.extend(discovery.outputs())
            for found in discovery.events():
                del self._discoveries[index]
                self._resolved[index] = found.servers
                if not found.servers:
                    self._events.append(RelayFailed(base=None, server=str(found.uri), reason=found.reason))
                for base in list(self._bases.values()):
                    self._allocate(base, index, State.AWAITED if self._awaited else State.LATE, now=now)

    def _allocate(self, base: Base, index: int, state: State, *, now: Instant) -> None:
        """Search a relay for a base and a URI, if one of its servers can be reached."""
        servers = self._reachable(base, index)
        if servers:
            relay = _Relay(base, index, self._search(base, index, servers), Backoff(self._random), state)
            self._relays.append(relay)
            relay.search.start(now=now)
            self._collect(relay, now=now)
        elif self._resolved[index]:
            reason = self._unreachable(base, index)
            if reason:
                server = str(self._servers[index].uri)
                self._events.append(RelayFailed(base=base, server=server, reason=reason))

    def _unreachable(self, base: Base, index: int) -> str:
        """Return why no server of a URI is asked from a base; empty if another URI asks the same servers."""
        local = scope(base.local.host)
        if local == "link-local":
            return "not asked: a link-local address reaches no TURN server"
        servers = [each for each in self._resolved[index] if each.address.family == base.local.family]
        if not servers:
            return f"not asked: the server has no IPv{base.local.family} address"
        if all((local == "loopback") != (scope(each.address.host) == "loopback") for each in servers):
            if local == "loopback":
                return "not asked: a loopback address reaches no server on another host"
            return "not asked: the server is on loopback; gather on loopback addresses, too"
        return ""

    def _retry(self, relay: _Relay, *, now: Instant) -> None:
        """Search again for a relay that was lost."""
        servers = self._reachable(relay.base, relay.index)
        if servers:
            relay.move(State.RETRYING)
            relay.search = self._search(relay.base, relay.index, servers)
            relay.search.start(now=now)
            self._collect(relay, now=now)
        else:
            self._remove(relay, now=now)

    def _reachable(self, base: Base, index: int) -> list[ServerAddress]:
        """Return the servers of a URI that can be reached from a base, without those that another URI uses."""
        local = scope(base.local.host)
        if local == "link-local":
            return []
        return [
            each
            for each in self._resolved[index]
            if each.address.family == base.local.family
            and (local == "loopback") == (scope(each.address.host) == "loopback")
            and not (each.transport is Transport.UDP and (base.flow, each.address) in self._by_path)
        ]

    def _search(self, base: Base, index: int, servers: list[ServerAddress]) -> RelaySearch:
        return RelaySearch(
            self._servers[index].uri,
            ClientConfig(families=self._families, local=base.local.with_port(0)),
            random=self._random,
            flow_ids=self._flow_ids,
            servers=servers,
            flow=base.flow,
            only_after_silence=True,
            credentials=_credentials(self._servers[index]),
            pacer=self._pacer,
            trace=self._trace,
            outbox=self._outbox,
        )

    # ------------------------------------------------------------------------------------------------ what came of it

    def _collect(self, relay: _Relay, *, now: Instant) -> None:
        for event in relay.search.events():
            self._handle(relay, event, now=now)
        if relay.paths is not relay.search.paths and relay.state is not State.LOST:
            self._route(relay)
        if relay.state is State.FAILED:
            self._remove(relay, now=now)

    def _handle(self, relay: _Relay, event: TurnEvent, *, now: Instant) -> None:
        match event:
            case RelayedData():
                flow = relay.flows.get(event.peer.family)
                if flow is not None:
                    self._inputs.append(Datagram(flow, event.peer, event.data, packet=event.packet))
            case PeerUnreachable() if event.peer.family in relay.flows:
                flow = relay.flows[event.peer.family]
                self._inputs.append(IcmpError(flow=flow, remote=event.peer, kind=event.kind, mtu=event.mtu))
            case Allocated():
                self._found(relay, event)
            case ServerFailed():
                failed = RelayFailed(base=relay.base, server=str(event.server), reason=event.reason)
                self._events.append(failed)
            case AllocationFailed() if relay.state is State.RETRYING:
                relay.backoff.refused(now=now, code=event.code)
                relay.move(State.FAILED if relay.backoff.next_timer() is None else State.LOST)
                self._unroute(relay)
            case AllocationFailed():
                relay.move(State.FAILED)
            case Lost():
                self._lose(relay, event.reason)
                relay.search.close(now=now, wait=False)
                self._unroute(relay)
                relay.backoff.lost(now=now)
            case Permitted():
                for flow, peer in self._paths(relay, event.peers):
                    self._events.append(PathReady(flow=flow, host=peer.host))
            case PermissionFailed():
                for flow, peer in self._paths(relay, event.peers):
                    self._events.append(PathRefused(flow=flow, host=peer.host, reason=event.reason))
            case CredentialsNeeded():
                server = self._servers[relay.index]
                wanted = CredentialsWanted(server=server, realm=event.realm, reason=event.reason)
                self._demands.want(relay.index, wanted, now=now)
                self._demand_credentials(now=now)
            case _:
                pass

    def _demand_credentials(self, *, now: Instant) -> None:
        """Ask the owner for the credentials that are due, if a request still waits for them."""
        for index in self._demands.due(now=now):
            if any(relay.index == index and relay.search.waits_for_credentials for relay in self._relays):
                self._events.append(self._demands.make(index, now=now))

    def _found(self, relay: _Relay, allocated: Allocated) -> None:
        relay.move(State.FOUND)
        relay.backoff.reset()
        if allocated.ignored:
            refused = [
                f"{error.code} {error.reason} for IPv{error.family}" for error in allocated.refused if error.family
            ]
            reason = "; ".join([f"ignored {each}" for each in allocated.ignored] + refused)
            self._events.append(RelayFailed(base=relay.base, server=str(allocated.server), reason=reason))
        for relayed in allocated.relayed:
            flow = relay.flows[relayed.family] = self._flow_ids.new()
            self._by_relayed[flow] = relay
            found = RelayFound(
                base=relay.base,
                flow=flow,
                relayed=relayed,
                mapped=allocated.mapped if allocated.flow == relay.base.flow else None,
                related=allocated.mapped,
                server=allocated.server,
                rtt=relay.client.rtt,
            )
            self._events.append(found)

    @staticmethod
    def _paths(relay: _Relay, peers: Iterable[Address]) -> list[FlowPath]:
        return [(relay.flows[peer.family], peer) for peer in peers if peer.family in relay.flows]

    def _lose(self, relay: _Relay, reason: str) -> None:
        """Report the relayed addresses of a relay as lost, if it has any."""
        if relay.state is not State.FOUND:
            return
        relay.move(State.LOST)
        for relayed in relay.client.relayed:
            flow = relay.flows.pop(relayed.family)
            del self._by_relayed[flow]
            self._lost.add(flow)
            server = str(relay.client.server)
            lost = RelayLost(base=relay.base, flow=flow, relayed=relayed, server=server, reason=reason)
            self._events.append(lost)

    def _remove(self, relay: _Relay, *, now: Instant, broken: Flow | None = None) -> None:
        """Free a relay and drop it, with the events of its search."""
        relay.search.close(now=now, wait=False, broken=broken)
        self._relays.remove(relay)
        for flow in relay.flows.values():
            del self._by_relayed[flow]
        self._unroute(relay)

    def _route(self, relay: _Relay) -> None:
        """Route the packets of a search's servers to it."""
        self._unroute(relay)
        relay.paths = relay.search.paths
        for path in relay.paths:
            # The first search keeps a path: responses to two clients of one 5-tuple could not be distinguished.
            self._by_path.setdefault(path, relay)
            if path[0] != relay.base.flow:
                self._by_own_flow[path[0]] = relay

    def _unroute(self, relay: _Relay) -> None:
        for path in relay.paths:
            if self._by_path.get(path) is relay:
                del self._by_path[path]
            self._by_own_flow.pop(path[0], None)
        relay.paths = ()


def _credentials(server: TurnCredentials) -> Credentials | None:
    return Credentials(server.username, server.password) if server.username else None
