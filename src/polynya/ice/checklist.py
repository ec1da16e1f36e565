"""Checklists: formation, order and results of checks (RFC 8445, 6.1.2, 6.1.4, 7.2.5, 8.1; RFC 8838, 10 to 12).

A checklist has the pairs of one stream, highest priority first, and its triggered-check queue. The checklist set has
the checklists of all streams, and it alone moves their pairs: it calls the methods of `Pair` and reports each change,
with its reason, in the outbox.

Over the whole set, one pair of a foundation is checked at a time. Remote candidates of different hosts never share one,
whatever the other side signals. The others stay Frozen until it succeeds, or until no
pair of the foundation is Waiting or In-Progress. A check that is under way for an RTO does not block the others: its
transaction runs for 39.5 s and between NATs it may never succeed, while the path that works has another foundation,
that of a peer-reflexive candidate.

Checklists take turns. In one checklist triggered checks go first, then the best Waiting pair, then the best Frozen one
of an idle foundation. A checklist without a pair to check uses no pacing slot.

    state        every component has a     every pair of a component   a pair is revived, or the
                 nominated pair            failed, and none can come   nominated one is lost
    RUNNING      COMPLETED                 FAILED
    COMPLETED                              FAILED                      RUNNING
    FAILED       COMPLETED                                             RUNNING
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.flows import FlowPath
from polynya.core.instants import Instant
from polynya.stun.transactions import Transactions

from .candidates import Candidate, LocalCandidate
from .checks import Check
from .context import Context
from .description import Description
from .events import PathWanted
from .outbox import Outbox
from .pairs import Pair, PairEvent, PairState

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
        self.triggered: list[Pair] = []
        self.remotes: list[Candidate] = []
        self.upgrades = False
        """Pairs better than the nominated one are still checked: another one can be nominated later."""

    def move(self, state: ChecklistState, outbox: Outbox, *, now: Instant) -> None:
        """Enter a state and trace the change."""
        if self.state is not state:
            outbox.trace.checklist(now=now, stream=self.stream, old=self.state, new=state)
            self.state = state

    def at(self, path: FlowPath) -> Pair | None:
        """Return the pair of a path."""
        for pair in self.pairs:
            if pair.path == path:
                return pair
        return None

    def remote_at(self, component: int, address: Address) -> Candidate | None:
        """Return the remote candidate with an address (without zone)."""
        return next(
            (known for known in self.remotes if known.address == address and known.component == component), None
        )

    def of(self, component: int) -> Iterator[Pair]:
        """Return the pairs of a component, highest priority first."""
        if self.components == 1:
            return iter(self.pairs)
        return (pair for pair in self.pairs if pair.component == component)

    def wants(self, pair: Pair) -> bool:
        """Return whether a pair is worth a check: none is nominated, or it is better and can be nominated later."""
        chosen = next((known for known in self.of(pair.component) if known.nominated and known.valid), None)
        return chosen is None or (self.upgrades and pair.priority > chosen.priority)

    def trigger(self, pair: Pair) -> None:
        """Queue a triggered check; a pair is queued once (RFC 8445, section 6.1.4.1)."""
        if pair not in self.triggered:
            self.triggered.append(pair)

    def untrigger(self, pair: Pair) -> None:
        """Remove the triggered check of a pair from the queue, if there is one."""
        if pair in self.triggered:
            self.triggered.remove(pair)

    def next_triggered(self) -> Pair | None:
        """Return the first triggered check that can be sent."""
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


def _order(pair: Pair) -> tuple[int, int, int, int]:
    """The order of checks within a foundation: the lowest component first, then the highest priority."""
    return pair.component, -pair.priority, pair.stream, pair.id


class ChecklistSet:
    """The checklists of all streams of one generation."""

    __slots__ = ("_context", "_last_id", "_nominations", "_outbox", "_turn", "aggressive", "lists", "renomination",
                 "several",
                 "transactions")  # fmt: skip

    def __init__(
        self,
        components: tuple[int, ...],
        context: Context,
        transactions: Transactions[Check],
        last_id: int = 0,
    ) -> None:
        self.lists = tuple(Checklist(stream, count) for stream, count in enumerate(components))
        self.transactions = transactions
        """The checks under way."""
        self.aggressive = False
        """The other side does not implement RFC 8445, and expects several nominations."""
        self.several = False
        """One side does not implement RFC 8445: the best of several nominated pairs counts."""
        self.renomination = False
        """Nominations are numbered and may be repeated: both sides signaled it."""
        self._context = context
        self._outbox = context.outbox
        self._last_id = last_id
        self._turn = 0
        self._nominations: dict[tuple[int, int], int] = {}
        """The number of the last nomination, by stream and component; used with `renomination`."""

    def __iter__(self) -> Iterator[Pair]:
        """Iterate over all pairs, stream by stream."""
        return (pair for checklist in self.lists for pair in checklist.pairs)

    @property
    def revisable(self) -> bool:
        """Whether this controlling agent may nominate another pair of a component later."""
        return self.renomination or (self.aggressive and self._context.config.aggressive)

    def agree(self, ours: Description, theirs: Description) -> None:
        """Set how both sides nominate, by their descriptions."""
        self.renomination = ours.renomination and theirs.renomination
        self.aggressive = not (theirs.ice2 or self.renomination)
        self.several = not ((ours.ice2 and theirs.ice2) or self.renomination)
        self._set_upgrades()

    def _set_upgrades(self) -> None:
        for checklist in self.lists:
            checklist.upgrades = self.renomination or (self.revisable and self._context.role.controlling)

    @property
    def last_id(self) -> int:
        """The highest id of a pair; the ids of the next generation continue from here."""
        return self._last_id

    def move(self, pair: Pair, event: PairEvent, reason: str, *, now: Instant, packet: int = 0) -> None:
        """Move the state of a pair by `event`, and report a change."""
        old = pair.apply(event, reason, now=now, packet=packet)
        if old is not None and old is not pair.state:
            self._outbox.pair_moved(pair, old, reason, now=now, packet=packet)

    def flag(
        self,
        pair: Pair,
        reason: str,
        *,
        now: Instant,
        writable: bool | None = None,
        readable: bool | None = None,
        valid: bool | None = None,
        nominated: bool | None = None,
    ) -> None:
        """Set flags of a pair, and report a change."""
        if pair.flag(writable=writable, readable=readable, valid=valid, nominated=nominated):
            self._outbox.pair_flagged(pair, reason, now=now)

    # ------------------------------------------------------------------------------------------------------- formation

    def pair(
        self, local: LocalCandidate, remote: Candidate, reason: str, *, now: Instant, force: bool = False
    ) -> Pair | None:
        """Pair a base with a remote candidate. Returns None if they do not fit or are paired.

        `force` is for the path of an authenticated check: its pair is made even if the checklist is full.
        """
        checklist = self.lists[local.stream]
        address = path_address(local, remote)
        if address is None or checklist.at((local.flow, address)) is not None:
            return None
        pair = Pair(self._last_id + 1, local, remote, address)
        pair.prioritize(self._context.role.controlling)
        if not self._make_room(checklist, pair, force, now=now):
            return None
        self._last_id += 1
        checklist.add(pair)
        self._outbox.pair_made(pair, reason, now=now)
        if pair.gated:
            self._outbox.events.append(PathWanted(flow=pair.flow, remote=pair.remote_address))
        if not force:
            self._first_state(pair, now=now)
        return pair

    def _make_room(self, checklist: Checklist, pair: Pair, force: bool, *, now: Instant) -> bool:
        """Keep to the limit of pairs: drop a failed pair first, then the one of lowest priority.

        RFC 8445, section 6.1.2.5, and RFC 8838, sections 10 and 11. Pairs that lost consent stay: their paths must not
        be used again.
        """
        shares = sum(other.components > 0 for other in self.lists)
        if len(checklist.pairs) < max(self._context.config.pair_limit // shares, 1):
            return True
        self._outbox.count("pairs over the limit")
        expendable = [one for one in checklist.pairs if one.state in _EXPENDABLE and not one.revoked]
        failed = [one for one in expendable if one.state is PairState.FAILED]
        if not expendable:
            return force
        worst = (failed or expendable)[-1]
        if not (failed or force or _rank(worst) > _rank(pair)):
            return False
        checklist.remove(worst)
        self.move(worst, PairEvent.FAILED, "dropped: the checklist is full", now=now)
        return True

    def _first_state(self, pair: Pair, *, now: Instant) -> None:
        """Unfreeze a pair whose foundation succeeded, or that is the first of it (6.1.2.6; RFC 8838, section 12).

        The pair that was first until now is set aside, as if both had been made together.
        """
        if not self.lists[pair.stream].wants(pair):
            return
        group = [other for other in self if other.foundation == pair.foundation and other is not pair]
        if any(other.state is PairState.SUCCEEDED for other in group):
            self.move(pair, PairEvent.UNFREEZE, "a pair of its foundation succeeded", now=now)
        elif all(_order(pair) < _order(other) for other in group):
            for other in group:
                if other.state is PairState.WAITING and other not in self.lists[other.stream].triggered:
                    self.move(other, PairEvent.SET_ASIDE, "another pair of its foundation goes first", now=now)
            self.move(pair, PairEvent.UNFREEZE, "the first of its foundation", now=now)

    def prioritize(self) -> None:
        """Compute all priorities again: the role or a candidate changed (RFC 8445, section 7.3.1.1)."""
        for pair in self:
            pair.prioritize(self._context.role.controlling)
        for checklist in self.lists:
            checklist.sort()

    # -------------------------------------------------------------------------------------------------------- schedule

    def has_work(self, *, now: Instant) -> bool:
        """Return whether there is a pair to check."""
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
        """Unfreeze a pair of each idle foundation: no pair of the checklist is Waiting."""
        for pair in checklist.pairs:
            if (
                pair.state is PairState.FROZEN
                and not pair.gated
                and checklist.wants(pair)
                and self._idle(pair.foundation, now=now)
            ):
                self.move(pair, PairEvent.UNFREEZE, "nothing of its foundation is under way", now=now)

    def _best(self, checklist: Checklist, *, now: Instant) -> Pair | None:
        """Return the best Waiting pair, or else the best Frozen one of an idle foundation."""
        if checklist.state is ChecklistState.FAILED:
            return None
        if checklist.state is ChecklistState.COMPLETED and not checklist.upgrades:
            return None
        frozen = None
        for pair in checklist.pairs:
            if pair.nominated and pair.valid and checklist.components == 1:
                break  # the rest is worse
            if pair.gated:
                continue
            if pair.state is PairState.WAITING:
                return pair
            if frozen is None and pair.state is PairState.FROZEN and checklist.wants(pair):
                frozen = pair if self._idle(pair.foundation, now=now) else None
        return frozen

    def _idle(self, foundation: tuple[str, str, str], *, now: Instant) -> bool:
        """Return whether no pair of a foundation is Waiting, or was checked within the last RTO and not answered."""
        rto = self._context.config.schedule.first_wait
        return not any(
            pair.foundation == foundation
            and pair.state in _ACTIVE
            and (pair.state is PairState.WAITING or pair.checked_at is None or now - pair.checked_at < rto)
            for pair in self
        )

    # ------------------------------------------------------------------------------------------------ results of checks

    def check_sent(self, pair: Pair, transaction: bytes, *, now: Instant) -> None:
        """Record a check. It replaces the one under way, whose response still counts."""
        self.stop_check(pair, now=now)
        pair.check_sent(transaction, now=now)
        self.move(pair, PairEvent.CHECK_SENT, "a check was sent", now=now)

    def trigger(self, pair: Pair, reason: str, *, now: Instant, packet: int) -> None:
        """Queue a triggered check, unless the pair has succeeded; a failed pair is revived (section 7.3.1.4)."""
        if pair.state is PairState.SUCCEEDED:
            return
        self.move(pair, PairEvent.TRIGGERED, reason, now=now, packet=packet)
        self.lists[pair.stream].trigger(pair)

    def succeeded(self, pair: Pair, reason: str, *, now: Instant, packet: int) -> None:
        """Make a pair valid: a check on it was answered (section 7.2.5.3)."""
        if pair.revoked:
            return
        pair.answered(now=now)
        pair.prioritize(self._context.role.controlling)
        if not pair.nominating:  # otherwise the check queued or under way carries the nomination
            self.lists[pair.stream].untrigger(pair)
            self.stop_check(pair, now=now)
        self.move(pair, PairEvent.ANSWERED, reason, now=now, packet=packet)
        if not pair.valid:
            pair.validated(now=now)
            self.flag(pair, reason, now=now, writable=True, valid=True)
        for other in self:  # the rest of its foundation is worth a check (section 7.2.5.3.3)
            if (
                other.state is PairState.FROZEN
                and other.foundation == pair.foundation
                and self.lists[other.stream].wants(other)
            ):
                self.move(other, PairEvent.UNFREEZE, "a pair of its foundation succeeded", now=now)

    def fail(self, pair: Pair, reason: str, *, now: Instant, packet: int = 0) -> None:
        """Fail a pair: it does not work, or no longer."""
        reason = pair.explain(reason)
        self.lists[pair.stream].untrigger(pair)
        if pair.transaction is not None:
            self.transactions.drop(pair.transaction)
        pair.failed()
        self.flag(pair, reason, now=now, writable=False, valid=False, nominated=False)
        self.move(pair, PairEvent.FAILED, reason, now=now, packet=packet)

    def revoke(self, pair: Pair, reason: str, *, now: Instant) -> None:
        """Fail a pair whose consent is lost, which is final for these credentials (RFC 7675, section 5.1)."""
        pair.revoke()
        for transaction in list(self.transactions.by_id.values()):
            if transaction.context.pair is pair:
                self.transactions.drop(transaction.transaction_id)
        self.fail(pair, reason, now=now)

    def nominating_sent(self, pair: Pair, *, now: Instant) -> None:
        """Record a nominating check: the last one of the component."""
        pairs = self.lists[pair.stream].of(pair.component)
        pair.nominating_sent(1 + max(other.nominating_order for other in pairs), now=now)

    def withdraw(self, pair: Pair, *, now: Instant) -> None:
        """Check a pair without its early nomination, which had no answer in time."""
        pair.withdraw()
        self.stop_check(pair, now=now)
        self.lists[pair.stream].trigger(pair)

    def stop_check(self, pair: Pair, *, now: Instant) -> None:
        """Stop resending the check of a pair; a response still counts."""
        if pair.transaction is not None:
            self.transactions.cancel(pair.transaction, now=now)
            pair.check_over()

    # ------------------------------------------------------------------------------------------------------ nomination

    def number(self, pair: Pair) -> int:
        """Return the number for a nominating check: a new one, the present one to repeat it, or 0 if none are used."""
        if not self.renomination:
            return 0
        if not pair.nominating and pair.nominated:
            return pair.nominated_order
        pair.number_nomination(self._count(pair))
        return pair.nomination

    def superseded(self, pair: Pair) -> bool:
        """Return whether a later nomination than this pair's was sent, and failed as far as we know."""
        return self.renomination and pair.nominated_order < self._nominations.get((pair.stream, pair.component), 0)

    def nominate(self, pair: Pair, reason: str, *, now: Instant, number: int = 0) -> None:
        """Nominate a valid pair, for us or for the other side. `number` counts if nominations are numbered.

        USE-CANDIDATE without a number has number 1. A number that is not the highest is ignored.
        """
        pair.nomination_taken()
        if not pair.valid:
            return
        if self.renomination:
            number = max(number, 1)
            key = (pair.stream, pair.component)
            if number < self._nominations.get(key, 0) or (pair.nominated and number == pair.nominated_order):
                return
            self._nominations[key] = number
            pair.nominated_as(number)
            for other in self.lists[pair.stream].of(pair.component):
                if other is not pair and other.nominated:
                    self.flag(other, f"pair {pair.id} was nominated in its place", now=now, nominated=False)
        elif pair.nominated:
            return
        else:
            pair.nominated_as(self._count(pair))
        self.flag(pair, reason, now=now, nominated=True)
        self.set_aside(pair, now=now)

    def set_aside(self, nominated: Pair, *, now: Instant) -> None:
        """Stop the checks of a component's other pairs: one is nominated (RFC 8445, section 8.1.2).

        Better pairs stay if the other side may nominate one of them later (as in RFC 5245, section 8.1.2).
        """
        checklist = self.lists[nominated.stream]
        higher_stays = self.revisable if self._context.role.controlling else self.renomination or self.several
        for other in checklist.of(nominated.component):
            stays = higher_stays and other.priority > nominated.priority
            if other is not nominated and other.state is PairState.IN_PROGRESS and not stays:
                self.stop_check(other, now=now)
        for pair in checklist.of(nominated.component):
            if (
                pair is not nominated
                and pair.state in _ACTIVE
                and (not higher_stays or pair.priority < nominated.priority)
            ):
                checklist.untrigger(pair)
                self.move(pair, PairEvent.SET_ASIDE, f"not needed: pair {nominated.id} was nominated", now=now)

    def _count(self, pair: Pair) -> int:
        key = (pair.stream, pair.component)
        if self.renomination:
            self._nominations[key] = self._nominations.get(key, 0) + 1
            return self._nominations[key]
        return 1 + max(other.nominated_order for other in self.lists[pair.stream].of(pair.component))

    def trust(self, pair: Pair, *, now: Instant) -> None:
        """Nominate a pair of two lite agents without a check (section 8.2)."""
        reason = "both sides are lite: chosen without a check"
        pair.validated(now=now)
        self.move(pair, PairEvent.ANSWERED, reason, now=now)
        self.flag(pair, reason, now=now, valid=True)
        self.nominate(pair, reason, now=now)

    def chosen(self, stream: int, component: int) -> Pair | None:
        """Return the nominated pair in force.

        An agent of RFC 8445 nominates one pair; if it nominates another, the later one counts. If an agent of RFC 5245
        takes part, the nominated pair of highest priority counts (section 8.1.1.2 there).
        """
        nominated = [pair for pair in self.lists[stream].of(component) if pair.nominated and pair.valid]
        if not nominated:
            return None
        latest = not self.several
        return max(nominated, key=lambda pair: (pair.nominated_order if latest else pair.valid_priority, -pair.id))

    def role_changed(self) -> None:
        """Adapt priorities and nominations to the new role (section 7.3.1.1).

        A nomination under way belonged to the old role. As the controlled agent we also forget the numbers that we
        used: the other side counts from now on and may not have seen them.
        """
        controlling = self._context.role.controlling
        forget = self.renomination and not controlling
        self._set_upgrades()
        self.prioritize()
        for pair in self:
            pair.role_changed(forget_numbers=forget)
        if forget:
            self._nominations.clear()
        if controlling:
            self.repeat_nominations()

    def repeat_nominations(self) -> None:
        """As the controlling agent, repeat the nominations in force: the other side may not have accepted them.

        It had our role for a while, when our nominating check arrived or when it handled the check.
        """
        for pair in self:
            if pair.nominated and not pair.nominating and pair is self.chosen(pair.stream, pair.component):
                pair.begin_nomination()
                self.lists[pair.stream].trigger(pair)


def path_address(local: LocalCandidate, remote: Candidate) -> Address | None:
    """Return the destination of packets from `local` to `remote`, or None if they form no pair (RFC 8445, 6.1.2.2).

    Family, transport and component must be equal; link-local pairs with link-local, loopback with loopback.
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
