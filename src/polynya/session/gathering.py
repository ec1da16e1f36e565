"""Gathering: sockets on every chosen address, and from each of them every STUN server asked what it sees.

                start                     all opened, all asked, all answered or given up
    NEW ----------------> GATHERING ----------------------------------------------------> COMPLETE
                              ^                    the host's addresses changed              |
                              +--------------------------------------------------------------+

Servers are asked at the pace of the process (RFC 8445, section 14), in parallel, and none is waited for: candidates are
told as they come. One answer starts a grace period for the others; with no answer at all gathering ends after a
patience, so that an interface whose packets vanish (a VPN, a bridge) delays no one (aiortc/aiortc#1183). A TURN server
that has answered and has not allocated yet, or is reached by a stream, has until the patience ends.

Until a pair is nominated a mapping must outlive the wait for the other side: a Binding indication to the server keeps
it open (RFC 8445, sections 5.1.1.4 and 11).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address, scope
from polynya.core.empty import NOTHING
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant, in_seconds
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    IcmpError,
    InterfacesChanged,
    Open,
    Opened,
    Output,
    Resolve,
    Resolved,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.stun.probe import ProbeEnded
from polynya.stun.registry import Method
from polynya.stun.uris import StunUri

from .interfaces import Refused, choose_addresses
from .options import Base, HostAddress, RelayServer, SessionConfig
from .questions import Questions
from .relay_events import CredentialsWanted, PathReady, PathRefused, RelayEvent, RelayFailed, RelayFound, RelayLost
from .relays import NO_RELAYS, Relays


class GatheringState(Enum):
    """As in WebRTC's `iceGatheringState`."""

    NEW = "new"
    GATHERING = "gathering"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOpened:
    """A socket stands on a local address: a base, and unless the policy forbids it a host candidate."""

    base: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFound:
    """A server saw `mapped` as the source of packets that left by `flow`."""

    flow: Flow
    mapped: Address
    server: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringStateChanged:
    old: GatheringState
    new: GatheringState
    reason: str


