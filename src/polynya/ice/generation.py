"""One generation of an agent: from the start, or a restart, to the next restart (an "ICE session" of RFC 8445, section
4).

It holds what belongs to one pair of credentials: the other side's description and candidates, the checklists, the
checks that are under way, and the checks that came before the description did. It moves pairs and says so in the
journal; what follows for the agent as a whole (which pair carries data, what is nominated, whether it failed) the
agent derives afterwards from the pairs.

How an authenticated request moves things (section 7.3.1): the source becomes a peer-reflexive candidate when nobody
has signaled it; the pair is made when there is none, and a triggered check is queued unless the pair has succeeded.
A check of ours that is under way is given up for the triggered one (it probably met a closed filter that is open
now), but not when it is itself a triggered check younger than one RTO: two agents would otherwise trigger each other
for ever.

Nor may they by the detour of NATs. Where both map each remote address to a port of its own and let in whatever comes
from a known host, every check comes from a new port and is answered from yet another one: an endless chain of
peer-reflexive candidates, each of them good for nothing, and in the way of those that are. Where one of the two NATs is
kinder, one or two links of such a chain lead to a pair that works. So a pair that was answered from elsewhere is not
revived, after a few of them on one base no more are made towards that host, and the number of pairs that checks may
make is bounded for a whole generation.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from random import Random
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Closed, IcmpError, SendFailed
from polynya.stun.transactions import Schedule, Transactions

from .authenticated import Authenticated
from .candidates import Candidate, CandidateType, LocalCandidate, LocalCandidates
from .checklist import PAIR_LIMIT, ChecklistSet
from .checks import Check, Credentials, InboundCheck
from .client import CheckClient
from .description import Description
from .journal import Journal
from .pairs import Pair, PairEvent, PairState
from .roles import Role
from .verdicts import Verdicts

EARLY_LIMIT: Final = 16
"""Checks that are kept until the other side's description arrives."""
REMOTE_LIMIT: Final = 256
"""Remote candidates of one stream; and pairs that checks may make, over a whole generation."""

ELSEWHERE_LIMIT: Final = 8
"""Pairs of one base and one host that were answered from elsewhere, until no more are made by checks."""


