"""What becomes of a pair: it succeeded, was nominated, failed (RFC 8445, sections 7.2.5 and 8.1).

These are the consequences that one pair's fate has for itself and for the others of its generation. Each verdict
comes with its reason; the journal tells it.
"""

from __future__ import annotations

from collections.abc import Mapping

from polynya.core.empty import NOTHING
from polynya.core.instants import Instant
from polynya.stun.transactions import Transactions

from .checklist import ChecklistSet
from .checks import Check
from .journal import Journal
from .pairs import Pair, PairEvent, PairState
from .roles import Role


class Verdicts:
    """Moves the pairs of one generation."""

    __slots__ = ("_checklists", "_journal", "_nominations", "_role", "_transactions", "aggressive", "renomination")

    def __init__(
        self, checklists: ChecklistSet, transactions: Transactions[Check], role: Role, journal: Journal
    ) -> None:  # fmt: skip
        self._checklists = checklists
        self._transactions = transactions
        self._role = role
        self._journal = journal
        self._nominations: Mapping[tuple[int, int], int] = NOTHING
        """The number of the last nomination, by stream and component, where such numbers are in use."""
        self.aggressive = False
        """The other side may nominate aggressively: it does not speak RFC 8445."""
        self.renomination = False
        """Nominations are numbered and may be repeated: both sides have signaled it."""

    def succeeded(self, pair: Pair, reason: str, *, now: Instant, packet: int) -> None:
        """A check on the pair was answered: it is valid (section 7.2.5.3)."""
        if pair.revoked:
            return
        pair.answered_at = now
        pair.prioritize(self._role.controlling)
        checklist = self._checklists.lists[pair.stream]
        if not pair.nominating:  # else what is queued or under way is the check that nominates it
            checklist.untrigger(pair)
            self._stop(pair, now=now)
        self._journal.move(pair, PairEvent.ANSWERED, reason, now=now, packet=packet)
        if not pair.valid:
            pair.valid_at = now
            self._journal.flag(pair, reason, now=now, writable=True, valid=True)
        self._checklists.unfreeze(pair.foundation, now=now)

    def trust(self, pair: Pair, *, now: Instant) -> None:
        """Take a pair between two lite agents without any check (section 8.2)."""
        reason = "both sides are lite: chosen without a check"
        pair.valid_at = now
        self._journal.move(pair, PairEvent.ANSWERED, reason, now=now)
        self._journal.flag(pair, reason, now=now, valid=True)
        self.nominate(pair, reason, now=now)

    def number(self, pair: Pair) -> int:
        """What a nominating check of ours says: a new number unless it repeats what holds; 0 without numbers."""
        if not self.renomination:
            return 0
        if not pair.nominating and pair.nominated:
            return pair.nominated_order
        pair.nomination = self._count(pair)
        return pair.nomination

    def superseded(self, pair: Pair) -> bool:
        """Whether a later nomination than this pair's was asked for, and came to nothing as far as we know."""
        return self.renomination and pair.nominated_order < self._nominations.get((pair.stream, pair.component), 0)

    def nominate(self, pair: Pair, reason: str, *, now: Instant, number: int = 0) -> None:
        """A valid pair is nominated, by us or by the other side; `number` counts where such are in use.

        USE-CANDIDATE without a number is number 1, and a number that is not the highest says nothing any more.
        """
        pair.nominate_on_success = False
        if not pair.valid:
            return
        if self.renomination:
            number = max(number, 1)
            key = (pair.stream, pair.component)
            if number < self._nominations.get(key, 0) or (pair.nominated and number == pair.nominated_order):
                return
            self._nominations = {**self._nominations, key: number}
            pair.nominated_order = number
            for other in self._checklists.lists[pair.stream].of(pair.component):
                if other is not pair and other.nominated:
                    self._journal.flag(other, f"pair {pair.id} was nominated in its place", now=now, nominated=False)
        elif pair.nominated:
            return
        else:
            pair.nominated_order = self._count(pair)
        self._journal.flag(pair, reason, now=now, nominated=True)
        higher_stays = self.renomination or (self.aggressive and not self._role.controlling)
        for other in self._checklists.lists[pair.stream].of(pair.component):
            stays = higher_stays and other.priority > pair.priority
            if other is not pair and other.state is PairState.IN_PROGRESS and not stays:
                self._stop(other, now=now)
        self._checklists.set_aside(pair, now=now, higher_stays=higher_stays)

    def _count(self, pair: Pair) -> int:
        key = (pair.stream, pair.component)
        if self.renomination:
            self._nominations = {**self._nominations, key: self._nominations.get(key, 0) + 1}
            return self._nominations[key]
        return 1 + max(other.nominated_order for other in self._checklists.lists[pair.stream].of(pair.component))

    def chosen(self, stream: int, component: int) -> Pair | None:
        """The nominated pair that counts.

        An agent of RFC 8445 nominates one; should it nominate another, it means the newer. Of the several that an
        aggressive agent of RFC 5245 nominates the one of highest priority counts (section 8.1.1.2 there).
        """
        nominated = [p for p in self._checklists.lists[stream].of(component) if p.nominated and p.valid]
        if not nominated:
            return None
        latest = self._role.controlling or not self.aggressive
        return max(nominated, key=lambda p: (p.nominated_order if latest else p.valid_priority, -p.id))

    def fail(self, pair: Pair, reason: str, *, now: Instant, packet: int = 0) -> None:
        """A pair does not work (any more)."""
        reason = pair.explain(reason)
        checklist = self._checklists.lists[pair.stream]
        checklist.untrigger(pair)
        if pair.transaction is not None:
            self._transactions.drop(pair.transaction)
            pair.transaction = None
        pair.nominating = pair.nominate_on_success = False
        self._journal.flag(pair, reason, now=now, writable=False, valid=False, nominated=False)
        self._journal.move(pair, PairEvent.FAILED, reason, now=now, packet=packet)

    def revoke(self, pair: Pair, reason: str, *, now: Instant) -> None:
        """Consent to send on a pair is lost, and for these credentials for good (RFC 7675, section 5.1)."""
        pair.revoked = True
        for transaction in list(self._transactions.by_id.values()):
            if transaction.context.pair is pair:
                self._transactions.drop(transaction.transaction_id)
        self.fail(pair, reason, now=now)

    def role_changed(self) -> None:
        """Priorities depend on the role (section 7.3.1.1); a nomination under way was not ours to make.

        Nor were the numbers that we gave: the other side, which counts from now on, may not have heard of them.
        """
        controlling = self._role.controlling
        self._checklists.prioritize(controlling)
        for pair in self._checklists:
            pair.nominate_on_success = pair.nominating = False
            if self.renomination and not controlling:
                pair.nomination = pair.nominated_order = 0
        if self.renomination and not controlling:
            self._nominations = NOTHING
        if controlling:
            self.repeat()

    def repeat(self) -> None:
        """As the controlling agent, repeat the nominations that hold: the other side may not know of them.

        It was of our role for a while, by the time our nominating check came or was taken up.
        """
        for pair in self._checklists:
            if pair.nominated and not pair.nominating and pair is self.chosen(pair.stream, pair.component):
                pair.nominating = True
                self._checklists.lists[pair.stream].trigger(pair)

    def _stop(self, pair: Pair, *, now: Instant) -> None:
        """Resend the pair's check no more; an answer still counts."""
        if pair.transaction is not None:
            self._transactions.cancel(pair.transaction, now=now)
            pair.transaction = None