GatheringEvent = (
    BaseOpened
    | MappingFound
    | GatheringStateChanged
    | RelayFound
    | RelayLost
    | PathReady
    | PathRefused
    | CredentialsWanted
)
GatheringInput = (
    Datagram | Opened | StreamData | Closed | Resolved | InterfacesChanged | Received | IcmpError | SendFailed
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What one server said to one base, for `why()`: `mapped` and `rtt` (nanoseconds), or the reason there is none."""

    server: str
    base: Address | None = None
    mapped: Address | None = None
    rtt: int | None = None
    reason: str = ""
    lost: bool = False
    """`mapped` was a relayed address, which is gone."""


class _Wait(Enum):
    PATIENCE = "no server has answered"
    GRACE = "the others had their time"


class Gathering:
    """A machine: core inputs in, `Open`, `Resolve` and `Send` out, `GatheringEvent`s for the session."""

    __slots__ = (
        "_components",
        "_config",
        "_deadline",
        "_events",
        "_flow_ids",
        "_opening",
        "_outputs",
        "_pacer",
        "_patient_until",
        "_questions",
        "_random",
        "_resolving",
        "_servers",
        "_trace",
        "answers",
        "bases",
        "refused",
        "relays",
        "state",
    )

    def __init__(
        self,
        config: SessionConfig,
        *,
        random: random_module.Random,
        pacer: Pacer,
        flow_ids: FlowIds,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = GatheringState.NEW
        self.answers: tuple[ServerAnswer, ...] = ()
        self.refused: tuple[Refused, ...] = ()
        self.bases: tuple[Base, ...] = ()
        self._config = config
        self._components = config.ice.components
        self._random = random
        self._pacer = pacer
        self._flow_ids = flow_ids
        self._trace = trace
        self.relays = NO_RELAYS
        if config.turn_servers:
            self.relays = Relays(
                config.turn_servers,
                config.families,
                random=random,
                pacer=pacer,
                flow_ids=flow_ids,
                trace=trace.of("turn"),
            )
        self._questions: Questions | None = None
        """Made for the first question, and left when the last one is answered and no mapping is kept."""
        self._deadline: tuple[Instant, _Wait] | None = None
        self._patient_until = Instant(0)
        self._opening: Mapping[Flow, tuple[HostAddress, int, int]] = NOTHING
        self._resolving: Mapping[Resolve, StunUri] = NOTHING
        self._servers: Mapping[Address, str] = NOTHING
        self._outputs: tuple[Output, ...] = ()
        self._events: tuple[GatheringEvent, ...] = ()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, now: Instant) -> None:
        """Choose among the interfaces' addresses, open a socket on each and look the servers' names up."""
        if self.state is not GatheringState.NEW:
            raise RuntimeError("gathering has been started")
        chosen, self.refused = choose_addresses(interfaces.interfaces, self._config)
        self._change(GatheringState.GATHERING, f"{len(chosen)} local addresses to gather on", now)
        self._open(chosen, self._places())
        queries = {Resolve(name=uri.host, token=token): uri for token, uri in enumerate(self._config.stun_servers)}
        self._resolving = queries or NOTHING
        self._outputs += tuple(queries)
        self.relays.start(now)
        self._await(now)
        self._finish_if_done(now)

    def update(self, interfaces: InterfacesChanged, now: Instant) -> list[Flow] | None:
        """Follow a change of the host's addresses; the flows that went with theirs, or None where nothing changed.

        Every server is asked anew, from the old sockets too: a changed network maps them differently.
        """
        if self.state is GatheringState.NEW:
            raise RuntimeError("gathering has not been started")
        chosen, self.refused = choose_addresses(interfaces.interfaces, self._config)
        standing = [base.host.address for base in self.bases] + [host[0].address for host in self._opening.values()]
        addresses = [host.address for host in chosen]
        gone = [base.flow for base in self.bases if base.host.address not in addresses]
        new = [host for host in chosen if host.address not in standing]
        if not gone and not new:
            return None
        self._change(
            GatheringState.GATHERING, f"{len(new)} local addresses are new, {len(gone)} sockets lost theirs", now
        )
        self._close(gone, "its address is gone from this host")
        self._open(new, self._places())
        for base in self.bases:
            self._ask_all(base, now)
        self._await(now)
        self._finish_if_done(now)
        return gone

    def set_components(self, components: tuple[int, ...], now: Instant) -> bool:
        """The streams have these numbers of components from now on, none for one that is removed.

        Sockets of what is removed close; whether sockets for what is added are opened, and candidates are to come.
        """
        hosts = dict.fromkeys(base.host for base in self.bases)
        before = self._places()
        self._components = components
        after = self._places()
        removed = [base.flow for base in self.bases if (base.stream, base.component) not in after]
        for flow, (_, stream, component) in list(self._opening.items()):
            if (stream, component) not in after:
                self._take_opening(flow)
                self._outputs += (Close(flow=flow),)
        self._close(removed, "its stream was removed")
        added = [place for place in after if place not in before]
        if not added or not hosts or self.state is GatheringState.NEW:
            return False
        self._change(GatheringState.GATHERING, f"{len(added)} components are new", now)
        self._open(hosts, added)
        self._await(now)
        return True

    def stop_keepalives(self) -> None:
        """A pair was nominated: checks and consent keep its path open, the other mappings may go."""
        if self._questions is not None:
            self._questions.stop_keeping()

    def close(self, now: Instant) -> None:
        """Free every relay, close every socket and forget every question."""
        self._outputs = tuple(self.relays.close(now))
        self._deadline = self._questions = None
        flows = (*self._opening, *(base.flow for base in self.bases))
        self._outputs += tuple(Close(flow=flow) for flow in flows)
        self._resolving = self._opening = NOTHING
        self.bases = ()

    def set_credentials(self, server: RelayServer, now: Instant) -> None:
        """Use these for the TURN server of the same URI from now on."""
        self.relays.set_credentials(server, now)
        self._collect(now)

    def no_credentials(self, wanted: CredentialsWanted, now: Instant) -> None:
        """There are none besides those that a TURN server does not accept."""
        self.relays.no_credentials(wanted, now)
        self._collect(now)
        self._finish_if_done(now)

    def want(self, flow: Flow, peer: Address, now: Instant) -> None:
        """A path from a relay to a peer is to be used; `PathReady` or `PathRefused` follows."""
        self.relays.want(flow, peer, now)
        self._collect(now)

    def verify_relays(self, now: Instant) -> None:
        """There is reason to doubt that the relays stand."""
        self.relays.verify(now)
        self._collect(now)

    def bind(self, flow: Flow, peer: Address, now: Instant) -> None:
        """A path was nominated: one from a relay gets a channel."""
        self.relays.bind(flow, peer, now)
        self._collect(now)

    def base(self, flow: Flow) -> Base | None:
        """The base that a flow is, if it is one."""
        return next((base for base in self.bases if base.flow == flow), None)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question asked here."""
        asked = self._questions is not None and self._questions.expects(flow, remote)
        return asked or self.relays.expects(flow, remote)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: GatheringInput, now: Instant) -> None:
        match input:
            case Received() if input.message.method == Method.BINDING:
                if self._questions is not None:
                    self._questions.receive(input, now)
                    self._collect(now)
            case IcmpError() | SendFailed():
                if self._questions is not None:
                    self._questions.receive(input, now)
                self.relays.receive(input, now)
                self._collect(now)
            case Opened() if input.flow in self._opening:
                self._base_opened(input, now)
            case Closed() if input.flow in self._opening or self.base(input.flow) is not None:
                self._base_failed(input, now)
            case Resolved() if input.query in self._resolving:
                self._resolved(input, now)
            case Received() | Datagram() | StreamData() | Opened() | Closed() | Resolved():
                self.relays.receive(input, now)
                self._collect(now)
            case InterfacesChanged():
                if self.state is GatheringState.NEW:
                    self.start(input, now)

    def tick(self, now: Instant) -> None:
        if self._questions is not None:
            self._questions.tick(now)
        self.relays.tick(now)
        self._collect(now)
        if self._deadline is not None and now >= self._deadline[0]:
            self._give_up(self._deadline[1], now)

    def next_timer(self) -> Instant | None:
        due = [
            None if self._deadline is None else self._deadline[0],
            None if self._questions is None else self._questions.next_timer(),
            None if self.relays is NO_RELAYS else self.relays.next_timer(),
        ]
        return min((at for at in due if at is not None), default=None)

    @property
    def has_events(self) -> bool:
        """Whether the children or this machine have something to tell."""
        return bool(self._events)

    def outputs(self) -> list[Output]:
        drained, self._outputs = list(self._outputs), ()
        if self._questions is not None:
            drained += self._questions.outputs()
            if self._questions.idle:
                self._questions = None
        drained += self.relays.outputs()
        return drained

    def events(self) -> list[GatheringEvent]:
        drained, self._events = list(self._events), ()
        return drained

    # --------------------------------------------------------------------------------------------- bases and servers

    def _close(self, flows: Collection[Flow], reason: str) -> None:
        """Close sockets, with all that was asked and given by them."""
        for flow in flows:
            self._outputs += (Close(flow=flow),)
            if self._questions is not None:
                self._questions.forget(flow)
            self.relays.remove_base(flow, reason)
        self.bases = tuple(base for base in self.bases if base.flow not in flows)

    def _open(self, hosts: Iterable[HostAddress], places: Iterable[tuple[int, int]]) -> None:
        """Ask for a socket on each address, for each of these components."""
        for host in hosts:
            for stream, component in places:
                flow = self._flow_ids.new()
                self._opening = {**self._opening, flow: (host, stream, component)}
                opening = Open(
                    flow=flow,
                    transport=Transport.UDP,
                    local=host.address,
                    ports=self._config.ports,
                    interface=host.interface if host.pinned else None,
                )
                self._outputs += (opening,)

    def _places(self) -> list[tuple[int, int]]:
        """Stream and component of all that there are."""
        return [(stream, number + 1) for stream, count in enumerate(self._components) for number in range(count)]

    def _take_opening(self, flow: Flow) -> tuple[HostAddress, int, int] | None:
        opening = self._opening.get(flow)
        if opening is not None:
            self._opening = {other: waiting for other, waiting in self._opening.items() if other != flow} or NOTHING
        return opening

    def _base_opened(self, opened: Opened, now: Instant) -> None:
        opening = self._take_opening(opened.flow)
        if opening is None:
            return
        host, stream, component = opening
        base = Base(
            flow=opened.flow, host=host, local=opened.local, stream=stream, component=component, note=opened.note
        )
        self.bases += (base,)
        self._events += (BaseOpened(base=base),)
        self._ask_all(base, now)
        self.relays.add_base(base, now)
        self._collect(now)
        self._finish_if_done(now)

    def _base_failed(self, closed: Closed, now: Instant) -> None:
        opening = self._take_opening(closed.flow)
        base = self.base(closed.flow)
        self.bases = tuple(other for other in self.bases if other is not base)
        host = opening[0] if opening is not None else base.host if base is not None else None
        if host is None:
            return
        refusal = Refused(interface=host.interface, host=host.address.host, reason=closed.reason)
        self.refused = (*self.refused, refusal)
        if self._questions is not None:
            self._questions.forget(closed.flow)
        self.relays.remove_base(closed.flow, closed.reason)
        self._finish_if_done(now)

    def _resolved(self, resolved: Resolved, now: Instant) -> None:
        uri = self._resolving.get(resolved.query)
        if uri is None:
            return
        self._resolving = {query: each for query, each in self._resolving.items() if query != resolved.query} or NOTHING
        if resolved.error or not resolved.hosts:
            reason = resolved.error or "the name has no address"
            self._trace(now, "server", reason, server=str(uri), state="unresolved")
            self.answers += (ServerAnswer(server=str(uri), reason=reason),)
        families: set[int] = set()
        for host in resolved.hosts:
            server = Address.of(host, uri.port)
            if server.family in families or server in self._servers:
                continue
            families.add(server.family)
            self._servers = {**self._servers, server: str(uri)}
            for base in self.bases:
                self._ask(base, server, now)
        self._finish_if_done(now)

    # ------------------------------------------------------------------------------------------------------- asking

    def _ask_all(self, base: Base, now: Instant) -> None:
        for server in self._servers:
            self._ask(base, server, now)

    def _ask(self, base: Base, server: Address, now: Instant) -> None:
        """Ask where an answer is possible: in one family, and both or neither on loopback."""
        local, remote = scope(base.local.host), scope(server.host)
        same_reach = (local == "loopback") == (remote == "loopback") and (local != "link-local" or remote == local)
        if base.local.family == server.family and same_reach:
            if self._questions is None:
                self._questions = Questions(
                    keepalive=self._config.keepalive,
                    random=self._random,
                    pacer=self._pacer,
                    trace=self._trace.of("stun"),
                )
            self._questions.ask(base.flow, server, now)

    def _collect(self, now: Instant) -> None:
        if self._questions is not None:
            for ended in self._questions.events():
                self._answered(ended, self._questions, now)
        for event in self.relays.events():
            self._relay_event(event, now)

    def _relay_event(self, event: RelayEvent, now: Instant) -> None:
        if isinstance(event, RelayFailed):
            base = None if event.base is None else event.base.local
            self.answers += (ServerAnswer(server=event.server, base=base, reason=event.reason),)
            self._trace(now, "server", event.reason, server=event.server, state="failed")
        else:
            self._events += (event,)
        if isinstance(event, CredentialsWanted):
            self.answers += (ServerAnswer(server=str(event.server.uri), reason=event.reason),)
            self._trace(now, "server", event.reason, server=str(event.server.uri), state="credentials wanted")
        elif isinstance(event, RelayLost):
            lost = ServerAnswer(
                server=event.server, base=event.base.local, mapped=event.relayed, reason=event.reason, lost=True
            )
            self.answers += (lost,)
            self._trace(now, "server", event.reason, server=event.server, state="lost")
        elif isinstance(event, RelayFound):
            answer = ServerAnswer(
                server=str(event.server), base=event.base.local, mapped=event.relayed, reason="a relayed address"
            )
            self.answers += (answer,)
            self._trace(now, "server", "allocated", server=str(event.server), state="allocated", base=str(answer.base))
            self._grant_grace(now)
        self._finish_if_done(now)

    def _answered(self, ended: ProbeEnded, questions: Questions, now: Instant) -> None:
        base = self.base(ended.flow)
        if base is None:
            return
        answer = ServerAnswer(
            server=str(ended.server), base=base.local, mapped=ended.mapped, rtt=ended.rtt, reason=ended.reason
        )
        self.answers += (answer,)
        state = "answered" if ended.mapped else "failed"
        self._trace(now, "server", ended.reason, server=str(ended.server), state=state, base=str(base.local))
        if ended.mapped is not None and self.state is GatheringState.GATHERING:
            self._events += (MappingFound(flow=ended.flow, mapped=ended.mapped, server=ended.server),)
            if ended.mapped != base.local:
                questions.keep(ended.flow, ended.server, now)
            self._grant_grace(now)
        self._finish_if_done(now)

    # ----------------------------------------------------------------------------------------------------- the end

    def _await(self, now: Instant) -> None:
        """Somebody is asked: wait no longer than the patience."""
        self._patient_until = Instant(now + self._config.patience)
        self._deadline = (self._patient_until, _Wait.PATIENCE)

    def _grant_grace(self, now: Instant) -> None:
        """One has answered: the others have their time."""
        if self.state is GatheringState.GATHERING:
            self._deadline = (Instant(now + self._config.grace), _Wait.GRACE)

    def _give_up(self, timer: _Wait, now: Instant) -> None:
        wait = self._config.patience if timer is _Wait.PATIENCE else self._config.grace
        since = "gathering began" if timer is _Wait.PATIENCE else "the last answer came"
        self._deadline = None
        patient = timer is _Wait.GRACE and now < self._patient_until
        hopeful = self._reaches if patient else None
        for flow, server in [] if self._questions is None else self._questions.abandon(hopeful):
            if (base := self.base(flow)) is not None:
                reason = f"{server} had not answered {in_seconds(wait):g} s after {since}"
                self.answers += (ServerAnswer(server=str(server), base=base.local, reason=reason),)
        for base, turn_server in self.relays.abandon(now, heard=not patient):
            reason = f"{turn_server} had not allocated {in_seconds(wait):g} s after {since}"
            self.answers += (ServerAnswer(server=str(turn_server), base=base.local, reason=reason),)
        self._abandon_opening()
        self._resolving = NOTHING
        if patient and (self.relays.open or (self._questions is not None and self._questions.open)):
            self._deadline = (self._patient_until, _Wait.PATIENCE)
        self._finish_if_done(now)

    def _reaches(self, flow: Flow, server: Address) -> bool:
        """Whether a server has answered from the address of this flow, by another: then only loss keeps it silent."""
        base = self.base(flow)
        return base is not None and any(
            answer.mapped is not None
            and answer.base is not None
            and answer.base.host == base.local.host
            and answer.server == str(server)
            for answer in self.answers
        )

    def _abandon_opening(self) -> None:
        for flow, (host, _, _) in self._opening.items():
            self._outputs += (Close(flow=flow),)
            refusal = Refused(
                interface=host.interface, host=host.address.host, reason="its socket was not opened in time"
            )
            self.refused = (*self.refused, refusal)
        self._opening = NOTHING

    def _finish_if_done(self, now: Instant) -> None:
        asking = self._questions is not None and self._questions.open
        pending = self._opening or self._resolving or asking or self.relays.open
        if self.state is not GatheringState.GATHERING or pending:
            return
        self._deadline = None
        mapped = sum(1 for answer in self.answers if answer.mapped and not answer.lost)
        self._change(GatheringState.COMPLETE, f"{len(self.bases)} sockets, {mapped} answers of servers", now)

    def _change(self, new: GatheringState, reason: str, now: Instant) -> None:
        old, self.state = self.state, new
        self._trace(now, "gathering", reason, old=old.value, new=new.value)
        self._events += (GatheringStateChanged(old=old, new=new, reason=reason),)
