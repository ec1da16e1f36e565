"""Gathering: sockets on every chosen address, from each of them every server asked, and when that has been enough.

                start                     all opened, all asked, all answered or waited for long enough
    NEW ----------------> GATHERING ----------------------------------------------------> COMPLETE
                              ^                    the host's addresses changed              |
                              +--------------------------------------------------------------+

    bases      the sockets                       stun_servers    what they see of each socket
    answers    who said what, for `why()`        relays          what TURN servers give
    this file  for how long all of that is waited for

Servers are asked at the pace of the process (RFC 8445, section 14), in parallel, and none is waited for: candidates are
told as they come. One answer starts a grace period for the others; with no answer at all gathering ends after a
patience, so that an interface whose packets vanish (a VPN, a bridge) delays no one (aiortc/aiortc#1183). A TURN server
that has answered and has not allocated yet, or is reached by a stream, has until the patience ends.

COMPLETE says that nobody waits any more, and the other side is told then that there are no more candidates. What was
asked is late from there on but not given up: each question goes on to its own end, and an answer that comes after all
is a candidate that is told like any other (trickled after the end; a peer may ignore it, and then our checks from that
base and its discovery of peer-reflexive candidates do what they can). It moves no state.

Until a pair is nominated a mapping must outlive the wait for the other side: a Binding indication to the server keeps
it open (RFC 8445, sections 5.1.1.4 and 11).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Collection
from enum import Enum

from polynya.core.addresses import Address
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
from polynya.stun.registry import Method

from .answers import Answers
from .bases import Bases
from .gathering_events import BaseOpened, GatheringEvent, GatheringState, GatheringStateChanged, MappingFound
from .interfaces import Refused
from .options import Base, SessionConfig, TurnCredentials
from .relay_events import CredentialsWanted, RelayEvent, RelayFailed, RelayFound
from .relays import NO_RELAYS, Relays
from .stun_servers import StunServers

GatheringInput = (
    Datagram | Opened | StreamData | Closed | Resolved | InterfacesChanged | Received | IcmpError | SendFailed
)  # fmt: skip


class _Wait(Enum):
    PATIENCE = "no server has answered"
    GRACE = "the others had their time"


class Gathering:
    """A machine: core inputs in, `Open`, `Resolve` and `Send` out, `GatheringEvent`s for the session."""

    __slots__ = (
        "_bases",
        "_config",
        "_deadline",
        "_events",
        "_keeping",
        "_outputs",
        "_patient_until",
        "_stun",
        "_trace",
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
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = GatheringState.NEW
        self.answers = Answers(trace)
        self._config = config
        self._trace = trace
        self._bases = Bases(config, flow_ids)
        self._stun = StunServers(config, random=random, pacer=pacer, trace=trace)
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
        self._keeping = True
        """Mappings that are found are kept open."""
        self._deadline: tuple[Instant, _Wait] | None = None
        self._patient_until = Instant(0)
        self._outputs: tuple[Output, ...] = ()
        self._events: tuple[GatheringEvent, ...] = ()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, *, now: Instant) -> None:
        """Choose among the interfaces' addresses, open a socket on each and look the servers' names up."""
        if self.state is not GatheringState.NEW:
            raise RuntimeError("gathering has been started")
        chosen = self._bases.choose(interfaces)
        self._begin(f"{len(chosen)} local addresses to gather on", now=now)
        self._bases.open(chosen)
        self._stun.start()
        self.relays.start(now=now)
        self._finish_if_done(now=now)

    def update(self, interfaces: InterfacesChanged, *, now: Instant) -> list[Flow] | None:
        """Follow a change of the host's addresses; the flows that went with theirs, or None where nothing changed.

        Every server is asked anew, from the old sockets too: a changed network maps them differently.
        """
        if self.state is GatheringState.NEW:
            raise RuntimeError("gathering has not been started")
        chosen = self._bases.choose(interfaces)
        gone, new = self._bases.gone(chosen), self._bases.new(chosen)
        if not gone and not new:
            return None
        self._begin(f"{len(new)} local addresses are new, {len(gone)} sockets lost theirs", now=now)
        self._close(gone, "its address is gone from this host", now=now)
        self._bases.open(new)
        for base in self.bases:
            self._stun.ask(base, now=now)
        self._finish_if_done(now=now)
        return gone

    def set_components(self, components: tuple[int, ...], *, now: Instant) -> bool:
        """The streams have these numbers of components from now on, none for one that is removed.

        Sockets of what is removed close; whether sockets for what is added are opened, and candidates are to come.
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
        """A pair was nominated: checks and consent keep its path open, the other mappings may go."""
        self._keeping = False
        self._stun.stop_keeping()

    def close(self, *, now: Instant) -> None:
        """Free every relay, close every socket and forget every question."""
        self._deadline = None
        self._stun.close()
        self._outputs = tuple(self.relays.close(now=now))
        self._bases.close_all()

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these for the TURN server of the same URI from now on."""
        self.relays.set_credentials(server, now=now)
        self._collect(now=now)

    def no_credentials(self, wanted: CredentialsWanted, *, now: Instant) -> None:
        """There are none besides those that a TURN server does not accept."""
        self.relays.no_credentials(wanted, now=now)
        self._collect(now=now)
        self._finish_if_done(now=now)

    def want(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """A path from a relay to a peer is to be used; `PathReady` or `PathRefused` follows."""
        self.relays.want(flow, peer, now=now)
        self._collect(now=now)

    def verify_relays(self, *, now: Instant) -> None:
        """There is reason to doubt that the relays stand."""
        self.relays.verify(now=now)
        self._collect(now=now)

    def bind(self, flow: Flow, peer: Address, *, now: Instant) -> None:
        """A path was nominated: one from a relay gets a channel."""
        self.relays.bind(flow, peer, now=now)
        self._collect(now=now)

    @property
    def bases(self) -> tuple[Base, ...]:
        """The sockets that stand."""
        return self._bases.standing

    @property
    def refused(self) -> tuple[Refused, ...]:
        """The addresses that are not used, and why."""
        return self._bases.refused

    def base(self, flow: Flow) -> Base | None:
        """The base that a flow is, if it is one."""
        return self._bases.of(flow)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question asked here."""
        return self._stun.expects(flow, remote) or self.relays.expects(flow, remote)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: GatheringInput, *, now: Instant) -> None:
        match input:
            case Received() if input.message.method == Method.BINDING:
                self._stun.receive(input, now=now)
                self._collect(now=now)
            case IcmpError() | SendFailed():
                self._stun.receive(input, now=now)
                self.relays.receive(input, now=now)
                self._collect(now=now)
            case Opened() if input.flow in self._bases.opening:
                self._opened(input, now=now)
            case Closed() if input.flow in self._bases.opening or self.base(input.flow) is not None:
                self._bases.failed(input)
                self._stun.forget(input.flow)
                self.relays.remove_base(input.flow, input.reason, now=now, closed=True)
                self._collect(now=now)
                self._finish_if_done(now=now)
            case Resolved() if self._stun.looks_up(input.query):
                self._resolved(input, now=now)
            case Received() | Datagram() | StreamData() | Opened() | Closed() | Resolved():
                self.relays.receive(input, now=now)
                self._collect(now=now)
            case InterfacesChanged():
                if self.state is GatheringState.NEW:
                    self.start(input, now=now)

    def tick(self, *, now: Instant) -> None:
        self._stun.tick(now=now)
        self.relays.tick(now=now)
        self._collect(now=now)
        if self._deadline is not None and now >= self._deadline[0]:
            self._release(self._deadline[1], now=now)

    def next_timer(self) -> Instant | None:
        deadline = None if self._deadline is None else self._deadline[0]
        relays = None if self.relays is NO_RELAYS else self.relays.next_timer()
        return earliest(deadline, self._stun.next_timer(), relays)

    @property
    def has_events(self) -> bool:
        """Whether the children or this machine have something to tell."""
        return bool(self._events)

    def outputs(self) -> list[Output]:
        drained, self._outputs = [*self._outputs, *self._bases.outputs(), *self._stun.outputs()], ()
        if self.relays is not NO_RELAYS:
            drained += self.relays.outputs()
        return drained

    def events(self) -> list[GatheringEvent]:
        drained, self._events = list(self._events), ()
        return drained

    # ----------------------------------------------------------------------------------------------- what came of it

    def _close(self, flows: Collection[Flow], reason: str, *, now: Instant) -> None:
        """Close sockets, with all that was asked and given by them; relays are freed by them first."""
        for flow in flows:
            self._stun.forget(flow)
            self.relays.remove_base(flow, reason, now=now)
        self._outputs += tuple(self.relays.outputs())
        self._bases.close(flows)
        self._collect(now=now)

    def _opened(self, opened: Opened, *, now: Instant) -> None:
        base = self._bases.opened(opened)
        if base is not None:
            self._events += (BaseOpened(base=base),)
            self._stun.ask(base, now=now)
            self.relays.add_base(base, now=now)
            self._collect(now=now)
            self._finish_if_done(now=now)

    def _resolved(self, resolved: Resolved, *, now: Instant) -> None:
        server, reason = self._stun.resolved(resolved, self.bases, now=now)
        if reason:
            self.answers.unresolved(server, reason, now=now)
        self._finish_if_done(now=now)

    def _collect(self, *, now: Instant) -> None:
        for ended in self._stun.events():
            self._answered(ended, now=now)
        for event in self.relays.events():
            self._relay_event(event, now=now)

    def _relay_event(self, event: RelayEvent, *, now: Instant) -> None:
        self.answers.relay(event, now=now)
        if not isinstance(event, RelayFailed):
            self._events += (event,)
        if isinstance(event, RelayFound):
            self._grant_grace(now=now)
        self._finish_if_done(now=now)

    def _answered(self, ended: ProbeEnded, *, now: Instant) -> None:
        base = self.base(ended.flow)
        if base is None:
            return
        self.answers.ended(ended, base, now=now)
        if ended.mapped is not None:
            self._events += (MappingFound(flow=ended.flow, mapped=ended.mapped, server=ended.server),)
            if ended.mapped != base.local and self._keeping:
                self._stun.keep(ended.flow, ended.server, now=now)
            self._grant_grace(now=now)
        self._finish_if_done(now=now)

    # ------------------------------------------------------------------------------------------ for how long it waits

    def _begin(self, reason: str, *, now: Instant) -> None:
        """Somebody is to be asked: wait no longer than the patience."""
        self._change(GatheringState.GATHERING, reason, now=now)
        self._keeping = True
        self._patient_until = Instant(now + self._config.patience)
        self._deadline = (self._patient_until, _Wait.PATIENCE)

    def _grant_grace(self, *, now: Instant) -> None:
        """One has answered: the others have their time."""
        if self.state is GatheringState.GATHERING:
            self._deadline = (Instant(now + self._config.grace), _Wait.GRACE)

    def _release(self, timer: _Wait, *, now: Instant) -> None:
        """The time is over. Whoever has not answered by now is late, and is asked on."""
        wait = self._config.patience if timer is _Wait.PATIENCE else self._config.grace
        since = "gathering began" if timer is _Wait.PATIENCE else "the last answer came"
        self._deadline = None
        patient = timer is _Wait.GRACE and now < self._patient_until
        waited = f"{in_seconds(wait):g} s after {since}"
        for flow, server in self._stun.release(self._reaches if patient else None):
            if (base := self.base(flow)) is not None:
                self.answers.late(str(server), base, f"{server} had not answered {waited}")
        for base, turn_server in self.relays.release(heard=not patient):
            self.answers.late(str(turn_server), base, f"{turn_server} had not allocated {waited}")
        self._bases.give_up_opening()
        if patient and (self.relays.pending or self._stun.pending):
            self._deadline = (self._patient_until, _Wait.PATIENCE)
        self._finish_if_done(now=now)

    def _reaches(self, flow: Flow, server: Address) -> bool:
        base = self.base(flow)
        return base is not None and self.answers.reaches(base, server)

    def _finish_if_done(self, *, now: Instant) -> None:
        if self.state is not GatheringState.GATHERING:
            return
        if self._bases.opening or self._stun.pending or self.relays.pending:
            return
        self._deadline = None
        reason = f"{len(self.bases)} sockets, {self.answers.mapped} answers of servers"
        self._change(GatheringState.COMPLETE, reason, now=now)

    def _change(self, new: GatheringState, reason: str, *, now: Instant) -> None:
        old, self.state = self.state, new
        self._trace.gathering(reason, now=now, old=old.value, new=new.value)
        self._events += (GatheringStateChanged(old=old, new=new, reason=reason),)
