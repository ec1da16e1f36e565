"""One generation of an agent, from its start or restart to the next restart (an "ICE session" of RFC 8445, section 4).

A generation has all that belongs to one pair of credentials: the remote description and candidates, the checklists, the
checks under way, and the checks that arrived before the description. It pairs candidates, handles inbound checks, and
schedules outbound checks and nominations (sections 6.1.4.2 and 8.1.1).

An authenticated request changes the pairs as follows (section 7.3.1). Its source becomes a peer-reflexive candidate if
it is no known candidate. A pair is made if there is none, and a triggered check is queued unless the pair has
succeeded. The triggered check replaces our check under way, which probably met a closed filter that is open now. It
does not replace a triggered check younger than one RTO: two agents would trigger each other forever.

NATs can cause the same in another way. If both NATs map each remote address to its own port and accept packets from any
port of a known host, each check comes from a new port and is answered from yet another one. The result is an endless
chain of peer-reflexive candidates that never work and delay those that do. If one of the NATs is less strict, one or
two links of such a chain lead to a pair that works. So a pair that was answered from another address is not revived;
after a few of these on one base no more pairs with that host are made; and the pairs that inbound checks make are
bounded for a whole generation.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import Instant, earliest
from polynya.core.machine import Closed, IcmpError, SendFailed
from polynya.core.pacer import Pacing
from polynya.stun.transactions import ClientTransaction, Transactions

from .authenticated import Authenticated
from .candidates import Candidate, CandidateType, LocalCandidate
from .checklist import Checklist, ChecklistSet
from .checks import Check, Credentials, InboundCheck
from .client import CheckClient
from .context import Context
from .description import Description
from .nomination import Decision, again, early, later, regular, round_trip
from .pairs import Pair, PairState

EARLY_LIMIT: Final = 16
"""Checks that are kept until the remote description arrives."""
REMOTE_LIMIT: Final = 256
"""Signaled candidates of one stream; separately, the pairs that inbound checks may make in one generation."""
RETIRED_LIMIT: Final = 16
"""Former ufrags of each side that are remembered."""

ELSEWHERE_LIMIT: Final = 8
"""Pairs of one base and one host answered from another address; then inbound checks make no more of them."""


@lru_cache(maxsize=64)
def stream_components(components: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return every stream with each of its components."""
    return tuple((stream, component + 1) for stream, count in enumerate(components) for component in range(count))


def candidate_ufrag(candidate: Candidate) -> str | None:
    """Return the ufrag that a candidate names (RFC 8838, section 13)."""
    return next((value for name, value in candidate.extensions if name == "ufrag"), None)


