"""The ICE agent: what its owner holds (RFC 8445).

The work lives in the parts: `candidates` (ours), `generation` (the other side, the checklists and the checks of one
pair of credentials), `nomination` (when to nominate), `consent`. The agent paces the checks, chooses where data goes
and says how far it is. Whatever comes in moves pairs; afterwards `_evaluate`, and nothing else, derives from the
pairs what holds for the agent:

    NEW        the other side's description, or an address of ours, is missing
    CHECKING   neither of the following
    CONNECTED  every component has a valid pair             COMPLETED  every component has a nominated one
    FAILED     a component has no pair left that could work, the patience of RFC 8863 is over, and no candidates are
               to come; or the consent of a component is lost and nothing can replace it
    CLOSED     `close` was called: nothing moves any more

FAILED is left when the other side's checks or new candidates arrive after all, and by a restart.
"""

from __future__ import annotations

from random import Random

from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import Instant, earliest
from polynya.core.machine import Output
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer

from .candidates import Candidate, Gathered, LocalCandidate, LocalCandidates
from .config import IceConfig, check_components
from .description import Description, negotiated_pacing
from .events import AgentState, IceEvent
from .generations import Answer, Generations
from .inbox import IceInput, Inbox
from .inspection import Inspection
from .journal import Journal
from .pacing import Pacing
from .prognosis import conclude
from .roles import Role
from .scheduling import choose_unchecked, nominate, nominate_by_hand, run_checks
from .selection import Selections
from .signals import Signals
from .standing import Standing


