"""Relayed candidates: the TURN clients of a session, and the flows that their allocations are (RFC 8445, 5.1.1.2).

Every TURN URI is asked from every base, all at once; none is waited for. Of the servers that one URI stands for, the
next is asked when one has failed, or beside it when nothing was heard of it for a second; the first to allocate stays.
Over UDP a client shares the base's socket, so that one answer gives a relayed candidate and the server-reflexive one
that comes with it; over TCP and TLS it opens a stream from the base's address. A relayed address is a flow of its own:
what the agent sends on it goes through the client, and what a peer sends to it comes in as a datagram on it.

Gathering waits only so long. A server that has not allocated by then, or whose name is still looked up, is *late*: it
is asked on as if nothing had been, and what it gives is as good as what came in time.

A relay that is lost, because its server was started anew or its stream broke, is asked for again; what is found then is
another relayed address.

A peer must be permitted before anything is sent to it or taken from it. Whoever wants to use a path says `want`;
`PathReady` tells when it can be used and `PathRefused` when the server will not have it.
"""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass
from typing import Final, cast

from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant, earliest
from polynya.core.machine import (
    Closed,
    Datagram,
    IcmpError,
    Input,
    Opened,
    Output,
    Send,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.turn.client.allocation import ENDED
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
    ServerChosen,
    TurnEvent,
)
from polynya.turn.client.search import PATIENCE, others

from .losses import Losses, Way
from .options import Base, TurnCredentials
from .relay_events import CredentialsWanted, PathReady, PathRefused, RelayEvent, RelayFailed, RelayFound, RelayLost
from .turn_servers import TurnServers


@dataclass(slots=True, eq=False)
class _Relay:
    """One client of one base, and the servers that are left to try."""

    base: Base
    server: TurnCredentials
    left: list[ServerAddress]
    client: TurnClient
    flows: dict[int, Flow]
    """The flow of the relayed address of each family."""
    late: bool = False
    """It did not answer in time: gathering does not wait for it."""
    unwanted: bool = False
    """Another was faster on the same way: what it allocates is freed again."""
    again: bool = False
    """It takes the place of one that was lost: gathering does not wait for it."""
    next_at: Instant | None = None
    """When the next server is tried beside it, unless this one has been heard of by then."""

    @property
    def pending(self) -> bool:
        return not (self.flows or self.late or self.unwanted or self.again)

    @property
    def silent(self) -> bool:
        return not (self.client.heard or self.client.server.transport.reliable)

    @property
    def way(self) -> Way:
        return self.base.flow, self.server.uri


