"""The ICE agent (RFC 8445): a machine with any number of streams and components.

The agent takes signaling and network input to its parts, and derives the results:

    candidates    local candidates: foundations, priorities
    generations   restarts; each `generation` has its checklists, its client of checks, its nominations
    server        inbound Binding requests
    selection     the pair that carries data, consent, keepalives, inquiries and farewells
    outcome       the states of checklists and agent

Input changes pairs. Afterwards `_evaluate`, and nothing else, selects pairs, queues nominations, derives the state of
the agent and sends the checks that are due. Everything that leaves the agent waits in one `Outbox`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import Attempt, DecodeError, UsageError
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import MILLISECOND, Instant, earliest
from polynya.core.machine import Closed, Datagram, IcmpError, IcmpKind, Output, Resolved, SendFailed
from polynya.core.pacer import Pacer, Pacing
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.attributes import ICE_CLOSED
from polynya.stun.message import Received, decode
from polynya.stun.registry import Class, Method

from . import checks, report
from .candidates import Candidate, Gathered, LocalCandidate, LocalCandidates
from .config import IceConfig, check_components, durations
from .context import Context
from .description import Description, negotiated_pacing
from .events import AgentState, IceEvent, InternalEvent, LocalCandidateAdded, LocalCandidatesEnded, Restarted
from .generation import Generation, candidate_ufrag
from .generations import Answer, Generations
from .names import Names
from .outbox import Outbox
from .outcome import Outcome, attempts
from .pairs import PairView
from .report import PairReport, Report, Statistics
from .roles import Role
from .sdp.candidate import UNRESOLVED
from .selection import Selections
from .server import CheckServer

PEER_CLOSED: Final = "the other side closed the connection"
LAST_DATA: Final = 250 * MILLISECOND
"""Longest time to wait for data of a peer that has left, which may be slower than signaling."""

IceInput = Datagram | Received | SendFailed | IcmpError | Closed | Resolved


class IceAgent:
    """One side of an ICE connection.

    Give it packets with `receive`, the time with `tick`, and the candidates and description of the other side. After
    every call, take its `outputs` and `events`. `random` makes credentials, transaction ids and jitter; `pacer` is the
    one of the process.
    """

    __slots__ = (
        "_context", "_generations", "_leaving", "_local_ended", "_names", "_nominate_at", "_outbox", "_outcome",
        "_pacing", "_selections", "_server", "config",
    )  # fmt: skip

    def __init__(self, config: IceConfig, *, random: Random, pacer: Pacer, trace: Tracer = NO_TRACE) -> None:
        self.config = config
        self._outbox = Outbox(trace)
        role = Role(config.controlling, random)
        self._context = Context(config, self._outbox, role, LocalCandidates(), random)
        self._generations = Generations(self._context)
        self._server = CheckServer(self._context, self._generations)
        self._selections = Selections(self._context)
        self._outcome = Outcome(self._context)
        self._names = Names(mdns=config.mdns, fqdn=config.fqdn)
        self._pacing = Pacing(pacer, durations(config).pacing)
        self._local_ended = False
        self._nominate_at: Instant | None = None
        self._leaving: tuple[Instant, str] | None = None
        """When the other side counts as closed, and why."""

    # ------------------------------------------------------------------------------------------------ local candidates

    def add_local(self, gathered: Gathered, *, now: Instant) -> LocalCandidate | None:
        """Add a gathered address. Returns its candidate, or None if it is redundant."""
        self._must_be_open("add_local")
        if (gathered.stream, gathered.component) not in self.generation.keys:
            raise UsageError(f"there is no stream {gathered.stream} with a component {gathered.component}")
        known = self._context.locals.base(gathered.flow)
        local = self._context.locals.add(gathered)
        if isinstance(local, str):
            redundant = f"{gathered.type.value} {gathered.address}"
            self._outbox.trace.candidate(local, now=now, side="local", candidate=redundant)
            return None
        self._signal(local, now=now)
        if known is None:
            self.generation.add_base(local, now=now)
            self._evaluate(now=now)
        return local

    def end_of_local_candidates(self, *, now: Instant) -> None:
        """Report that gathering is complete."""
        self._must_be_open("end_of_local_candidates")
        if not self._local_ended:
            self._local_ended = True
            self._outbox.events.append(LocalCandidatesEnded(generation=self.generation.number))
            self._evaluate(now=now)

    def _signal(self, local: LocalCandidate, *, now: Instant) -> None:
        """Emit the event that signals a local candidate."""
        self._outbox.candidate("local", local.candidate, "gathered", now=now)
        if local.advertise:
            self._outbox.events.append(LocalCandidateAdded(candidate=local.candidate, local=local))

    # --------------------------------------------------------------------------------------------------- the other side

    def set_remote(
        self, description: Description, *, now: Instant, components: tuple[int, ...] | None = None
    ) -> None:  # fmt: skip
        """Set the remote description. New credentials restart ICE on this side, too (RFC 8445, section 9).

        `components` sets the number of components of each stream, if both sides agreed on it with this description: 0
        for a stream that was removed or refused, further entries for added streams.

        Raises UsageError for a description of this agent itself: see `refuse_own`.
        """
        self._must_be_open("set_remote")
        self.refuse_own(description, now=now)
        if components is not None:
            check_components(components)
        for line in description.ignored:
            self._outbox.ignore(line, now=now)
        match self._generations.judge(description):
            case Answer.IGNORE:
                return
            case Answer.RESTART:
                self._leaving = None
                self._selections.stop_asking()
                number = max(description.generation, self.generation.number + 1)
                self._restart("the other side restarted", now=now, number=number, components=components)
            case Answer.REPLACE:
                self._generations.replace(components, now=now)
                self._names.renew()
            case Answer.TAKE:
                if components is not None:
                    self._generations.replace(components, now=now)
        ufrag, number = description.ufrag, description.generation
        self._outbox.trace.description(now=now, side="remote", ufrag=ufrag, generation=number)
        if description.lite != self.config.lite and self._context.role.controlling == self.config.lite:
            kind = "lite" if description.lite else "full"
            self._generations.switch_role(not self.config.lite, f"the other side is {kind}", now=now)
        timing = durations(self.config)
        self._pacing.interval = negotiated_pacing(timing.pacing, description, timing.silent_pacing)
        self.generation.set_remote(description, now=now)
        self._evaluate(now=now)

    def refuse_own(self, description: Description, candidates: Iterable[Candidate] = (), *, now: Instant) -> None:
        """Raise UsageError if a description or a candidate of it is this agent's own: it would connect to itself.

        Equal credentials that were configured are no proof: both sides of libp2p's WebRTC Direct have the same ones.
        `why` lists the refusal among the ignored lines, for owners that get signals from a peer and go on.
        """
        config = self.config
        own = self._generations.is_own(description)
        if own and (description.ufrag, description.password) != (config.ufrag, config.password):
            self._refuse(f"the description with ufrag {description.ufrag}", now=now)
        for candidate in candidates:
            self._refuse_candidate(candidate, description, now=now)

    def _refuse_candidate(self, candidate: Candidate, remote: Description | None, *, now: Instant) -> None:
        """Raise UsageError for a candidate of ours, which has a ufrag of ours."""
        ufrag = candidate_ufrag(candidate)
        if ufrag is None or not self._generations.is_own_ufrag(ufrag):
            return
        if remote is not None and remote.ufrag == ufrag and not self._generations.is_own(remote):
            return  # the other side's happens to be the same
        key = candidate.address, candidate.component, candidate.type
        for local in self._context.locals.all:
            if key == (local.candidate.address, local.component, local.candidate.type):
                self._refuse(f"the candidate {candidate.label}", now=now)

    def _refuse(self, what: str, *, now: Instant) -> None:
        self._outbox.ignore(f"{what} is this agent's own", now=now)
        raise UsageError(f"{what} is this agent's own: pass the signals of the other side")

    def add_remote(self, candidate: Candidate, *, now: Instant, stream: int = 0) -> None:
        """Add a remote candidate, in any order and any number of times, before or after the description.

        Raises UsageError for a candidate of this agent itself.
        """
        self._must_be_open("add_remote")
        self._refuse_candidate(candidate, self.generation.remote, now=now)
        self._add_remote(candidate, stream, now=now)
        self._evaluate(now=now)

    def _add_remote(self, candidate: Candidate, stream: int, *, now: Instant) -> None:
        if candidate.host_name is not None and candidate.address.host == UNRESOLVED:
            bound = self.generation.remote is not None and candidate_ufrag(candidate) is None
            outcome = self._names.look_up(candidate, candidate.host_name, stream, bound=bound)
            self._outbox.candidate("remote", candidate, outcome, now=now)
            self._collect_names(now=now)
        else:
            outcome = self.generation.add_remote(candidate, stream, now=now)
            self._outbox.candidate("remote", candidate, outcome, now=now)

    def _collect_names(self, *, now: Instant) -> None:
        """Send the look-ups that may be made now, and add the candidates whose names are known."""
        self._outbox.outputs.extend(self._names.queries())
        for candidate, stream in self._names.found():
            self._add_remote(candidate, stream, now=now)

    def end_of_remote_candidates(self, *, now: Instant) -> None:
        """Report that the other side has signaled all its candidates (RFC 8838, section 14)."""
        self._must_be_open("end_of_remote_candidates")
        self.generation.remote_ended = True
        self._evaluate(now=now)

    # ---------------------------------------------------------------------------------------------------------- control

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        """Set the role, before the remote description is known or when a restart decides it again (section 6.1.1)."""
        self._must_be_open("set_controlling")
        remote = self.generation.remote
        if remote is not None and remote.lite != self.config.lite and controlling == self.config.lite:
            raise UsageError("set_controlling: a lite agent is controlled by a full one")
        if controlling != self._context.role.controlling:
            self._generations.switch_role(controlling, "set by the owner", now=now)
            self._selections.show_role(now=now)
            self._evaluate(now=now)

    def restart(
        self,
        *,
        now: Instant,
        more_to_come: bool = False,
        components: tuple[int, ...] | None = None,
        gone: Sequence[Closed] = (),
    ) -> Description:
        """Begin a new generation. Signal the returned description, and the candidates that follow as events.

        The old pair carries data until a pair of the new generation is nominated (RFC 8445, section 9). With
        `more_to_come`, gathering continues: `end_of_local_candidates` is called again.
        `gone` are flows that have closed. Given here, their loss does not end an agent without another pair.

        `components` adds and removes streams: the number of components of each, 0 for a removed one (the others keep
        their numbers). All state of a removed stream ends at once; the owner closes its flows.
        """
        self._must_be_open("restart")
        if components is not None:
            check_components(components)
        self._local_ended = self._local_ended and not more_to_come
        number = self.generation.number + 1
        self._restart("requested by the owner", now=now, number=number, components=components, gone=gone)
        self._evaluate(now=now)
        return self.generation.local

    def _restart(
        self,
        reason: str,
        *,
        now: Instant,
        number: int,
        components: tuple[int, ...] | None,
        gone: Sequence[Closed] = (),
    ) -> None:
        keep = self._selections.of(self.generation)
        self._generations.restart(number, keep=keep, components=components, now=now)
        self._names.renew()
        for closed in gone:
            self._trouble(closed, now=now)
        self._selections.restarted(now=now)
        number = self.generation.number
        self._outbox.events.append(Restarted(generation=number, reason=reason))
        for local in self._context.locals.all:
            self._signal(local, now=now)
        if self._local_ended:
            self._outbox.events.append(LocalCandidatesEnded(generation=number))

    def check_again(self, reason: str, *, now: Instant) -> None:
        """Check every pair that has not worked now, in the pacer's slots: its path may exist by now."""
        self._must_be_open("check_again")
        self.generation.check_again(reason, now=now)
        self._evaluate(now=now)

    def nominate(self, pair_id: int, *, now: Instant) -> None:
        """Nominate a valid pair by its `PairView.id`, as the controlling agent.

        If a pair of its component is nominated already, both sides must have signaled `renomination`.
        """
        self._must_be_open("nominate")
        if not self._context.role.controlling:
            raise UsageError("nominate: only the controlling agent nominates pairs")
        self.generation.nominate_pair(pair_id, now=now)
        self._evaluate(now=now)

    def path_ready(self, flow: Flow, host: str, *, now: Instant) -> None:
        """Allow checks by `flow` to every port of this host: the answer to `PathWanted`."""
        self.generation.path_ready(flow, host)
        self._evaluate(now=now)

    def path_refused(self, flow: Flow, host: str, reason: str, *, now: Instant) -> None:
        """Fail the pairs by `flow` to this host: their path cannot be opened."""
        self.generation.path_refused(flow, host, reason, now=now)
        self._evaluate(now=now)

    def peer_left(self, reason: str, *, now: Instant) -> None:
        """Handle the report of signaling that the other side has closed its agent: this agent fails.

        Data that was sent before may still be on its way, so the agent waits one round trip, 250 ms at most.
        """
        self._must_be_open("peer_left")
        rtts = [selection.pair.rtt or 0 for selection in self._selections.all]
        self._leaving = Instant(now + min(max(rtts, default=0), LAST_DATA)), reason
        self.tick(now=now)

    def ask_consent(self, *, now: Instant) -> None:
        """Send three consent checks on each valid pair; those that do not answer within two seconds are lost.

        Call it when signaling reports that the other side may be gone.
        """
        self._must_be_open("ask_consent")
        self._selections.ask(now=now)
        self._evaluate(now=now)

    def stop_asking(self, *, now: Instant) -> None:
        """End what `ask_consent` began: the other side is there again, perhaps on another path."""
        self._must_be_open("stop_asking")
        self._selections.stop_asking()
        self._evaluate(now=now)

    def _abandon(self, reason: str, *, now: Instant) -> None:
        """The other side has closed its agent: no generation goes on without a new description."""
        self._leaving = None
        for generation in self._generations.all():
            generation.abandon(reason, now=now)

    def close(self, *, now: Instant) -> None:
        """Close the agent: it sends, accepts and waits for nothing any more.

        The last packets notify the other side, which would lose consent only after 30 s.
        """
        if self._outcome.closed:
            return
        self._outbox.outputs.clear()
        self._selections.farewell()
        self._generations.end(now=now)
        self._selections.clear()
        self._leaving = None
        self._nominate_at = None
        self._pacing.idle()
        self._outcome.close(self.generation, now=now)

    def _must_be_open(self, call: str) -> None:
        if self._outcome.closed:
            raise UsageError(f"{call}: this agent is closed; make a new one")

    # -------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: IceInput, *, now: Instant) -> bool:
        """Handle network input. `Received` is a datagram that the owner has decoded already.

        Returns whether the input was for this agent. False for a response that belongs to no transaction of this agent,
        and for a name that it did not look up: the owner may try another machine, or drop it.
        """
        if self._outcome.closed:
            return False
        match input:
            case Received():
                own = self._message(input, now=now)
            case Datagram():
                own = self._datagram(input, now=now)
            case Resolved():
                own = self._names.expects(input.query)
                self._names.resolved(input)
                self._collect_names(now=now)
            case _:
                own = True
                self._trouble(input, now=now)
        self._evaluate(now=now)
        return own

    def _datagram(self, datagram: Datagram, *, now: Instant) -> bool:
        try:
            message = decode(datagram.data)
        except DecodeError as error:
            self._outbox.dropped(datagram.remote, str(error), now=now, packet=datagram.packet)
            return False
        return self._message(Received(datagram.flow, datagram.remote, message, datagram.data, datagram.packet), now=now)

    def _message(self, received: Received, *, now: Instant) -> bool:
        message = received.message
        if message.method is not Method.BINDING:
            self._outbox.dropped(received.remote, "not a Binding message", now=now, packet=received.packet)
            return False
        if message.cls is Class.REQUEST:
            self._server.request(received, now=now)
        elif message.cls is Class.INDICATION:
            self._indication(received, now=now)
        else:
            return self._response(received, now=now)
        return True

    def _indication(self, received: Received, *, now: Instant) -> None:
        """Handle a keepalive, or the authenticated notice that the other side closes."""
        message = received.message
        if ICE_CLOSED not in message:
            self._outbox.count("keepalives received")
        elif any(checks.is_farewell(message, generation.credentials) for generation in self._generations.all()):
            self._abandon(PEER_CLOSED, now=now)
        else:
            self._outbox.dropped(received.remote, "a notice of closing without our credentials", now=now)

    def _response(self, received: Received, *, now: Instant) -> bool:
        for generation in self._generations.all():
            transaction = generation.transaction(received.message.transaction_id)
            if transaction is None:
                continue
            conflict = generation.client.answered(transaction, received, now=now)
            if conflict is not None:
                role = self._context.role
                if role.refused(conflict.controlling, self._context.random):
                    self._generations.switch_role(not role.controlling, "the other side answered 487", now=now)
                generation.client.check_again(conflict, now=now, packet=received.packet)
            return True
        return False

    def _trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """Handle a refused send, an ICMP error or a closed flow in every generation."""
        if isinstance(trouble, SendFailed) and trouble.errno == errno.ECONNREFUSED:
            trouble = IcmpError(flow=trouble.flow, remote=trouble.remote, kind=IcmpKind.PORT_UNREACHABLE)
        for generation in self._generations.all():
            generation.trouble(trouble, now=now)
        if isinstance(trouble, Closed):
            self._context.locals.remove(trouble.flow)

    def tick(self, *, now: Instant) -> None:
        """Send, resend and end what is due."""
        if self._outcome.closed:
            return
        for generation in self._generations.all():
            generation.tick(now=now)
        if self._leaving is not None and now >= self._leaving[0]:
            self._abandon(self._leaving[1], now=now)
        self._selections.tick(self.generation, now=now)
        self._evaluate(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(
            self._nominate_at,
            None if self._leaving is None else self._leaving[0],
            self._outcome.look_at,
            self._pacing.next_timer(),
            self._selections.next_timer(),
            *(generation.next_timer() for generation in self._generations.all()),
        )

    def outputs(self) -> list[Output]:
        return self._outbox.outputs.drain()

    def events(self) -> list[IceEvent | InternalEvent]:
        return self._outbox.events.drain()

    def _evaluate(self, *, now: Instant) -> None:
        """Derive the results of a change: selected pairs, nominations, the state of the agent, the next checks."""
        generation, outcome = self.generation, self._outcome
        if outcome.closed or (outcome.state is AgentState.NEW and generation.remote is None):
            return  # it is over, or nothing can follow before the remote description is known
        ended = self._local_ended and generation.remote_ended
        if ended:
            generation.choose_unchecked(now=now)
        self._selections.update(generation, now=now)
        previous = self._generations.previous
        if previous is not None and not self._selections.of(previous):
            self._generations.drop_previous(now=now)
        self._nominate_at = None
        if self._context.role.controlling and generation.remote is not None:
            self._nominate_at = generation.nominate_due(ta=self._pacing.interval, more_may_come=not ended, now=now)
        carried = self._generations.previous is not None
        outcome.update(generation, local_ended=self._local_ended, carried=carried, now=now)
        generation.send_checks(self._pacing, now=now)

    # ----------------------------------------------------------------------------------------------------- inspection

    @property
    def state(self) -> AgentState:
        return self._outcome.state

    @property
    def reason(self) -> str:
        """The reason of the state."""
        return self._outcome.reason

    @property
    def local_description(self) -> Description:
        """The description to signal."""
        return self.generation.local

    @property
    def remote_description(self) -> Description | None:
        return self.generation.remote

    @property
    def controlling(self) -> bool:
        return self._context.role.controlling

    @property
    def components(self) -> tuple[int, ...]:
        """The number of components of each stream, 0 for a removed one."""
        return self.generation.components

    @property
    def generation(self) -> Generation:
        """The current generation, to look at."""
        return self._generations.current

    @property
    def generations(self) -> tuple[Generation, ...]:
        """The current generation and, while it is in use, the previous one, to look at."""
        return self._generations.all()

    @property
    def role(self) -> Role:
        """Role and tie-breaker, to look at."""
        return self._context.role

    @property
    def pacing(self) -> Pacing:
        """The pace of the checks, to look at."""
        return self._pacing

    @property
    def selections(self) -> Selections:
        """The selected pairs, to look at."""
        return self._selections

    @property
    def local_ufrags(self) -> tuple[str, ...]:
        """The ufrags at the beginning of USERNAME in requests for this agent, the current one first."""
        return tuple(generation.local.ufrag for generation in self._generations.all())

    def pairs(self) -> list[PairView]:
        """Return every pair, stream by stream, the highest priority first."""
        return [pair.view(selected=self._selections.holds(pair)) for pair in self.generation.checklists]

    def selected(self, stream: int = 0, component: int = 1) -> PairView | None:
        """Return the pair that carries the data of a component."""
        selection = self._selections.at((stream, component))
        return None if selection is None else selection.pair.view(selected=True)

    def path(self, stream: int = 0, component: int = 1) -> FlowPath | None:
        """Return the flow and remote address for the data of a component, or None if it cannot be sent."""
        selection = self._selections.at((stream, component))
        return None if selection is None else selection.pair.path

    def accepts(self, flow: Flow, remote: Address) -> tuple[int, int] | None:
        """Return the stream and component of data from a path, or None if no authenticated message came from there."""
        if not any((flow, remote) in generation.authenticated for generation in self._generations.all()):
            return None
        base = self._context.locals.base(flow)
        return None if base is None else base.key

    def attempts(self) -> tuple[Attempt, ...]:
        """Return every pair that does not work, with the reason."""
        return attempts(self.generation)

    def local_candidates(self) -> list[LocalCandidate]:
        return list(self._context.locals.all)

    def remote_candidates(self, stream: int | None = None) -> list[Candidate]:
        """Return the remote candidates of a stream, or of all: the signaled and the peer-reflexive ones."""
        lists = self.generation.checklists.lists
        return [each for checklist in lists if stream in {None, checklist.stream} for each in checklist.remotes]

    def why(self) -> Report:
        """Return the state and its reason, every pair, and every transition with its reason."""
        names = self._names.outcomes
        return report.agent_report(self._context, self._outcome, self.generation, self._selections, names)

    def why_pair(self, number: int) -> PairReport | None:
        """Return the report of one pair by its `PairView.id`, or None if there is no such pair."""
        since = report.beginning(self._outcome.history, self.generation)
        for generation in self._generations.all():
            for pair in generation.checklists:
                if pair.id == number:
                    return PairReport(report.pair_report(pair, selected=self._selections.holds(pair), since=since))
        return None

    def stats(self) -> Statistics:
        """Return every pair, candidate and transport in the terms of W3C's webrtc-stats, by id."""
        return report.agent_statistics(self._context, self._outcome, self._generations.all(), self._selections)

    @property
    def counters(self) -> Mapping[str, int]:
        """The counters, by name."""
        return dict(self._outbox.counters)