class Generation:
    """The state that belongs to one pair of credentials."""

    __slots__ = (
        "_context",
        "_learned",
        "_outbox",
        "authenticated",
        "checklists",
        "client",
        "components",
        "credentials",
        "early",
        "keys",
        "local",
        "number",
        "over",
        "pending",
        "remote",
        "remote_ended",
        "restarted_at",
        "retired",
        "started_at",
        "transactions",
    )

    def __init__(
        self, local: Description, context: Context, *, components: tuple[int, ...], last_pair: int = 0
    ) -> None:
        self.number = local.generation
        self.local = local
        self.remote: Description | None = None
        self.remote_ended = False
        """The other side signaled the end of its candidates."""
        self.over: str | None = None
        """The reason why the other side answers no more: it has closed its agent."""
        self.started_at: Instant | None = None
        """Time of the remote description: the patience of RFC 8863 counts from here."""
        self.restarted_at: Instant | None = None
        """Time of the restart that began it; None for the first generation."""
        self.components = components
        """The number of components of each stream."""
        self.keys = stream_components(components)
        """Every stream with each of its components."""
        self.credentials = Credentials(local)
        self.transactions: Transactions[Check] = Transactions(context.outbox.trace, outbox=context.outbox.outputs)
        self.checklists = ChecklistSet(components, context, self.transactions, last_pair)
        self.authenticated = Authenticated(context.outbox)
        self.client = CheckClient(context, self.credentials, self.checklists, self.authenticated)
        self.pending: Queue[tuple[Candidate, int]] = Queue()
        """Candidates, with their streams, that wait for the description of their generation."""
        self.early: Queue[tuple[InboundCheck, LocalCandidate]] = Queue()
        """Checks, with the base of each, that wait for the description of their generation."""
        self.retired: tuple[str, ...] = ()
        """Ufrags of the other side's former generations, whose late candidates and checks are dropped."""
        self._context = context
        self._outbox = context.outbox
        self._learned = 0

    # ------------------------------------------------------------------------------------------------------ candidates

    def set_remote(self, remote: Description, *, now: Instant) -> None:
        """Set the remote description, and handle the candidates and checks that arrived before it."""
        self.remote = remote
        self.over = None
        self.retired = tuple(ufrag for ufrag in self.retired if ufrag != remote.ufrag)
        self.started_at = now
        self.credentials.set_remote(remote)
        self.checklists.agree(self.local, remote)
        self.client.remote_lite = remote.lite
        for candidate, stream in self.pending.drain():
            self.add_remote(candidate, stream, now=now)
        for check, base in self.early.drain():
            self.heard(check, base, now=now)  # those of a later description are kept again

    def take_over(self, old: Generation, *, same_credentials: bool) -> None:
        """Keep what arrived for a description that the old generation did not have.

        `same_credentials`: our credentials are unchanged and only those of the other side are new, so that its checks
        count as well.
        """
        former = () if old.remote is None else (old.remote.ufrag,)
        self.retired = (*old.retired, *former)[-RETIRED_LIMIT:]
        self.pending.extend(entry for entry in old.pending if candidate_ufrag(entry[0]) not in self.retired)
        if same_credentials:
            self.early.extend(old.early)

    def add_remote(self, candidate: Candidate, stream: int, *, now: Instant) -> str:
        """Add a signaled candidate, in any order and any number of times. Returns the outcome, for the trace."""
        if self.over is not None:
            return f"dropped: {self.over}"
        if self.remote is None:
            if self._is_retired(candidate):
                return "dropped: its generation is over"
            kept = self._keep_candidate(candidate, stream)
            return "kept until the description arrives" if kept else "dropped: too many wait for their description"
        ufrag = candidate_ufrag(candidate)
        if ufrag is not None and ufrag != self.remote.ufrag:
            if self._is_retired(candidate):
                return f"dropped: its generation is over (ufrag {ufrag[:16]})"
            if not self._keep_candidate(candidate, stream):
                return "dropped: too many wait for their description"
            return f"kept: the description of its generation is not here (ufrag {ufrag[:16]})"
        if not 0 <= stream < len(self.checklists.lists):
            return f"dropped: there is no stream {stream}"
        checklist = self.checklists.lists[stream]
        if candidate.component > checklist.components:
            return f"dropped: there is no component {candidate.component}"
        known = checklist.remote_at(candidate.component, candidate.address)
        if known is not None and known.type is not CandidateType.PEER_REFLEXIVE:
            return "known already"
        if known is None and self._signaled(checklist) >= REMOTE_LIMIT:
            return f"dropped: {REMOTE_LIMIT} are known already"
        if known is None:
            checklist.remotes.append(candidate)
        else:
            checklist.remotes[checklist.remotes.index(known)] = candidate
            for pair in checklist.pairs:
                if pair.remote is known:
                    pair.readopt(candidate)
            self.checklists.prioritize()
        for base in self._bases():
            if base.stream == stream:
                self.checklists.pair(base, candidate, "the remote candidate was signaled", now=now)
        return "new" if known is None else "adopted: it was known as peer-reflexive"

    def _is_retired(self, candidate: Candidate) -> bool:
        """Return whether a candidate names the ufrag of a former description."""
        return candidate_ufrag(candidate) in self.retired

    def _keep_candidate(self, candidate: Candidate, stream: int) -> bool:
        """Keep a candidate until its description arrives. If all places are taken, the oldest of another ufrag goes."""
        if len(self.pending) >= REMOTE_LIMIT:
            kept, ufrag = list(self.pending), candidate_ufrag(candidate)
            oldest = next((index for index, entry in enumerate(kept) if candidate_ufrag(entry[0]) != ufrag), None)
            if oldest is None:
                return False
            del kept[oldest]
            self.pending.clear()
            self.pending.extend(kept)
        self.pending.append((candidate, stream))
        return True

    @staticmethod
    def _signaled(checklist: Checklist) -> int:
        """Return the number of candidates that the other side signaled for a stream."""
        return sum(remote.type is not CandidateType.PEER_REFLEXIVE for remote in checklist.remotes)

    def add_base(self, base: LocalCandidate, *, now: Instant) -> None:
        """Pair a new base with every signaled candidate."""
        for candidate in self.checklists.lists[base.stream].remotes:
            if candidate.type is not CandidateType.PEER_REFLEXIVE:
                self.checklists.pair(base, candidate, "the local candidate was gathered", now=now)

    def _bases(self) -> Iterable[LocalCandidate]:
        seen: dict[Flow, LocalCandidate] = {}
        for local in self._context.locals.all:
            if local.is_base or local.flow not in seen:
                seen[local.flow] = local
        return seen.values()

    # --------------------------------------------------------------------------------------------------------- network

    def path_ready(self, flow: Flow, host: str) -> None:
        """Allow checks on the pairs of a path that is open now."""
        for pair in self._gated(flow, host):
            pair.path_opened()

    def path_refused(self, flow: Flow, host: str, reason: str, *, now: Instant) -> None:
        """Fail the pairs of a path that cannot be opened."""
        for pair in self._gated(flow, host):
            self.checklists.fail(pair, reason, now=now)

    def _gated(self, flow: Flow, host: str) -> list[Pair]:
        pairs = self.checklists
        return [pair for pair in pairs if pair.gated and pair.flow == flow and pair.remote_address.host == host]

    def transaction(self, transaction_id: bytes) -> ClientTransaction[Check] | None:
        """Return the check under way with this transaction id."""
        return self.transactions.by_id.get(transaction_id)

    def trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """Handle a refused send, an ICMP error or a closed flow; a closed flow removes its pairs."""
        self.client.trouble(trouble, now=now)
        if isinstance(trouble, Closed):
            self.authenticated.remove(trouble.flow)
            for pair in list(self.checklists):
                if pair.flow == trouble.flow:
                    self.checklists.fail(pair, f"the flow is gone: {trouble.reason}", now=now)
                    self.checklists.lists[pair.stream].remove(pair)

    def tick(self, *, now: Instant) -> None:
        """Resend checks that are due, and end those that timed out."""
        self.client.tick(now=now)
        self.authenticated.tick(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(self.transactions.next_timer(), self.authenticated.next_timer())

    # -------------------------------------------------------------------------------------------------- inbound checks

    def heard(self, check: InboundCheck, base: LocalCandidate, *, now: Instant) -> None:
        """Handle an authenticated check (RFC 8445, sections 7.3.1.3 to 7.3.1.5, and 7.3.2 for a lite agent)."""
        if (base.stream, base.component) not in self.keys or self.over is not None:
            return  # it was sent before the stream was removed, or before the other side closed
        path = (check.flow, check.remote)
        known = self.checklists.lists[base.stream].at(path)
        self.authenticated.add(path if known is None else known.path, base)
        if self.remote is None or check.remote_ufrag != self.remote.ufrag:
            self._keep(check, base)
            return
        pair = self._pair_of(check, base, now=now)
        if pair is None:
            self._outbox.dropped(check.remote, "no pair can be made for this check", now=now, packet=check.packet)
            return
        pair.request_received(now=now)
        self.checklists.flag(pair, "the other side's check arrived", now=now, readable=True)
        nominate = check.nominate or (self.checklists.renomination and check.nomination > 0)
        if self.local.lite:
            if nominate:
                reason = "the other side nominated it"
                self.checklists.succeeded(pair, reason, now=now, packet=check.packet)
                self.checklists.nominate(pair, reason, now=now, number=check.nomination)
            return
        if nominate and not self._context.role.controlling:
            if pair.valid:
                self.checklists.nominate(pair, "the other side nominated it", now=now, number=check.nomination)
            else:
                pair.nomination_received(check.nomination)
        if not (pair.revoked or pair.answered_from):
            self._trigger(pair, now=now, packet=check.packet)

    def _keep(self, check: InboundCheck, base: LocalCandidate) -> None:
        """Keep a check until the description of its ufrag arrives. The checks of one path are merged."""
        for known, _ in self.early:
            if (known.flow, known.remote, known.remote_ufrag) == (check.flow, check.remote, check.remote_ufrag):
                known.merge(check)
                return
        if check.remote_ufrag in self.retired:
            return
        if len(self.early) < EARLY_LIMIT:
            self.early.append((check, base))

    def _pair_of(self, check: InboundCheck, base: LocalCandidate, *, now: Instant) -> Pair | None:
        """Return the pair of a check; a new one, with a peer-reflexive candidate, if there is none."""
        checklist = self.checklists.lists[base.stream]
        pair = checklist.at((check.flow, check.remote))
        if pair is not None:
            return pair
        if self._learned >= REMOTE_LIMIT or self._leads_nowhere(check):
            return None
        self._learned += 1
        address = Address(check.remote.host, check.remote.port)
        remote = checklist.remote_at(base.component, address)
        if remote is None:
            remote = Candidate(
                foundation=f"prflx{self._learned}",
                component=base.component,
                priority=check.priority,
                address=address,
                type=CandidateType.PEER_REFLEXIVE,
                transport=base.candidate.transport,
            )
            checklist.remotes.append(remote)
            self._outbox.candidate("remote", remote, "a check came from there", now=now)
        return self.checklists.pair(base, remote, "the other side's check arrived", now=now, force=True)

    def check_again(self, reason: str, *, now: Instant) -> None:
        """Queue a check of every pair that was not answered."""
        for pair in list(self.checklists):
            if pair.state in (PairState.IN_PROGRESS, PairState.FAILED) and not (pair.revoked or pair.answered_from):
                if pair.transaction is not None:
                    self.transactions.cancel(pair.transaction, now=now)
                self.checklists.trigger(pair, reason, now=now, packet=0)

    def _leads_nowhere(self, check: InboundCheck) -> bool:
        """Return whether checks between this base and this host were answered from other addresses repeatedly."""
        found = 0
        for pair in self.checklists:
            if pair.answered_from and pair.flow == check.flow and pair.remote_address.host == check.remote.host:
                found += 1
        return found >= ELSEWHERE_LIMIT

    def _trigger(self, pair: Pair, *, now: Instant, packet: int) -> None:
        """Queue a triggered check in place of the check under way (section 7.3.1.4)."""
        if pair.state is PairState.IN_PROGRESS and pair.transaction is not None:
            transaction = self.transactions.by_id.get(pair.transaction)
            if transaction is not None:
                young = now - transaction.context.sent_at < self._context.config.schedule.first_wait
                if transaction.context.triggered and young:
                    return
                self.transactions.cancel(pair.transaction, now=now)
        self.checklists.trigger(pair, "the other side's check arrived", now=now, packet=packet)

    # --------------------------------------------------------------------------------------------------------- schedule

    def send_checks(self, pacing: Pacing, *, now: Instant) -> None:
        """Send the checks whose slot has come. Without a check to send, no slot is used."""
        may_check = self.remote is not None and not self.local.lite
        while may_check and self.checklists.has_work(now=now):
            if not pacing.ready(now=now):
                return
            found = self.checklists.next_check(now=now)
            if found is None:
                break
            pair, triggered = found
            if pair.state is PairState.SUCCEEDED and not pair.nominating:
                continue
            self.client.check(pair, now=now, nominate=pair.nominating, triggered=triggered)
            pacing.used(now=now)
        pacing.idle()

    def nominate_due(self, *, ta: int, more_may_come: bool, now: Instant) -> Instant | None:
        """As the controlling agent, queue the nominating check of each component that is due.

        Returns the time to call again, if any. `ta` is nanoseconds.
        """
        waits: list[Instant] = []
        for stream, component in self.keys:
            pairs = list(self.checklists.lists[stream].of(component))
            if any(pair.nominating for pair in pairs):
                withdrawal = self._withdraw(pairs, ta=ta, now=now)
                if withdrawal is None or withdrawal > now:
                    waits += [] if withdrawal is None else [withdrawal]
                    continue
            nominated = self.checklists.chosen(stream, component)
            if nominated is None:
                decision = self._choose(pairs, ta=ta, more_may_come=more_may_come)
            else:
                decision = self._change(nominated, pairs)
            if decision is None:
                continue
            if decision.at > now:
                waits.append(decision.at)
                continue
            self._queue_nomination(decision.pair, decision.reason, now=now)
        return min(waits, default=None)

    def _choose(self, pairs: list[Pair], *, ta: int, more_may_come: bool) -> Decision | None:
        """Choose the pair of a component to nominate first."""
        if self.checklists.aggressive and self._context.config.aggressive:
            pair = early(pairs)
            if pair is not None:
                return Decision(pair, Instant(0), "the other side's check arrived, and nothing better may come")
        policy, final = self._context.config.nomination, not self.checklists.revisable
        heard = self.checklists.aggressive and not final and not self.client.remote_lite
        return regular(policy, pairs, ta=ta, more_may_come=more_may_come, final=final, heard=heard)

    def _withdraw(self, pairs: list[Pair], *, ta: int, now: Instant) -> Instant | None:
        """Withdraw an early nomination without an answer, if another pair is valid. Returns the time when it is due.

        The answer has the time of a round trip of the valid pair, and no more than an RTO.
        """
        pair = next((pair for pair in pairs if pair.nominating and not pair.valid), None)
        valid = next((pair for pair in pairs if pair.valid), None)
        if pair is None or valid is None:
            return None
        queued = pair.nominating_at is None or pair in self.checklists.lists[pair.stream].triggered
        wait = min(max(ta, round_trip(valid)), self._context.config.schedule.first_wait)
        due = Instant((now if queued else pair.nominating_at or now) + wait)
        if due <= now:
            self.checklists.withdraw(pair, now=now)
            self._outbox.trace.note(f"the early nomination of pair {pair.id} had no answer: withdrawn", now=now)
        return due

    def nominate_pair(self, pair_id: int, *, now: Instant) -> None:
        """Queue the nominating check of a pair that the owner chose. Raises UsageError if it cannot be nominated."""
        pair = next((pair for pair in self.checklists if pair.id == pair_id), None)
        if pair is None or not pair.valid:
            raise UsageError(f"nominate: there is no valid pair {pair_id}")
        checklist, again = self.checklists.lists[pair.stream], self.checklists.renomination
        for other in checklist.of(pair.component):
            if other is pair or again:
                continue
            if other.nominated and other.valid:
                raise UsageError(f"nominate: pair {other.id} is nominated, and not both sides signaled `renomination`")
            if other.nominating and other not in checklist.triggered:
                raise UsageError(
                    f"nominate: pair {other.id} is being nominated, and not both sides signaled `renomination`"
                )
            other.end_nomination()
        if not pair.nominated:
            self._queue_nomination(pair, "requested by the owner", now=now)

    def _queue_nomination(self, pair: Pair, reason: str, *, now: Instant) -> None:
        """Let the next triggered check of a pair carry the nomination."""
        pair.begin_nomination()
        self.checklists.lists[pair.stream].trigger(pair)
        self._outbox.trace.note(f"pair {pair.id} is nominated next: {reason}", now=now)

    def _change(self, nominated: Pair, pairs: list[Pair]) -> Decision | None:
        """Choose a pair to nominate in place of the nominated one (draft-thatcher-ice-renomination, RFC 5245)."""
        if self.checklists.aggressive:
            return later(pairs, nominated) if self._context.config.aggressive else None
        policy = self._context.config.renomination
        if policy is None or not self.checklists.renomination or nominated.valid_at is None:
            return None
        if self.checklists.superseded(nominated):
            return Decision(nominated, nominated.valid_at, "the nomination of another pair failed")
        return again(policy, pairs, nominated)

    def choose_unchecked(self, *, now: Instant) -> None:
        """Between two lite agents, select the best pair of each component without checks.

        Call it once all candidates are known. RFC 8445, section 8.2 leaves the choice among several pairs to RFC 6724
        and lets the controlling agent reconcile both sides. Pair priorities follow the same preferences, and both sides
        compute the same ones.
        """
        if self.remote is None or not (self.local.lite and self.remote.lite):
            return
        for stream, component in self.keys:
            best = next(self.checklists.lists[stream].of(component), None)
            if best is not None and self.checklists.chosen(stream, component) is None:
                self.authenticated.add(best.path, best.local)
                self.checklists.trust(best, now=now)

    # -------------------------------------------------------------------------------------------------------------- end

    def end(self, successor: Generation | None, *, now: Instant) -> None:
        """End the generation. With a successor, data that is on its way is still accepted."""
        self.transactions.clear()
        if successor is None:
            self.authenticated.revoke()
        else:
            self.authenticated.pass_to(successor.authenticated, successor.has_flow, now=now)

    def abandon(self, reason: str, *, now: Instant) -> None:
        """Revoke every pair, because the other side answers no more: that is final for its credentials."""
        self.over = reason
        for pair in list(self.checklists):
            if pair.state is not PairState.FAILED:
                self.checklists.revoke(pair, reason, now=now)

    def has_flow(self, flow: Flow) -> bool:
        """Return whether a flow belongs to an existing stream."""
        base = self._context.locals.base(flow)
        return base is not None and base.key in self.keys