@lru_cache(maxsize=64)
def stream_components(components: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Every stream with each of its components."""
    return tuple((stream, component + 1) for stream, count in enumerate(components) for component in range(count))


class Generation:
    """The state of one pair of credentials."""

    __slots__ = (
        "_early",
        "_journal",
        "_learnt",
        "_locals",
        "_pending",
        "_role",
        "_schedule",
        "authenticated",
        "checklists",
        "client",
        "components",
        "credentials",
        "keys",
        "local",
        "number",
        "remote",
        "remote_ended",
        "started_at",
        "transactions",
        "verdicts",
    )

    def __init__(
        self,
        local: Description,
        *,
        components: tuple[int, ...],
        locals_: LocalCandidates,
        role: Role,
        journal: Journal,
        random: Random,
        schedule: Schedule,
        pair_limit: int = PAIR_LIMIT,
        last_pair: int = 0,
    ) -> None:
        self.number = local.generation
        self.local = local
        self.remote: Description | None = None
        self.remote_ended = False
        self.started_at: Instant | None = None
        """When checks could begin: the patience of RFC 8863 counts from here."""
        self.components = components
        """The number of components of each stream."""
        self.keys = stream_components(components)
        """Every stream and component."""
        self.credentials = Credentials(local)
        self.checklists = ChecklistSet(components, journal, pair_limit, last_pair, schedule.rto)
        self.transactions: Transactions[Check] = Transactions(journal.trace)
        self.verdicts = Verdicts(self.checklists, self.transactions, role, journal)
        self.authenticated = Authenticated(journal)
        self.client = CheckClient(
            credentials=self.credentials,
            checklists=self.checklists,
            transactions=self.transactions,
            verdicts=self.verdicts,
            authenticated=self.authenticated,
            locals_=locals_,
            role=role,
            journal=journal,
            random=random,
            schedule=schedule,
        )
        self._locals = locals_
        self._role = role
        self._journal = journal
        self._schedule = schedule
        self._pending: tuple[tuple[Candidate, int], ...] = ()
        self._early: tuple[tuple[InboundCheck, LocalCandidate], ...] = ()
        self._learnt = 0

    # ------------------------------------------------------------------------------------------------------ candidates

    def set_remote(self, remote: Description, *, now: Instant) -> None:
        """The other side's description: candidates and checks that came before it are taken up now."""
        self.remote = remote
        self.started_at = now
        self.credentials.set_remote(remote)
        renomination = self.local.renomination and remote.renomination
        self.verdicts.renomination = renomination
        self.verdicts.aggressive = not (remote.ice2 or renomination)
        for checklist in self.checklists.lists:
            checklist.upgrades = renomination
        self.client.remote_lite = remote.lite
        pending, self._pending = self._pending, ()
        for candidate, stream in pending:
            self.add_remote(candidate, stream, now=now)
        early, self._early = self._early, ()
        for check, base in early:
            self.heard(check, base, now=now)  # those of a description that is not here yet are kept on

    def succeed(self, old: Generation, *, same_side: bool) -> None:
        """Take over what came early, for a description that was not here yet.

        `same_side`: our credentials are the same and only the other side's are new, so that checks count as well.
        """
        self._pending = old._pending
        if same_side:
            self._early = old._early

    def gated(self, flow: Flow, host: str) -> list[Pair]:
        """The pairs that wait for a path to be opened."""
        pairs = self.checklists
        return [pair for pair in pairs if pair.gated and pair.flow == flow and pair.remote_address.host == host]

    def add_remote(self, candidate: Candidate, stream: int, *, now: Instant) -> str:
        """A candidate that was signaled; says what became of it. Order, repetition and lateness do not matter."""
        if self.remote is None:
            if len(self._pending) >= REMOTE_LIMIT:
                return "dropped: too many candidates before the description"
            self._pending += ((candidate, stream),)
            return "kept until the description arrives"
        ufrag = dict(candidate.extensions).get("ufrag")
        if ufrag is not None and ufrag != self.remote.ufrag:
            if len(self._pending) < REMOTE_LIMIT:
                self._pending += ((candidate, stream),)
            return f"kept: the description of its generation is not here (ufrag {ufrag[:16]})"
        if not 0 <= stream < len(self.checklists.lists):
            return f"dropped: there is no stream {stream}"
        checklist = self.checklists.lists[stream]
        if candidate.component > checklist.components:
            return f"dropped: there is no component {candidate.component}"
        known = checklist.remote_at(candidate.component, candidate.address)
        if known is not None and known.type is not CandidateType.PEER_REFLEXIVE:
            return "known already"
        if known is None and len(checklist.remotes) >= REMOTE_LIMIT:
            return f"dropped: {REMOTE_LIMIT} are known already"
        if known is None:
            checklist.remotes.append(candidate)
        else:
            checklist.remotes[checklist.remotes.index(known)] = candidate
            for pair in checklist.pairs:
                if pair.remote is known:
                    pair.readopt(candidate)
            self.checklists.prioritize(self._role.controlling)
        for base in self._bases():
            if base.stream == stream:
                self._pair(base, candidate, "the remote candidate was signaled", now=now)
        return "new" if known is None else "adopted: it was known as peer-reflexive"

    def add_base(self, base: LocalCandidate, *, now: Instant) -> None:
        """A base of ours: paired with every candidate of the other side that was signaled."""
        for candidate in self.checklists.lists[base.stream].remotes:
            if candidate.type is not CandidateType.PEER_REFLEXIVE:
                self._pair(base, candidate, "the local candidate was gathered", now=now)

    def _bases(self) -> Iterable[LocalCandidate]:
        seen: dict[Flow, LocalCandidate] = {}
        for local in self._locals.all:
            if local.is_base or local.flow not in seen:
                seen[local.flow] = local
        return seen.values()

    def _pair(self, base: LocalCandidate, remote: Candidate, reason: str, *, now: Instant) -> None:
        self.checklists.pair(base, remote, self._role.controlling, reason, now=now)

    def trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """Something went wrong on the way; a closed flow takes its pairs with it."""
        self.client.trouble(trouble, now=now)
        if isinstance(trouble, Closed):
            self.authenticated.remove(trouble.flow)
            for pair in list(self.checklists):
                if pair.flow == trouble.flow:
                    self.verdicts.fail(pair, f"the flow is gone: {trouble.reason}", now=now)
                    self.checklists.lists[pair.stream].remove(pair)

    # ------------------------------------------------------------------------------------------------- other's checks

    def heard(self, check: InboundCheck, base: LocalCandidate, *, now: Instant) -> None:
        """An authenticated check came (RFC 8445, sections 7.3.1.3 to 7.3.1.5, and 7.3.2 for a lite agent)."""
        if (base.stream, base.component) not in self.keys:
            return  # it came before the stream was removed
        known = self.checklists.lists[base.stream].at(check.flow, check.remote)
        self.authenticated.add((check.flow, check.remote) if known is None else known.path, base)
        if self.remote is None or check.remote_ufrag != self.remote.ufrag:
            self._keep(check, base)
            return
        pair = self._pair_of(check, base, now=now)
        if pair is None:
            self._journal.dropped(check.remote, "no pair can be made for this check", now=now, packet=check.packet)
            return
        pair.requests_received += 1
        pair.responses_sent += 1
        self._journal.flag(pair, "the other side's check arrived", now=now, readable=True)
        nominate = check.nominate or (self.verdicts.renomination and check.nomination > 0)
        if self.local.lite:
            if nominate:
                self.verdicts.succeeded(pair, "the other side nominated it", now=now, packet=check.packet)
                self.verdicts.nominate(pair, "the other side nominated it", now=now, number=check.nomination)
            return
        if nominate and not self._role.controlling:
            if pair.valid:
                self.verdicts.nominate(pair, "the other side nominated it", now=now, number=check.nomination)
            else:
                pair.nominate_on_success = True
                pair.nomination = max(pair.nomination, check.nomination)
        if not (pair.revoked or pair.asymmetric):
            self._trigger(pair, now=now, packet=check.packet)

    def _keep(self, check: InboundCheck, base: LocalCandidate) -> None:
        """Keep a check until the description that its ufrag is of arrives; one a path, with all that it said."""
        for known, _ in self._early:
            if (known.flow, known.remote, known.remote_ufrag) == (check.flow, check.remote, check.remote_ufrag):
                known.nominate |= check.nominate
                known.nomination = max(known.nomination, check.nomination)
                return
        if len(self._early) < EARLY_LIMIT:
            self._early += ((check, base),)

    def _pair_of(self, check: InboundCheck, base: LocalCandidate, *, now: Instant) -> Pair | None:
        checklist = self.checklists.lists[base.stream]
        pair = checklist.at(check.flow, check.remote)
        if pair is not None:
            return pair
        if self._learnt >= REMOTE_LIMIT or self._leads_nowhere(check):
            return None
        self._learnt += 1
        address = Address(check.remote.host, check.remote.port)
        remote = checklist.remote_at(base.component, address)
        if remote is None:
            if len(checklist.remotes) >= REMOTE_LIMIT:
                return None
            remote = Candidate(
                foundation=f"prflx{self._learnt}",
                component=base.component,
                priority=check.priority,
                address=address,
                type=CandidateType.PEER_REFLEXIVE,
                transport=base.candidate.transport,
            )
            checklist.remotes.append(remote)
            self.note_candidate("remote", remote, "a check came from there", now=now)
        return self.checklists.pair(
            base, remote, self._role.controlling, "the other side's check arrived", now=now, force=True
        )  # fmt: skip

    def _leads_nowhere(self, check: InboundCheck) -> bool:
        """Whether checks between this base and this host were answered from elsewhere again and again."""
        found = 0
        for pair in self.checklists:
            if pair.asymmetric and pair.flow == check.flow and pair.remote_address.host == check.remote.host:
                found += 1
        return found >= ELSEWHERE_LIMIT

    def _trigger(self, pair: Pair, *, now: Instant, packet: int) -> None:
        """Queue a triggered check (section 7.3.1.4)."""
        if pair.state is PairState.SUCCEEDED:
            return
        if pair.state is PairState.IN_PROGRESS and pair.transaction is not None:
            transaction = self.transactions.by_id.get(pair.transaction)
            if transaction is not None:
                if transaction.context.triggered and now - transaction.context.sent_at < self._schedule.rto:
                    return
                self.transactions.cancel(pair.transaction, now=now)
        self._journal.move(pair, PairEvent.TRIGGERED, "the other side's check arrived", now=now, packet=packet)
        self.checklists.lists[pair.stream].trigger(pair)

    def end(self, successor: Generation | None, *, now: Instant) -> None:
        """It is over. Data on its way is still taken if there is a successor."""
        self.transactions.clear()
        if successor is None:
            self.authenticated.revoke()
        else:
            self.authenticated.bequeath(successor.authenticated, successor.has_flow, now=now)

    def has_flow(self, flow: Flow) -> bool:
        """Whether a flow belongs to one of the streams that there are."""
        base = self._locals.base(flow)
        return base is not None and base.key in self.keys

    def note_candidate(self, side: str, candidate: Candidate, reason: str, *, now: Instant) -> None:
        """Write a candidate into the trace."""
        trace = self._journal.trace
        if trace.enabled:
            trace.candidate(reason, now=now, side=side, candidate=str(candidate), agent=self._journal.label)