class IceAgent(Inspection):
    """One side of an ICE connection, with any number of streams and components.

    Feed it with `receive` and `tick`, tell it of candidates and of the other side, and after any call take `outputs`
    and `events`. `random` makes credentials, transaction ids and jitter; `pacer` is the process's.
    """

    __slots__ = ("_look_at", "_nominate_at", "_pacing", "_signals", "config")

    def __init__(self, config: IceConfig, *, random: Random, pacer: Pacer, trace: Tracer = NO_TRACE) -> None:
        self.config = config
        self._journal = Journal(trace)
        self._role = Role(config.controlling, random)
        self._locals = LocalCandidates()
        self._generations = Generations(
            config, locals_=self._locals, role=self._role, journal=self._journal, random=random
        )  # fmt: skip
        self._signals = Signals(self._generations, self._locals, self._journal)
        self._inbox = Inbox(self._generations, self._locals, self._role, self._journal, random)
        self._selections = Selections(config, self._journal, random)
        self._standing = Standing(self._journal)
        self._pacing = Pacing(pacer, config.pacing)
        self._nominate_at: Instant | None = None
        self._look_at: Instant | None = None

    # ------------------------------------------------------------------------------------------------- what we signal

    def add_local(self, gathered: Gathered, *, now: Instant) -> LocalCandidate | None:
        """An address was found. Returns the candidate, or None when it is redundant."""
        self._must_be_open("add_local")
        if (gathered.stream, gathered.component) not in self._generation.keys:
            raise UsageError(f"there is no stream {gathered.stream} with a component {gathered.component}")
        known = self._locals.base(gathered.flow)
        local = self._signals.candidate(gathered, now=now)
        if local is not None and known is None:
            self._generation.add_base(local, now=now)
            self._evaluate(now=now)
        return local

    def end_of_local_candidates(self, *, now: Instant) -> None:
        """Gathering is over."""
        self._must_be_open("end_of_local_candidates")
        if self._signals.end():
            self._evaluate(now=now)

    # ------------------------------------------------------------------------------------------- what was signaled

    def set_remote(
        self, description: Description, *, now: Instant, components: tuple[int, ...] | None = None
    ) -> None:  # fmt: skip
        """The other side's description. New credentials are its restart, which we follow (RFC 8445, section 9).

        `components` says how many components each stream has from now on, where that was agreed on with this
        description: 0 for a stream that is removed or refused, more of them for streams that are added.
        """
        self._must_be_open("set_remote")
        if components is not None:
            check_components(components)
        match self._generations.judge(description):
            case Answer.IGNORE:
                return
            case Answer.RESTART:
                number = description.generation
                ours = self._generation.number
                number = number if number > ours else ours + 1
                self._restart("the other side restarted", now=now, number=number, components=components)
            case Answer.REPLACE:
                self._generations.replace(components, now=now)
            case Answer.TAKE:
                if components is not None:
                    self._generations.replace(components, now=now)
        if self._journal.trace.enabled:
            ufrag, number = description.ufrag, description.generation
            self._journal.trace.description(now=now, side="remote", ufrag=ufrag, generation=number)
        if description.lite != self.config.lite and self._role.controlling == self.config.lite:
            what = "lite" if description.lite else "full"
            self._generations.switch_role(not self.config.lite, f"the other side is {what}", now=now)
        self._pacing.interval = negotiated_pacing(self.config.pacing, description, self.config.silent_pacing)
        self._generation.set_remote(description, now=now)
        self._evaluate(now=now)

    def add_remote(self, candidate: Candidate, *, now: Instant, stream: int = 0) -> None:
        """A candidate of the other side; any order, any number of times, before or after the description."""
        self._must_be_open("add_remote")
        self._inbox.candidate(candidate, stream, now=now)
        self._evaluate(now=now)

    def path_ready(self, flow: Flow, host: str, *, now: Instant) -> None:
        """Packets can be sent by `flow` to this host now: the answer to `PathWanted`, for every port."""
        for pair in self._generation.gated(flow, host):
            pair.gated = False
        self._evaluate(now=now)

    def path_refused(self, flow: Flow, host: str, reason: str, *, now: Instant) -> None:
        """Packets cannot be sent by `flow` to this host, and why: its pairs fail."""
        for pair in self._generation.gated(flow, host):
            self._generation.verdicts.fail(pair, reason, now=now)
        self._evaluate(now=now)

    def end_of_remote_candidates(self, *, now: Instant) -> None:
        """The other side has no more candidates (RFC 8838, section 14)."""
        self._must_be_open("end_of_remote_candidates")
        self._generation.remote_ended = True
        self._evaluate(now=now)

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        """Choose the role, before the other side is known or when a restart decides it anew (section 6.1.1)."""
        self._must_be_open("set_controlling")
        remote = self._generation.remote
        if remote is not None and remote.lite != self.config.lite and controlling == self.config.lite:
            raise UsageError("a lite agent is controlled by a full one")
        if controlling != self._role.controlling:
            self._generations.switch_role(controlling, "as asked for", now=now)
            self._selections.show_role(now=now)
            self._evaluate(now=now)

    def restart(
        self, *, now: Instant, more_to_come: bool = False, components: tuple[int, ...] | None = None
    ) -> Description:  # fmt: skip
        """Begin a new generation; signal the description that is returned, and the candidates that follow as events.

        The old pair carries data until a pair of the new generation is nominated (RFC 8445, section 9). With
        `more_to_come`, gathering goes on: `end_of_local_candidates` will be called again.

        `components` adds and removes streams: the number of components of each, 0 for one that is removed (a stream
        keeps its place). What belongs to a removed stream ends at once; its flows are the owner's to close.
        """
        self._must_be_open("restart")
        if components is not None:
            check_components(components)
        self._signals.ended = self._signals.ended and not more_to_come
        self._restart("as asked for", now=now, number=self._generation.number + 1, components=components)
        self._evaluate(now=now)
        return self._generation.local

    def nominate(self, pair_id: int, *, now: Instant) -> None:
        """Nominate a valid pair by hand, by its `PairView.id`.

        Where a pair of its component is nominated already, both sides must have signaled `renomination`.
        """
        self._must_be_open("nominate")
        if not self._role.controlling:
            raise UsageError("nominate: only the controlling agent does")
        nominate_by_hand(self._generation, pair_id, self._journal, now=now)
        self._evaluate(now=now)

    def _restart(self, reason: str, *, now: Instant, number: int, components: tuple[int, ...] | None) -> None:
        keep = self._selections.of(self._generation)
        self._generations.restart(number, keep=keep, components=components, now=now)
        self._signals.restarted(reason, now=now)

    def close(self, *, now: Instant) -> None:
        """The end: nothing is sent, waited for or accepted any more."""
        if self._standing.closed:
            return
        self._generations.end(now=now)
        self._selections.clear()
        self._nominate_at = self._look_at = None
        self._pacing.idle()
        self._journal.outputs.clear()
        self._standing.move(AgentState.CLOSED, "closed here", self._generation, now=now)

    def _must_be_open(self, what: str) -> None:
        if self._standing.closed:
            raise UsageError(f"{what}: this agent is closed; make a new one")

    # ---------------------------------------------------------------------------------------------------- the network

    def receive(self, input: IceInput, *, now: Instant) -> None:
        """Take in what happened on a flow. `Received` is a datagram that the owner has decoded already."""
        if not self._standing.closed:
            self._inbox.receive(input, now=now)
            self._evaluate(now=now)

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self, *, now: Instant) -> None:
        """Resend, check, ask for consent, give up: whatever is due."""
        if self._standing.closed:
            return
        for generation in self._generations.all():
            generation.client.tick(now=now)
            generation.authenticated.tick(now=now)
        self._selections.tick(self._generation, now=now)
        self._evaluate(now=now)

    def next_timer(self) -> Instant | None:
        due = [self._nominate_at, self._look_at, self._pacing.next_timer(), self._selections.next_timer()]
        for generation in self._generations.all():
            due += (generation.transactions.next_timer(), generation.authenticated.next_timer())
        return earliest(*due)

    def outputs(self) -> list[Output]:
        drained, self._journal.outputs = self._journal.outputs, []
        return drained

    def events(self) -> list[IceEvent]:
        drained, self._journal.events = self._journal.events, []
        return drained

    # ------------------------------------------------------------------------------------------------------ evaluation

    def _evaluate(self, *, now: Instant) -> None:
        """Derive from the pairs what holds for the agent. Called after whatever may have moved one."""
        generation = self._generation
        if self._standing.closed or (self._standing.state is AgentState.NEW and generation.remote is None):
            return  # it is over, or nothing can follow before the other side is known
        ended = self._signals.ended and generation.remote_ended
        if ended:
            choose_unchecked(generation, now=now)
        self._selections.update(generation, now=now)
        previous = self._generations.previous
        if previous is not None and not self._selections.of(previous):
            self._generations.drop_previous(now=now)
        self._nominate_at = None
        if self._role.controlling and generation.remote is not None:
            self._nominate_at = nominate(
                generation,
                self.config.nomination,
                self.config.renomination,
                self._journal,
                ta=self._pacing.interval,
                more_may_come=not ended,
                now=now,
            )
        conclusion = conclude(
            generation, self.config, self._journal, self._locals, local_ended=self._signals.ended, now=now
        )
        self._look_at = conclusion.look_at
        self._standing.move(conclusion.state, conclusion.reason, generation, now=now)
        run_checks(generation, self._pacing, now=now)
