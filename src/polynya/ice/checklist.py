"""Checklists: which pairs there are, and which is checked next (RFC 8445, sections 6.1.2 and 6.1.4; RFC 8838, 10 to
12).

A checklist holds the pairs of one stream, highest priority first, and its triggered-check queue; the checklist set
holds the checklists of all streams. A foundation is checked by one pair at a time over the whole set: the others
stay Frozen until that one succeeded, or nothing of their foundation is waiting or under way any more. A check that has
been under way for an RTO holds up nobody: between NATs it may be one that cannot work, and whose transaction runs for
39.5 s, while what works has a foundation of its own, that of a peer-reflexive candidate.

The next check comes from the checklists in turn. In one checklist the triggered checks go first, then the best
Waiting pair, then the best Frozen one whose foundation is idle. A checklist without anything to check uses up no
slot.

    RUNNING -- every component has a nominated pair --> COMPLETED
    RUNNING -- every pair of a component failed, and no more can come --> FAILED
    COMPLETED, FAILED -- a pair is revived by the other side, or the nominated one is lost --> RUNNING
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.stun.transactions import UNRELIABLE

from .candidates import Candidate, LocalCandidate
from .events import PathWanted
from .journal import Journal
from .pairs import Pair, PairEvent, PairState

PAIR_LIMIT: Final = 100
"""Pairs of all checklists together (RFC 8445, section 6.1.2.5)."""

_ACTIVE: Final = (PairState.WAITING, PairState.IN_PROGRESS)
_EXPENDABLE: Final = (PairState.FROZEN, PairState.WAITING, PairState.FAILED)


class ChecklistState(Enum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Checklist:
    """The pairs of one stream."""

    __slots__ = ("components", "pairs", "remotes", "state", "stream", "triggered", "upgrades")

    def __init__(self, stream: int, components: int) -> None:
        self.stream = stream
        self.components = components
        self.state = ChecklistState.RUNNING
        self.pairs: list[Pair] = []
        self.triggered: tuple[Pair, ...] = ()
        self.remotes: list[Candidate] = []
        self.upgrades = False
        """Pairs better than the nominated one are checked on: both sides have signaled `renomination`."""

    def at(self, flow: Flow, remote: Address) -> Pair | None:
        """The pair of a path."""
        path = (flow, remote)
        for pair in self.pairs:
            if pair.path == path:
                return pair
        return None

    def remote_at(self, component: int, address: Address) -> Candidate | None:
        """The remote candidate of an address (without zone)."""
        return next(
            (known for known in self.remotes if known.address == address and known.component == component), None
        )

    def of(self, component: int) -> Iterator[Pair]:
        """The pairs of a component, highest priority first."""
        if self.components == 1:
            return iter(self.pairs)
        return (pair for pair in self.pairs if pair.component == component)

    def wants(self, pair: Pair) -> bool:
        """Whether a check of ours is worth it: nothing is nominated yet, or it is better and that may be changed."""
        chosen = next((known for known in self.of(pair.component) if known.nominated and known.valid), None)
        return chosen is None or (self.upgrades and pair.priority > chosen.priority)

    def trigger(self, pair: Pair) -> None:
        """Queue a triggered check; a pair is queued once (RFC 8445, section 6.1.4.1)."""
        if pair not in self.triggered:
            self.triggered += (pair,)

    def untrigger(self, pair: Pair) -> None:
        """A pair needs no triggered check (any more)."""
        if pair in self.triggered:
            self.triggered = tuple(other for other in self.triggered if other is not pair)

    def next_triggered(self) -> Pair | None:
        """The first triggered check that can be sent."""
        for pair in self.triggered:
            if not pair.gated:
                return pair
        return None

    def add(self, pair: Pair) -> None:
        self.pairs.append(pair)
        self.sort()

    def remove(self, pair: Pair) -> None:
        self.pairs.remove(pair)
        self.untrigger(pair)

    def sort(self) -> None:
        self.pairs.sort(key=_rank)


def _rank(pair: Pair) -> tuple[int, int]:
    return -pair.priority, pair.id


def _place(pair: Pair) -> tuple[int, int, int, int]:
    """Which pair of a foundation goes first: the lowest component, then the highest priority."""
    return pair.component, -pair.priority, pair.stream, pair.id


class ChecklistSet:
    """The checklists of all streams of one generation."""

    __slots__ = ("_last_id", "_rto", "_turn", "journal", "limit", "lists")

    def __init__(
        self,
        components: tuple[int, ...],
        journal: Journal,
        limit: int = PAIR_LIMIT,
        last_id: int = 0,
        rto: int = UNRELIABLE.rto,
    ) -> None:
        self.lists = [Checklist(stream, count) for stream, count in enumerate(components)]
        self.journal = journal
        self.limit = limit
        self._rto = rto
        self._last_id = last_id
        self._turn = 0

    def __iter__(self) -> Iterator[Pair]:
        """All pairs, stream by stream."""
        return (pair for checklist in self.lists for pair in checklist.pairs)

    @property
    def last_id(self) -> int:
        """The highest number of a pair, so that the next generation's go on from there."""
        return self._last_id

    # ------------------------------------------------------------------------------------------------------- formation

    def pair(
        self,
        local: LocalCandidate,
        remote: Candidate,
        controlling: bool,
        reason: str,
        *,
        now: Instant,
        force: bool = False,
    ) -> Pair | None:
        """Make the pair of a base and a remote candidate, or return None where none is to be made.

        `force` is for the path of an authenticated check: it is made even when the checklist is full.
        """
        checklist = self.lists[local.stream]
        address = path_address(local, remote)
        if address is None or checklist.at(local.flow, address) is not None:
            return None
        pair = Pair(self._last_id + 1, local, remote, address)
        pair.prioritize(controlling)
        if not self._make_room(checklist, pair, force, now=now):
            return None
        self._last_id += 1
        checklist.add(pair)
        self.journal.new_pair(pair, reason, now=now)
        if pair.gated:
            self.journal.event(PathWanted(flow=pair.flow, remote=pair.remote_address))
        if not force:
            self._first_state(pair, now=now)
        return pair

    def _make_room(self, checklist: Checklist, pair: Pair, force: bool, *, now: Instant) -> bool:
        """Keep to the limit: a failed pair goes first, then the one of lowest priority.

        RFC 8445, section 6.1.2.5, and RFC 8838, sections 10 and 11. Where consent was lost that is remembered.
        """
        shares = sum(other.components > 0 for other in self.lists)
        if len(checklist.pairs) < max(self.limit // shares, 1):
            return True
        self.journal.count("pairs over the limit")
        expendable = [one for one in checklist.pairs if one.state in _EXPENDABLE and not one.revoked]
        failed = [one for one in expendable if one.state is PairState.FAILED]
        if not expendable:
            return force
        worst = (failed or expendable)[-1]
        if not (failed or force or _rank(worst) > _rank(pair)):
            return False
        checklist.remove(worst)
        self.journal.move(worst, PairEvent.FAILED, "dropped: the checklist is full", now=now)
        return True

    def _first_state(self, pair: Pair, *, now: Instant) -> None:
        """Waiting where its foundation succeeded or it comes first in it, else Frozen (6.1.2.6; RFC 8838, section 12).

        The one that was first until now waits its turn again, as if both had been there from the start.
        """
        if not self.lists[pair.stream].wants(pair):
            return
        group = [other for other in self if other.foundation == pair.foundation and other is not pair]
        if any(other.state is PairState.SUCCEEDED for other in group):
            self.journal.move(pair, PairEvent.UNFREEZE, "a pair of its foundation succeeded", now=now)
        elif all(_place(pair) < _place(other) for other in group):
            for other in group:
                if other.state is PairState.WAITING and other not in self.lists[other.stream].triggered:
                    self.journal.move(other, PairEvent.SET_ASIDE, "another pair of its foundation goes first", now=now)
            self.journal.move(pair, PairEvent.UNFREEZE, "the first of its foundation", now=now)

    def prioritize(self, controlling: bool) -> None:
        """Compute all priorities anew: the role changed (RFC 8445, section 7.3.1.1)."""
        for pair in self:
            pair.prioritize(controlling)
        for checklist in self.lists:
            checklist.sort()

    # -------------------------------------------------------------------------------------------------------- schedule

    def has_work(self, *, now: Instant) -> bool:
        """Whether a slot would be used."""
        for checklist in self.lists:
            if checklist.next_triggered() is not None or self._best(checklist, now=now) is not None:
                return True
        return False

    def next_check(self, *, now: Instant) -> tuple[Pair, bool] | None:
        """Take the pair to check now, and whether it was triggered (RFC 8445, section 6.1.4.2)."""
        for _ in self.lists:
            checklist = self.lists[self._turn]
            self._turn = (self._turn + 1) % len(self.lists)
            pair = checklist.next_triggered()
            if pair is not None:
                checklist.untrigger(pair)
                return pair, True
            pair = self._best(checklist, now=now)
            if pair is not None:
                if pair.state is PairState.FROZEN:
                    self._thaw(checklist, now=now)
                return pair, False
        return None

    def _thaw(self, checklist: Checklist, *, now: Instant) -> None:
        """Nothing of a checklist is Waiting: a Frozen pair of each foundation that is idle is from now on."""
        for pair in checklist.pairs:
            if (
                pair.state is PairState.FROZEN
                and not pair.gated
                and checklist.wants(pair)
                and self._idle(pair.foundation, now=now)
            ):
                self.journal.move(pair, PairEvent.UNFREEZE, "nothing of its foundation is under way", now=now)

    def _best(self, checklist: Checklist, *, now: Instant) -> Pair | None:
        """The best Waiting pair, else the best Frozen one of an idle foundation."""
        if checklist.state is ChecklistState.FAILED:
            return None
        if checklist.state is ChecklistState.COMPLETED and not checklist.upgrades:
            return None
        frozen = None
        for pair in checklist.pairs:
            if pair.gated:
                continue
            if pair.state is PairState.WAITING:
                return pair
            if frozen is None and pair.state is PairState.FROZEN and checklist.wants(pair):
                frozen = pair if self._idle(pair.foundation, now=now) else None
        return frozen

    def _idle(self, foundation: tuple[str, str], *, now: Instant) -> bool:
        """Whether nothing of a foundation is Waiting, or was sent within an RTO and is not answered yet."""
        return not any(
            pair.foundation == foundation
            and pair.state in _ACTIVE
            and (pair.state is PairState.WAITING or pair.checked_at is None or now - pair.checked_at < self._rto)
            for pair in self
        )

    def unfreeze(self, foundation: tuple[str, str], *, now: Instant) -> None:
        """A pair of this foundation succeeded: the others are worth a check (RFC 8445, section 7.2.5.3.3)."""
        for pair in self:
            if pair.state is PairState.FROZEN and pair.foundation == foundation and self.lists[pair.stream].wants(pair):
                self.journal.move(pair, PairEvent.UNFREEZE, "a pair of its foundation succeeded", now=now)

    def set_aside(self, nominated: Pair, *, now: Instant, higher_stays: bool) -> None:
        """A pair was nominated: what is open for its component need not be (RFC 8445, section 8.1.2).

        `higher_stays`: the other side may nominate a better one yet, as in RFC 5245, section 8.1.2.
        """
        checklist = self.lists[nominated.stream]
        for pair in checklist.of(nominated.component):
            if (
                pair is not nominated
                and pair.state in _ACTIVE
                and (not higher_stays or pair.priority < nominated.priority)
            ):
                checklist.untrigger(pair)
                self.journal.move(pair, PairEvent.SET_ASIDE, f"not needed: pair {nominated.id} was nominated", now=now)


def path_address(local: LocalCandidate, remote: Candidate) -> Address | None:
    """Where packets from `local` to `remote` go, or None where the two do not fit (RFC 8445, section 6.1.2.2).

    Family, transport and component must be the same; link-local goes with link-local, loopback with loopback.
    """
    ours, theirs = local.base, remote.address
    if (
        local.component != remote.component
        or local.candidate.transport != remote.transport
        or remote.transport != "udp"
    ):
        return None
    if ours.family != theirs.family or theirs.port == 0:
        return None
    our_scope, their_scope = scope(ours.host), scope(theirs.host)
    if their_scope in ("multicast", "unspecified"):
        return None
    if (our_scope == "loopback") != (their_scope == "loopback"):
        return None
    if theirs.family == 6 and (our_scope == "link-local") != (their_scope == "link-local"):
        return None
    if their_scope == "link-local" and theirs.family == 6 and not theirs.zone:
        return Address(theirs.host, theirs.port, ours.zone)
    return theirs
