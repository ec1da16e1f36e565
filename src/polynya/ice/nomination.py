"""Nomination by the controlling agent: which valid pair, and when (RFC 8445, section 8.1.1: regular nomination).

The RFC leaves the moment to the agent. Data flows on the first valid pair anyway, so the policy may wait, but not long:

1. No better pair can succeed any more (each has failed, and neither side has candidates to add): nominate at once.
2. Otherwise the best valid pair must remain the best for a settling time: one of its round trips, and no less than Ta.
   The time counts from when the pair became valid, or from the first check of the last better pair if that is later.
   So each better pair has the time of one response. While a better pair has not been checked at all, the policy waits.
3. Never later than `bound` after the first valid pair, whatever is open: a dead candidate must not delay the rest.
4. A relay is second best. Between two NATs the first check of a direct pair may do no more than open a filter; the
   next one, an RTO later, or the first check of the other side, which waits for signaling, gets through. While all
   valid pairs are relayed, a direct pair under check has `second_check` more than a round trip, and the bound is
   `direct_bound`.

Only pairs whose *own* check was answered count: a one-way path is never nominated.

A nomination is final unless both sides have signaled `renomination` (draft-thatcher-ice-renomination). Then each
nominating check carries a number, the highest number counts, and the controlling agent may nominate another pair at any
time. `Renomination` is the policy for this. Both sides then check better pairs on after the first nomination.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from polynya.core.arguments import flag, real
from polynya.core.instants import Instant, duration

from .pairs import Pair, PairState

_OPEN = (PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS)
_UNTRIED = (PairState.FROZEN, PairState.WAITING)

MAX_ROUND_TRIPS: Final = 1_000_000


class Decision(NamedTuple):
    """Nominate `pair` at `at`, unless a pair changes before."""

    pair: Pair
    at: Instant
    reason: str


class _Terms(NamedTuple):
    """The durations of a `NominationPolicy` in nanoseconds."""

    minimum: int
    bound: int
    second_check: int
    direct_bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NominationPolicy:
    """Parameters of regular nomination. Durations are seconds."""

    round_trips: float = 1.0
    """The settling time, in round trips of the best pair."""
    minimum: float = 0.0
    """The shortest settling time; Ta counts if it is longer."""
    bound: float = 1.0
    """The longest wait after a component's first valid pair. 0 nominates the first valid pair at once."""
    second_check: float = 1.0
    """Added to the round trips for a direct pair while all valid pairs are relayed: an RTO and half a second."""
    direct_bound: float = 2.0
    """Replaces `bound` while all valid pairs are relayed and a direct pair is open; no less than `bound`."""
    _terms: _Terms = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        real("round_trips", self.round_trips, MAX_ROUND_TRIPS)
        terms = _Terms(
            minimum=duration("minimum", self.minimum),
            bound=duration("bound", self.bound),
            second_check=duration("second_check", self.second_check),
            direct_bound=duration("direct_bound", self.direct_bound),
        )
        object.__setattr__(self, "_terms", terms)

    @classmethod
    def immediate(cls) -> NominationPolicy:
        """Return a policy that nominates the first valid pair, for example if all local candidates are relayed."""
        return cls(round_trips=0.0, bound=0.0, second_check=0.0, direct_bound=0.0)

    def decide(self, pairs: Iterable[Pair], *, ta: int, more_may_come: bool) -> Decision | None:
        """Choose the pair of one component to nominate, and the time; None without a valid pair.

        `pairs` are all pairs of the component, the best first; `ta` is nanoseconds.
        """
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
        terms = self._terms
        direct = best.relayed and any(not pair.relayed for pair in better)
        latest = Instant(first + (max(terms.bound, terms.direct_bound) if direct else terms.bound))
        if any(pair.state in _UNTRIED for pair in better):
            return Decision(best, latest, "the wait for better pairs, not checked yet, is over")
        since = max([best.valid_at, *(pair.tried_at for pair in better if pair.tried_at is not None)])
        settle = max(ta, terms.minimum, round(self.round_trips * _round_trip(best)))
        settle += terms.second_check if direct else 0
        if since + settle < latest:
            return Decision(best, Instant(since + settle), "nothing better was answered within a round trip")
        return Decision(best, latest, "the wait for better pairs, not answered yet, is over")


def _round_trip(pair: Pair) -> int:
    """Return the measured round trip, or an upper bound if the response may belong to any of several sends."""
    if pair.rtt is not None:
        return pair.rtt
    return 0 if pair.valid_at is None or pair.tried_at is None else pair.valid_at - pair.tried_at


REGULAR: Final = NominationPolicy()
"""The policy with its defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renomination:
    """Policy of later nominations; used if both sides have signaled `renomination`."""

    automatic: bool = True
    """False: only by `IceAgent.nominate`."""
    settle: float = 1.0
    """A better pair is nominated once it has been valid for this long, seconds."""
    _settle: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flag("automatic", self.automatic)
        object.__setattr__(self, "_settle", duration("settle", self.settle))

    def decide(self, pairs: Iterable[Pair], nominated: Pair) -> Decision | None:
        """Choose the pair to nominate in place of `nominated`, and the time; `pairs` are those of its component."""
        if not self.automatic:
            return None
        for pair in pairs:
            if pair is nominated:
                return None
            if pair.valid and pair.valid_at is not None:
                return Decision(pair, Instant(pair.valid_at + self._settle), "a better pair works")
        return None