class Relays:
    """A machine: bases and packets in, `Open`, `Resolve`, `Send` out, `RelayEvent`s and relayed datagrams."""

    __slots__ = (
        "_bases",
        "_by_flow",
        "_by_path",
        "_by_stream",
        "_events",
        "_families",
        "_flow_ids",
        "_gone",
        "_inputs",
        "_losses",
        "_outputs",
        "_pacer",
        "_random",
        "_relays",
        "_servers",
        "_trace",
    )

    def __init__(
        self,
        servers: tuple[TurnCredentials, ...],
        families: tuple[int, ...],
        *,
        random: random_module.Random,
        pacer: Pacer,
        flow_ids: FlowIds,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self._servers = TurnServers(servers, random)
        self._families = families
        self._random = random
        self._pacer = pacer
        self._flow_ids = flow_ids
        self._trace = trace
        self._bases: dict[Flow, Base] = {}
        self._relays: list[_Relay] = []
        self._losses = Losses(random)
        self._gone: set[Flow] = set()
        self._by_path: dict[tuple[Flow, Address], _Relay] = {}
        """Whose packets come by a flow from a server; on a stream the server is its remote address."""
        self._by_stream: dict[Flow, _Relay] = {}
        self._by_flow: dict[Flow, _Relay] = {}
        self._inputs: list[Datagram | IcmpError] = []
        self._outputs: list[Output] = []
        self._events: list[RelayEvent] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Look the servers up."""
        self._servers.start(now=now)
        self._collect_servers(now=now)

    def add_base(self, base: Base, *, now: Instant) -> None:
        """A socket stands: ask every server that is known from it, and those that will be."""
        if self._servers:
            self._bases[base.flow] = base
        for server, servers in self._servers.known():
            self._allocate(base, server, list(servers), now=now)

    def remove_base(self, flow: Flow, reason: str, *, now: Instant, closed: bool = False) -> None:
        """A socket is to go, or was `closed` by the system, and with it every relay that was reached from its address.

        They are freed, by what can still be sent, and their streams are closed.
        """
        self._bases.pop(flow, None)
        self._losses.forget(flow)
        for relay in [relay for relay in self._relays if relay.base.flow == flow]:
            self._drop(relay, reason)
            relay.client.close(now=now, wait=False)
            left = relay.client.outputs()
            self._outputs += [one for one in left if not (closed and isinstance(one, Send) and one.flow == flow)]

    def want(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """The path from a relay to a peer is to be used: have it permitted. `PathReady` or `PathRefused` follows."""
        relay = self._by_flow.get(flow)
        if relay is not None:
            if relay.client.permitted(peer):
                self._events.append(PathReady(flow=flow, host=peer.host))
            relay.client.permit((peer,), now=now)
            self._collect(relay, now=now)

    def bind(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """The path was nominated: give it a channel, which costs 4 bytes a packet instead of 36 or more."""
        relay = self._by_flow.get(flow)
        if relay is not None:
            relay.client.bind(peer, now=now)
            self._collect(relay, now=now)

    def owns(self, flow: Flow) -> bool:
        """Whether a flow is a relay, or was one: what is still sent on that goes nowhere."""
        return flow in self._by_flow or flow in self._gone

    def client(self, flow: Flow) -> TurnClient | None:
        """The client behind a relay."""
        relay = self._by_flow.get(flow)
        return None if relay is None else relay.client

    def verify(self, *, now: Instant) -> None:
        """There is reason to doubt that the relays stand: have each of them refreshed."""
        for relay in list(self._relays):
            relay.client.renew(now=now)
            self._collect(relay, now=now)

    def send(self, send: Send, *, now: Instant) -> None:
        """Carry a datagram that is sent on a relay."""
        relay = self._by_flow.get(send.flow)
        if relay is not None:
            relay.client.send(send.remote, send.data, now=now)
            self._outputs += relay.client.outputs()

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these for the server of the same URI from now on."""
        self._servers.set_credentials(server)
        for relay in self._relays:
            if relay.server.uri == server.uri:
                relay.server = server
                if (credentials := _credentials(server)) is not None:
                    relay.client.set_credentials(credentials, now=now)
                self._collect(relay, now=now)

    def no_credentials(self, wanted: CredentialsWanted, *, now: Instant) -> None:
        """There are no others: what these could not allocate is not waited for."""
        for relay in [each for each in self._relays if each.server.uri == wanted.server.uri]:
            if relay.flows or relay.unwanted or relay.again:
                continue
            relay.client.close(now=now, wait=False)
            self._outputs += relay.client.outputs()
            self._forget(relay)

    def close(self, *, now: Instant) -> list[Output]:
        """Free every allocation; the outputs that do so. No answer is waited for."""
        for relay in list(self._relays):
            relay.client.close(now=now, wait=False)
            self._outputs += relay.client.outputs()
        self._relays.clear()
        self._servers.clear()
        self._losses.clear()
        for table in (self._by_path, self._by_stream, self._by_flow):
            table.clear()
        return self.outputs()

    @property
    def pending(self) -> bool:
        """Whether a relay is waited for."""
        return self._servers.pending or any(relay.pending for relay in self._relays)

    def release(self, *, heard: bool = True) -> list[tuple[Base, ServerAddress]]:
        """Wait for no relay any more, or with `heard=False` for none of a server that is silent; which are late now.

        An allocation takes a round trip more than a Binding, over TLS three more: who answers must be let finish. Of a
        stream nothing is heard before it is open, so its server is no silent one.
        """
        self._servers.late = True
        late = [relay for relay in self._relays if relay.pending and (heard or relay.silent)]
        for relay in late:
            relay.late = True
        return [(relay.base, relay.client.server) for relay in late]

    def why(self) -> list[str]:
        """What every client did, for people."""
        return [str(relay.client.why()) for relay in self._relays]

    # ------------------------------------------------------------------------------------------------------ machine

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a datagram comes from a TURN server to one of its clients."""
        return (flow, remote) in self._by_path

    def receive(self, input: Input | Received, *, now: Instant) -> None:
        """Take what is for a client; anything else is passed over."""
        match input:
            case Datagram() | Received() | IcmpError() | SendFailed():
                relay = self._by_path.get((input.flow, input.remote)) or self._by_stream.get(input.flow)
            case StreamData() | Opened() | Closed():
                relay = self._by_stream.get(input.flow)
            case _:
                relay = None
                self._servers.receive(input, now=now)
                self._collect_servers(now=now)
        if relay is not None:
            relay.client.receive(input, now=now)
            self._collect(relay, now=now)

    def tick(self, *, now: Instant) -> None:
        for way in self._losses.due(now=now):
            self._ask_again(way, now=now)
        for relay in list(self._relays):
            if relay.next_at is not None and relay.next_at <= now:
                self._try_beside(relay, now=now)
            due = relay.client.next_timer()
            if due is not None and due <= now:
                relay.client.tick(now=now)
                self._collect(relay, now=now)

    def next_timer(self) -> Instant | None:
        due = [relay.client.next_timer() for relay in self._relays]
        return earliest(*due, *(relay.next_at for relay in self._relays), self._losses.next_timer())

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[RelayEvent]:
        drained, self._events = self._events, []
        return drained

    def inputs(self) -> list[Datagram | IcmpError]:
        """What came to the relays, drained: peers' datagrams and ICMP errors, each by the relay's own flow."""
        drained, self._inputs = self._inputs, []
        return drained

    # ---------------------------------------------------------------------------------------------------- allocating

    def _collect_servers(self, *, now: Instant) -> None:
        self._outputs += self._servers.outputs()
        for server, found in self._servers.events():
            if not found.servers:
                self._events.append(RelayFailed(base=None, server=str(found.uri), reason=found.reason))
            for base in list(self._bases.values()):
                self._allocate(base, server, list(found.servers), now=now, late=self._servers.late)

    def _allocate(
        self, base: Base, server: TurnCredentials, servers: list[ServerAddress], *, now: Instant, late: bool = False
    ) -> None:  # fmt: skip
        """Ask the best server that can be reached from this base; the others follow if it gives nothing."""
        local = scope(base.local.host)
        left = [
            each
            for each in servers
            if each.address.family == base.local.family
            and (local == "loopback") == (scope(each.address.host) == "loopback")
            # by another name it is asked already
            and not (each.transport is Transport.UDP and (base.flow, each.address) in self._by_path)
        ]
        if left and local != "link-local":
            self._try(base, server, left, now=now, late=late)

    def _ask_again(self, way: Way, *, now: Instant) -> None:
        """A relay was lost on this way, and it is time to have another."""
        flow, uri = way
        base, known = self._bases.get(flow), self._servers.of(uri)
        if base is not None and known is not None:
            server, servers = known
            self._allocate(base, server, list(servers), now=now)

    def _try(self, base: Base, server: TurnCredentials, left: list[ServerAddress], *, now: Instant, late: bool) -> None:
        chosen, *rest = left
        shared = chosen.transport is Transport.UDP
        client = TurnClient(
            chosen,
            ClientConfig(families=self._families, local=base.local.with_port(0)),
            random=self._random,
            flow_ids=self._flow_ids,
            flow=base.flow if shared else None,
            credentials=_credentials(server),
            pacer=self._pacer,
            trace=self._trace,
        )
        relay = _Relay(base, server, rest, client, {}, late=late, again=(base.flow, server.uri) in self._losses)
        relay.next_at = Instant(now + PATIENCE) if rest else None
        self._relays.append(relay)
        client.start(now=now)
        self._collect(relay, now=now)

    def _try_beside(self, relay: _Relay, *, now: Instant) -> None:
        """A server that lets nobody hear of it may be one whose transport is blocked: another goes along."""
        relay.next_at = None
        if not (relay.client.heard or relay.unwanted):
            left, relay.left = relay.left, []
            self._try(relay.base, relay.server, left, now=now, late=relay.late)

    def _others(self, relay: _Relay) -> list[_Relay]:
        """What else is asked for the same way."""
        return [each for each in self._relays if each is not relay and each.way == relay.way]

    def _collect(self, relay: _Relay, *, now: Instant) -> None:
        for event in relay.client.events():
            self._happened(relay, event, now=now)
        self._outputs += relay.client.outputs()
        if relay.client.state in ENDED and relay in self._relays:
            self._forget(relay)

    def _happened(self, relay: _Relay, event: TurnEvent, *, now: Instant) -> None:
        match event:
            case RelayedData():
                flow = relay.flows.get(event.peer.family)
                if flow is not None:
                    self._inputs.append(Datagram(flow, event.peer, event.data, packet=event.packet))
            case ServerChosen():
                self._aim(relay, event)
            case Allocated() if not relay.unwanted:
                self._allocated(relay, event)
                for other in self._others(relay):
                    self._give_up(other, now=now)
            case AllocationFailed():
                failed = RelayFailed(base=relay.base, server=str(event.server), reason=event.reason)
                self._events.append(failed)
                self._forget(relay)
                left = others(relay.left, event)
                if left and not relay.unwanted:
                    self._try(relay.base, relay.server, left, now=now, late=relay.late)
                elif relay.again and not self._others(relay):
                    self._losses.refused(relay.way, now=now, code=event.code)
            case Permitted():
                for flow, peer in self._paths(relay, event.peers):
                    self._events.append(PathReady(flow=flow, host=peer.host))
            case PermissionFailed():
                for flow, peer in self._paths(relay, event.peers):
                    self._events.append(PathRefused(flow=flow, host=peer.host, reason=event.reason))
            case PeerUnreachable() if event.peer.family in relay.flows:
                flow = relay.flows[event.peer.family]
                self._inputs.append(IcmpError(flow=flow, remote=event.peer, kind=event.kind, mtu=event.mtu))
            case Lost():
                self._drop(relay, event.reason)
                self._losses.lost(relay.way, now=now)
            case CredentialsNeeded():
                wanted = CredentialsWanted(server=relay.server, realm=event.realm, reason=event.reason)
                self._events.append(wanted)
            case _:
                pass

    def _give_up(self, relay: _Relay, *, now: Instant) -> None:
        """It is not needed any more: what it still allocates is freed."""
        relay.unwanted = True
        relay.next_at = None
        relay.client.close(now=now)
        self._collect(relay, now=now)

    def _aim(self, relay: _Relay, chosen: ServerChosen) -> None:
        self._unaim(relay)
        if chosen.server.transport is Transport.UDP:
            # whoever has this 5-tuple keeps it: two that are sent to one server cannot both be told apart
            self._by_path.setdefault((chosen.flow, chosen.server.address), relay)
        if chosen.flow != relay.base.flow:
            self._by_stream[chosen.flow] = relay

    def _allocated(self, relay: _Relay, allocated: Allocated) -> None:
        self._losses.found(relay.way)
        relay.again = False
        shared = allocated.flow == relay.base.flow
        for relayed in allocated.relayed:
            flow = self._flow_ids.new()
            relay.flows[relayed.family] = flow
            self._by_flow[flow] = relay
            found = RelayFound(
                base=relay.base,
                flow=flow,
                relayed=relayed,
                mapped=allocated.mapped if shared else None,
                server=allocated.server,
            )
            self._events.append(found)

    def _paths(self, relay: _Relay, peers: tuple[Address, ...]) -> list[tuple[Flow, Address]]:
        return [(relay.flows[peer.family], peer) for peer in peers if peer.family in relay.flows]

    def _drop(self, relay: _Relay, reason: str) -> None:
        """A relay is gone: its flows with it."""
        server = str(relay.client.server)
        for relayed in relay.client.relayed:
            flow = relay.flows[relayed.family]
            lost = RelayLost(base=relay.base, flow=flow, relayed=relayed, server=server, reason=reason)
            self._events.append(lost)
        self._forget(relay)

    def _forget(self, relay: _Relay) -> None:
        if relay in self._relays:
            self._relays.remove(relay)
        for flow in relay.flows.values():
            self._by_flow.pop(flow, None)
            self._gone.add(flow)
        self._unaim(relay)

    def _unaim(self, relay: _Relay) -> None:
        self._by_path = {path: each for path, each in self._by_path.items() if each is not relay}
        self._by_stream = {flow: each for flow, each in self._by_stream.items() if each is not relay}


NO_RELAYS: Final = Relays((), (), random=cast("random_module.Random", None), pacer=Pacer(), flow_ids=FlowIds())
"""Of every session without TURN servers: nothing is asked for, so nothing is drawn, sent or kept."""


def _credentials(server: TurnCredentials) -> Credentials | None:
    return Credentials(server.username, server.password) if server.username else None
