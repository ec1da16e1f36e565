"""Gathering: opens sockets on the chosen addresses, asks all servers from each, and ends the wait for them.

                start                     all opened, all asked, all answered or timed out
    NEW ----------------> GATHERING ----------------------------------------------------> COMPLETE
                              ^                    the host's addresses changed              |
                              +--------------------------------------------------------------+

    bases      the sockets                       stun_servers    their mapped addresses
    report     the servers' answers, for `why()` relays          their relayed addresses
    this file  how long gathering waits for all of these

Servers are asked in parallel, in the pacer's slots (RFC 8445, section 14). Candidates are emitted as they are found.
The first answer gives the other servers a grace period. Without any answer gathering ends after a patience, so that an
interface whose packets vanish (a VPN, a bridge) delays no connection (aiortc/aiortc#1183). A TURN server that has
answered without an allocation yet, or that is reached by a stream, has time until the patience ends.

UDP seems blocked if a relay over TCP or TLS stands and no server has answered over UDP. Then each silent server is
asked again, in new transactions, and so is the server of the relay, whose distance is known. Gathering ends after twice
the round trip of the stream.

COMPLETE means that gathering waits for nothing, and the agent signals the end of candidates. Pending requests are late
from then on and continue to their own end. A late answer still gives a candidate, which is signaled like any other. The
peer may ignore it; our checks from its base can still make it a peer-reflexive candidate. It changes no state.

Until a pair is nominated, Binding indications to the STUN server keep each mapping open (RFC 8445, sections 5.1.1.4
and 11).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant, earliest, in_seconds
from polynya.core.machine import (
    Closed,
    Datagram,
    IcmpError,
    InterfacesChanged,
    Opened,
    Output,
    Resolved,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.stun.probe import ProbeEnded
from polynya.stun.registry import DEFAULT_PORT, Method

from .bases import Bases
from .events import (
    BaseOpened,
    CredentialsWanted,
    GatheringEvent,
    GatheringState,
    GatheringStateChanged,
    MappingFound,
    RelayEvent,
    RelayFailed,
    RelayFound,
)
from .interfaces import Refused
from .options import BLOCKED_UDP_WAIT, Base, HostAddress, SessionConfig, TurnCredentials
from .relays import Relays
from .report import Answers
from .stun_servers import StunServers

GatheringInput = (
    Datagram | Opened | StreamData | Closed | Resolved | InterfacesChanged | Received | IcmpError | SendFailed
)  # fmt: skip


class _Wait(Enum):
    PATIENCE = "no server has answered"
    GRACE = "a server has answered"
    BLOCKED = "a relay over a stream stands, no answer over UDP"


@dataclass(slots=True)
class _Suspicion:
    """UDP may be blocked: a relay over a stream was found before any server answered over UDP."""

    found: RelayFound
    found_at: Instant
    rtt: int
    """Of the stream, in nanoseconds."""
    ask_at: list[Instant]
    """When to ask the silent servers once more; the requests that the new relay causes go out before."""


class Gathering:
    """Machine that gathers a session's addresses: core inputs in, outputs and `GatheringEvent`s out.

    Its outputs are appended to `outbox`. `relays` is None without TURN servers, as is the machine for STUN servers
    without those.
    """

    __slots__ = (
        "_bases",
        "_began_at",
        "_config",
        "_deadline",
        "_events",
        "_keeping",
        "_patient_until",
        "_servers",
        "_stun",
        "_suspicion",
        "_trace",
        "_udp_answers",
        "answers",
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
        outbox: Queue[Output],
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = GatheringState.NEW
        self.answers = Answers(trace)
        self._config = config
        self._trace = trace
        self._bases = Bases(config, flow_ids, outbox)
        self._stun: StunServers | None = None
        self.relays: Relays | None = None
        if config.stun_servers:
            self._stun = StunServers(config, random=random, pacer=pacer, trace=trace, outbox=outbox)
        if config.turn_servers:
            self.relays = Relays(
                config.turn_servers,
                config.families,
                random=random,
                pacer=pacer,
                flow_ids=flow_ids,
                trace=trace.of("turn"),
                outbox=outbox,
            )
        self._servers: tuple[StunServers | Relays, ...] = tuple(
            machine for machine in (self._stun, self.relays) if machine is not None
        )
        """The machines that talk to servers."""
        self._keeping = True
        """Whether mappings that are found are kept open."""
        self._deadline: tuple[Instant, _Wait] | None = None
        self._began_at = Instant(0)
        self._patient_until = Instant(0)
        self._suspicion: _Suspicion | None = None
        """Set when UDP seems blocked."""
        self._udp_answers = False
        """Whether any server has answered over UDP."""
        self._events: Queue[GatheringEvent] = Queue()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, *, now: Instant) -> None:
        """Choose among the interfaces' addresses, open a socket on each and resolve the servers' names."""
        if self.state is not GatheringState.NEW:
            raise RuntimeError("gathering was started before: use `update` to change the interfaces")
        chosen = self._bases.choose(interfaces)
        self._begin(f"{len(chosen)} local addresses to gather on", now=now)
        self._bases.open(chosen)
        if self._stun is not None:
            self._stun.start()
        if self.relays is not None:
            self.relays.start(now=now)
        self._collect(now=now)
        self._finish_if_done(now=now)

    def update(self, interfaces: InterfacesChanged, *, now: Instant) -> list[Flow] | None:
        """Follow a change of the host's addresses; return the flows of those that are gone, or None without a change.

        Every server is asked again, also from the old sockets, since a changed network maps them differently.
        """
        if self.state is GatheringState.NEW:
            raise RuntimeError("gathering was not started: call `start` first")
        chosen = self._bases.choose(interfaces)
        gone, new = self._bases.gone(chosen), self._bases.new(chosen)
        if not gone and not new:
            return None
        self._begin(f"{len(new)} local addresses are new, {len(gone)} sockets lost theirs", now=now)
        self._udp_answers = False
        if self.relays is not None:
            self.relays.heard_by_udp = False
        self._close(gone, "its address is gone from this host", now=now)
        self._bases.open(new)
        if self._stun is not None:
            for base in self.bases:
                self._stun.ask(base, now=now)
        self._finish_if_done(now=now)
        return gone

    def ask_again(self, *, now: Instant) -> None:
        """Ask every STUN server again from every socket; nothing waits for the answers."""
        if self._stun is not None:
            for base in self.bases:
                self._stun.ask(base, now=now, late=True)

    def set_components(self, components: tuple[int, ...], *, now: Instant) -> bool:
        """Set the number of components of each stream, 0 for a removed one; return whether sockets are being opened.

        Sockets of removed components are closed.
        """
        hosts = dict.fromkeys(base.host for base in self.bases)
        left, added = self._bases.set_components(components)
        self._close(left, "its stream was removed", now=now)
        if not added or not hosts or self.state is GatheringState.NEW:
            return False
        self._begin(f"{len(added)} components are new", now=now)
        self._bases.open(hosts, added)
        return True

    def stop_keepalives(self) -> None:
        """Stop the keepalives of mappings: checks and consent keep the nominated pair's path open."""
        self._keeping = False
        if self._stun is not None:
            self._stun.stop_keeping()

    def close(self, *, now: Instant) -> None:
        """Free all relays, close all sockets and drop all questions."""
        self._deadline = None
        if self._stun is not None:
            self._stun.close()
        if self.relays is not None:
            self.relays.close(now=now)
        self._bases.close_all()

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these credentials for the TURN server of the same URI."""
        if self.relays is not None:
            self.relays.set_credentials(server, now=now)
            self._collect(now=now)

    def no_credentials(self, wanted: CredentialsWanted, reason: str = "", *, now: Instant) -> None:
        """Continue without a TURN server that refused its credentials; with a `reason`, ask for others later."""
        if self.relays is not None:
            self.relays.no_credentials(wanted, reason, now=now)
            self._collect(now=now)
            self._finish_if_done(now=now)

    def want(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """Request permission for a path from a relay to a peer; `PathReady` or `PathRefused` follows."""
        if self.relays is not None:
            self.relays.want(flow, peer, now=now)
            self._collect(now=now)

    def verify_relays(self, *, now: Instant) -> None:
        """Refresh all allocations now, because their servers may have lost them."""
        if self.relays is not None:
            self.relays.verify(now=now)
            self._collect(now=now)

    def bind(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """Bind a channel for a nominated path, if its flow is a relay."""
        if self.relays is not None:
            self.relays.bind(flow, peer, now=now)
            self._collect(now=now)

    @property
    def bases(self) -> tuple[Base, ...]:
        """The open sockets."""
        return self._bases.open_bases

    @property
    def opening(self) -> tuple[HostAddress, ...]:
        """The local addresses on which sockets are being opened."""
        return self._bases.opening_hosts

    @property
    def refused(self) -> tuple[Refused, ...]:
        """The local addresses without a socket, with the reasons."""
        return self._bases.refused

    def base(self, flow: Flow) -> Base | None:
        """Return the base of a flow."""
        return self._bases.of(flow)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` answers a request of gathering."""
        return any(machine.expects(flow, remote) for machine in self._servers)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: GatheringInput, *, now: Instant) -> None:
        match input:
            case Received() if input.message.method == Method.BINDING:
                if self._stun is not None:
                    self._stun.receive(input, now=now)
            case IcmpError() | SendFailed():
                for machine in self._servers:
                    machine.receive(input, now=now)
            case Opened() if input.flow in self._bases.opening:
                self._opened(input, now=now)
            case Closed() if input.flow in self._bases.opening or self.base(input.flow) is not None:
                self._bases.failed(input)
                self._forget(input.flow, input.reason, now=now, closed=True)
                self._collect(now=now)
                self._finish_if_done(now=now)
            case Resolved() if self._stun is not None and self._stun.resolves(input.query):
                server, reason = self._stun.resolved(input, self.bases, now=now)
                if reason:
                    self.answers.unresolved(server, reason, now=now)
                self._finish_if_done(now=now)
            case Received() | Datagram() | StreamData() | Opened() | Closed() | Resolved():
                if self.relays is not None:
                    self.relays.receive(input, now=now)
            case InterfacesChanged():
                if self.state is GatheringState.NEW:
                    self.start(input, now=now)
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        for machine in self._servers:
            machine.tick(now=now)
        self._collect(now=now)
        if self._deadline is not None and now >= self._deadline[0]:
            self._release(self._deadline[1], now=now)
        self._check_udp(now=now)

    def next_timer(self) -> Instant | None:
        deadline = None if self._deadline is None else self._deadline[0]
        again = self._suspicion.ask_at[0] if self._suspicion and self._suspicion.ask_at else None
        return earliest(deadline, again, self._blocked_at, *[machine.next_timer() for machine in self._servers])

    @property
    def has_events(self) -> bool:
        """Whether events wait for the owner."""
        return bool(self._events)

    def events(self) -> list[GatheringEvent]:
        return self._events.drain()

    # ------------------------------------------------------------------------------------------------------ results

    def _close(self, flows: Collection[Flow], reason: str, *, now: Instant) -> None:
        """Close sockets after their relays were freed, and drop their questions."""
        for flow in flows:
            self._forget(flow, reason, now=now)
        self._bases.close(flows)
        self._collect(now=now)

    def _forget(self, flow: Flow, reason: str, *, now: Instant, closed: bool = False) -> None:
        """Drop the questions and relays of a base; with `closed` its socket is closed already."""
        if self._stun is not None:
            self._stun.forget(flow)
        if self.relays is not None:
            self.relays.remove_base(flow, reason, now=now, closed=closed)

    def _opened(self, opened: Opened, *, now: Instant) -> None:
        base = self._bases.opened(opened)
        if base is not None:
            self._events.append(BaseOpened(base=base))
            if self._stun is not None:
                self._stun.ask(base, now=now)
            if self.relays is not None:
                self.relays.add_base(base, now=now)
            self._collect(now=now)
            self._finish_if_done(now=now)

    def _collect(self, *, now: Instant) -> None:
        if self._stun is not None:
            for ended in self._stun.events():
                self._answered(ended, self._stun, now=now)
        if self.relays is not None:
            for event in self.relays.events():
                self._relay_event(event, now=now)

    def _relay_event(self, event: RelayEvent, *, now: Instant) -> None:
        self.answers.relay(event, now=now)
        if not isinstance(event, RelayFailed):
            self._events.append(event)
        if isinstance(event, RelayFound):
            self._grant_grace(now=now)
            if event.server.transport.reliable and event.rtt is not None:
                self._suspect_udp(event, event.rtt, now=now)
        self._finish_if_done(now=now)

    def _answered(self, ended: ProbeEnded, stun: StunServers, *, now: Instant) -> None:
        base = self.base(ended.flow)
        if base is None:
            return
        self.answers.ended(ended, base, now=now)
        self._udp_answers = self._udp_answers or ended.mapped is not None or ended.rtt is not None
        if ended.mapped is not None:
            self._events.append(MappingFound(flow=ended.flow, mapped=ended.mapped, server=ended.server))
            if ended.mapped != base.local and self._keeping:
                stun.keep(ended.flow, ended.server, now=now)
            self._grant_grace(now=now)
        self._finish_if_done(now=now)

    # --------------------------------------------------------------------------------------------- how long it waits

    def _begin(self, reason: str, *, now: Instant) -> None:
        """Enter GATHERING and start the patience."""
        self._began_at = now
        self._change(GatheringState.GATHERING, reason, now=now)
        self._keeping = True
        self._suspicion = None
        self._patient_until = Instant(now + self._config.patience)
        self._deadline = (self._patient_until, _Wait.PATIENCE)

    def _grant_grace(self, *, now: Instant) -> None:
        """Start the grace period: a server has answered."""
        if self.state is GatheringState.GATHERING:
            self._deadline = (Instant(now + self._config.grace), _Wait.GRACE)

    @property
    def _udp_heard(self) -> bool:
        return self._udp_answers or (self.relays is not None and self.relays.heard_by_udp)

    def _suspect_udp(self, found: RelayFound, rtt: int, *, now: Instant) -> None:
        """Suspect that UDP is blocked: a relay over a stream stands, and no server has answered over UDP."""
        gathering = self.state is GatheringState.GATHERING
        if gathering and self._config.blocked_udp and self._suspicion is None and not self._udp_heard:
            wait = max(2 * rtt, self._began_at + BLOCKED_UDP_WAIT - now)
            ask_at = [Instant(now + wait * part // 8) for part in (1, 3, 5)]
            self._suspicion = _Suspicion(found=found, found_at=now, rtt=rtt, ask_at=ask_at)

    def _check_udp(self, *, now: Instant) -> None:
        """Ask the silent servers again, and at last stop waiting for them."""
        suspicion, blocked_at = self._suspicion, self._blocked_at
        if suspicion is None or self._udp_heard:
            self._suspicion = None
        elif blocked_at is not None and now >= blocked_at:
            self._suspicion = None
            self._release(_Wait.BLOCKED, now=now)
        elif suspicion.ask_at and now >= suspicion.ask_at[0]:
            suspicion.ask_at.pop(0)
            for machine in self._servers:
                machine.ask_again(now=now)
            if self._stun is not None:
                self._stun.ask_also(suspicion.found.base, _binding_server(suspicion.found), now=now)
            self._collect(now=now)

    @property
    def _blocked_at(self) -> Instant | None:
        """When gathering stops waiting because UDP seems blocked; None before every server was asked over UDP."""
        suspicion = self._suspicion
        if suspicion is None or self.state is not GatheringState.GATHERING or self._bases.opening:
            return None
        if any(machine.asking for machine in self._servers):
            return None
        asked_at = suspicion.found_at if self._stun is None else max(suspicion.found_at, self._stun.asked_at)
        return Instant(max(asked_at + 2 * suspicion.rtt, self._began_at + BLOCKED_UDP_WAIT))

    def _release(self, timer: _Wait, *, now: Instant) -> None:
        """Mark servers that have not answered as late; their requests continue."""
        self._deadline = None
        patient = timer is not _Wait.PATIENCE and now < self._patient_until
        waited = {
            _Wait.PATIENCE: f"{in_seconds(self._config.patience):g} s after gathering began",
            _Wait.GRACE: f"{in_seconds(self._config.grace):g} s after the last answer",
            _Wait.BLOCKED: "in time, and none over UDP: a relay over TCP or TLS stands, and UDP seems blocked",
        }[timer]
        asked = (
            ()
            if self._stun is None
            else self._stun.release(self._reaches if patient and timer is _Wait.GRACE else None)
        )
        for flow, server in asked:
            if (base := self.base(flow)) is not None:
                self.answers.late(str(server), base, f"{server} had not answered {waited}")
        if self.relays is not None:
            for base, turn_server in self.relays.release(heard=not patient, streams=timer is _Wait.BLOCKED):
                self.answers.late(str(turn_server), base, f"{turn_server} had not allocated {waited}")
        self._bases.give_up_opening()
        if patient and self._waiting:
            self._deadline = (self._patient_until, _Wait.PATIENCE)
        self._finish_if_done(now=now)

    def _reaches(self, flow: Flow, server: Address) -> bool:
        base = self.base(flow)
        return base is not None and self.answers.reaches(base, server)

    @property
    def _waiting(self) -> bool:
        return any(machine.pending for machine in self._servers)

    def _finish_if_done(self, *, now: Instant) -> None:
        if self.state is not GatheringState.GATHERING or self._bases.opening or self._waiting:
            return
        self._deadline = None
        reason = f"{len(self.bases)} sockets, {self.answers.mapped} answers of servers"
        self._change(GatheringState.COMPLETE, reason, now=now)

    def _change(self, new: GatheringState, reason: str, *, now: Instant) -> None:
        old, self.state = self.state, new
        self._trace.gathering(reason, now=now, old=old, new=new)
        self._events.append(GatheringStateChanged(old=old, new=new, reason=reason))


def _binding_server(found: RelayFound) -> Address:
    """Return where the TURN server of a relay over a stream would answer Binding requests over UDP."""
    server = found.server
    return server.address.with_port(DEFAULT_PORT) if server.transport.secure else server.address
