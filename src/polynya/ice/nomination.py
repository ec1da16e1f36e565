"""When the controlling agent nominates which valid pair (RFC 8445, section 8.1.1: regular nomination).

The RFC leaves the moment to the agent. Data flows on the first valid pair anyway, so the policy has time, but not
much:

1. No better pair can still come (every better one failed, and neither side has candidates to add): at once.
2. Otherwise the best valid pair has to stay the best while things settle: for one round trip of its own, and no less
   than Ta, counted from when it became valid or the last better pair was first tried, so that each better pair has the
   time of one answer. While a better pair has not been tried at all, it is waited for.
3. Never later than `bound` after the first valid pair, whatever is still open: a dead candidate must not hold up the
   rest.
4. A relay is second best: between two NATs the first check of a direct pair may do no more than open a filter; the next
   one, an RTO later, or the other side's first, which waits for signaling, gets through. While all valid pairs are
   relayed, a direct pair that was tried has `second_check` more than a round trip, and the bound is `direct_bound`.

A pair is only looked at once *our own* check on it was answered: a one-way path is never nominated.

A nomination is for good, unless both sides have signaled `renomination` (draft-thatcher-ice-renomination): then each
nominating check carries a number, the highest counts, and the controlling agent may nominate another pair at any time.
`Renomination` says when it does so by itself. Better pairs are then checked on after the first nomination, by both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from polynya.core.instants import SECOND, Instant

from .pairs import Pair, PairState

_OPEN = (PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS)
_UNTRIED = (PairState.FROZEN, PairState.WAITING)


class Decision(NamedTuple):
    """Nominate `pair` at `at`, unless something changes until then."""

    pair: Pair
    at: Instant
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NominationPolicy:
    """The parameters of the rule above."""

    round_trips: float = 1.0
    """How many of the best pair's round trips to settle for."""
    minimum: int = 0
    """The least settling time, nanoseconds; Ta counts when it is more."""
    bound: int = SECOND
    """The longest wait after a component's first valid pair, nanoseconds. 0 nominates the first valid pair at once."""
    second_check: int = SECOND
    """What a direct pair has beyond a round trip, nanoseconds: an RTO and half a second."""
    direct_bound: int = 2 * SECOND
    """As `bound`, while all valid pairs are relayed and a direct one is open; no less than `bound`."""

    def __post_init__(self) -> None:
        if min(self.round_trips, self.minimum, self.bound, self.second_check, self.direct_bound) < 0:
            raise ValueError("the terms of a nomination policy are zero or more")

    @classmethod
    def immediate(cls) -> NominationPolicy:
        """Wait for nothing, as fits an agent that has only relayed candidates."""
        return cls(round_trips=0.0, bound=0, second_check=0, direct_bound=0)

    def decide(self, pairs: Iterable[Pair], *, ta: int, more_may_come: bool) -> Decision | None:
        """What to nominate and when, from all pairs of one component, the best first; None without a valid pair."""
        better: list[Pair] = []
        best: Pair | None = None
        first: Instant | None = None
        for pair in pairs:
            if pair.valid and pair.valid_at is not None:
                best = best or pair
                first = pair.valid_at if first is None else min(first, pair.valid_at)
            elif best is None and pair.state in _OPEN:
                better.append(pair)
        if best is None or first is None or best.valid_at is None:
            return None
        if not better and not more_may_come:
            return Decision(best, best.valid_at, "no better pair can come")
        direct = best.relayed and any(not pair.relayed for pair in better)
        latest = Instant(first + (max(self.bound, self.direct_bound) if direct else self.bound))
        if any(pair.state in _UNTRIED for pair in better):
            return Decision(best, latest, "better pairs are not tried yet, but have waited long enough")
        since = max([best.valid_at, *(pair.tried_at for pair in better if pair.tried_at is not None)])
        settle = max(ta, self.minimum, round(self.round_trips * _round_trip(best)))
        settle += self.second_check if direct else 0
        if since + settle < latest:
            return Decision(best, Instant(since + settle), "nothing better was answered within a round trip")
        return Decision(best, latest, "better pairs are still unanswered, but have waited long enough")


def _round_trip(pair: Pair) -> int:
    """What was measured, or where the answer may be to any of several sends, no less than it."""
    if pair.rtt is not None:
        return pair.rtt
    return 0 if pair.valid_at is None or pair.tried_at is None else pair.valid_at - pair.tried_at


REGULAR: Final = NominationPolicy()
"""The rule with its own terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renomination:
    """Nominate a better pair later, where the other side has signaled that it follows."""

    automatic: bool = True
    """False: only by hand, with `IceAgent.nominate`."""
    settle: int = SECOND
    """How long a better pair has to have been valid, nanoseconds."""

    def __post_init__(self) -> None:
        if self.settle < 0:
            raise ValueError("the settling time of a renomination is zero or more")

    def decide(self, pairs: Iterable[Pair], nominated: Pair) -> Decision | None:
        """What to nominate in place of `nominated` and when, from the pairs of its component, the best first."""
        if not self.automatic:
            return None
        for pair in pairs:
            if pair is nominated:
                return None
            if pair.valid and pair.valid_at is not None:
                return Decision(pair, Instant(pair.valid_at + self.settle), "a better pair works")
        return None
