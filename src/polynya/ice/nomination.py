"""Nomination by the controlling agent: which valid pair, and when (RFC 8445, section 8.1.1: regular nomination).

The RFC leaves the moment to the agent. Data flows on a valid pair anyway, but some peers wait for the nomination.
So the policy waits only for what can still be won:

1. No better pair can succeed any more (each has failed, and neither side has candidates to add): nominate at once.
2. Each better pair under check has the time of one response: one round trip of the best valid pair, and no less than
   Ta, from its first check. A better pair that has had this time is not waited for. While candidates may follow, the
   best valid pair itself must be valid for this time.
3. While a better pair has not been checked at all, the policy waits, but no longer than `untried` after the first
   valid pair: a dead candidate must not delay the rest. Whatever is open, it waits no longer than `bound`.
4. A relay is second best. Between two NATs the first check of a direct pair may do no more than open a filter, and the
   next one, an RTO later, gets through. If the nomination is final, a direct pair has `second_check` more while all
   valid pairs are relayed.

A nomination is final unless another pair can be nominated later:

- Both sides have signaled `renomination` (draft-thatcher-ice-renomination). Then each nominating check carries a
  number, and the highest number counts. `Renomination` is the policy for this.
- The other side does not signal `ice2`. Agents of RFC 5245 expect several nominations (its section 8.1.1.2) and use
  the best of them, or the latest.

In both cases better pairs are checked on after the first nomination.

Such agents of RFC 5245 often use no pair before it is nominated. So the nomination need not wait for the answer to our
own check (`IceConfig.aggressive`): once a check of theirs has arrived on the best pair that may work, our next
check on it carries USE-CANDIDATE. At most one pair of a component at a time does so. The other side checks its pairs in
our order, so its checks on better pairs would have arrived before, if they could. Without an answer within a round trip
of another valid pair the nomination is withdrawn, and that pair is nominated. Relayed pairs are not nominated early.

Otherwise only pairs whose *own* check was answered count: a one-way path is never nominated for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    untried: int
    second_check: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NominationPolicy:
    """Parameters of regular nomination. Durations are seconds."""

    round_trips: float = 1.0
    """The settling time, in round trips of the best pair."""
    minimum: float = 0.0
    """The shortest settling time; Ta counts if it is longer."""
    bound: float = 1.0
    """The longest wait after a component's first valid pair. 0 nominates the first valid pair at once."""
    untried: float = 0.5
    """The longest wait after the first valid pair for better pairs that have not been checked: an RTO."""
    second_check: float = 0.5
    """Added to all times for a direct pair, if all valid pairs are relayed and the nomination is final: an RTO."""
    _terms: _Terms = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        real("round_trips", self.round_trips, MAX_ROUND_TRIPS)
        terms = _Terms(
            minimum=duration("minimum", self.minimum),
            bound=duration("bound", self.bound),
            untried=duration("untried", self.untried),
            second_check=duration("second_check", self.second_check),
        )
        object.__setattr__(self, "_terms", terms)

    @classmethod
    def immediate(cls) -> NominationPolicy:
        """Return a policy that nominates the first valid pair, for example if all local candidates are relayed."""
        return cls(round_trips=0.0, bound=0.0, second_check=0.0)


def regular(
    policy: NominationPolicy,
    pairs: Iterable[Pair],
    *,
    ta: int,
    more_may_come: bool,
    final: bool = True,
    heard: bool = False,
) -> Decision | None:
    """Choose the pair of one component to nominate, and the time; None without a valid pair.

    `pairs` are all pairs of the component, the best first; `ta` is nanoseconds. `final`: no other pair can be
    nominated later. `heard`: the other side uses no pair before its own check is answered, so a pair whose check of
    the other side has not arrived is nominated at the bound only.
    """
    unheard: list[Pair] = []
    better: list[Pair] = []
    best: Pair | None = None
    first: Instant | None = None
    for pair in pairs:
        if pair.valid and pair.valid_at is not None:
            first = pair.valid_at if first is None else min(first, pair.valid_at)
            if heard and not pair.readable:
                unheard += [pair] if best is None else []
            else:
                best = best or pair
        elif best is None and pair.state in _OPEN:
            better.append(pair)
    if first is not None and unheard and (best is None or (best.relayed and not unheard[0].relayed)):
        wait = min(policy._terms.untried, policy._terms.bound)
        return Decision(best or unheard[0], Instant(first + wait), "the wait for its checks is over")
    if best is None or first is None or best.valid_at is None:
        return None
    if not better and not more_may_come:
        return Decision(best, best.valid_at, "no better pair can come")
    terms = policy._terms
    more = terms.second_check if final and best.relayed and any(not pair.relayed for pair in better) else 0
    latest = Instant(first + terms.bound + more)
    if any(pair.state in _UNTRIED for pair in better):
        untried = Instant(first + min(terms.untried, terms.bound) + more)
        return Decision(best, untried, "the wait for better pairs, not checked yet, is over")
    settle = max(ta, terms.minimum, round(policy.round_trips * round_trip(best)))
    tried = [pair.tried_at + settle + more for pair in better if pair.tried_at is not None]
    at = max([best.valid_at + (settle if more_may_come else terms.minimum), *tried])
    if at < latest:
        return Decision(best, Instant(at), "nothing better was answered within a round trip")
    return Decision(best, latest, "the wait for better pairs, not answered yet, is over")


def early(pairs: Iterable[Pair]) -> Pair | None:
    """Choose the pair of one component to nominate before it is valid; None if there is none.

    `pairs` are all pairs of the component, the best first.
    """
    for pair in pairs:
        if pair.valid or pair.relayed:
            return None
        if pair.promising:
            return pair
        if pair.state in _UNTRIED:
            return None
    return None


def can_follow(pair: Pair, nominated: Pair) -> bool:
    """Return whether an agent of RFC 5245 uses `pair` if it is nominated after `nominated`.

    Some agents stop their checks when a pair is nominated. A pair that they were checking at that moment never succeeds
    there. So the check of the other side on `pair` must have been answered before the nomination arrived, or must have
    been sent afterwards. Half a round trip is the time of one way.
    """
    if nominated.nominating_at is None or pair.first_request_at is None or pair.last_request_at is None:
        return False
    answered = pair.first_request_at + round_trip(pair) // 2
    sent = pair.last_request_at - round_trip(pair) // 2
    arrived = nominated.nominating_at
    return answered <= arrived + (nominated.rtt or 0) // 2 or sent > arrived + round_trip(nominated) // 2


def later(pairs: Sequence[Pair], nominated: Pair) -> Decision | None:
    """Choose the pair to nominate after `nominated` for an agent of RFC 5245: a direct one after a relayed one.

    An early nomination is known to the other side even if its answer did not come, or came from another address. The
    pair with that address is nominated once it is valid, so that both sides use it.

    `pairs` are those of the component, the best first.
    """
    if any(pair.nominating_order > nominated.nominating_order for pair in pairs):
        return Decision(nominated, Instant(0), "the other side may use the pair that was nominated last")
    above = pairs[: pairs.index(nominated)]
    strayed = {(pair.flow, pair.answered_from) for pair in above if pair.nominating_order}
    for pair in above:
        if pair.valid and pair.path in strayed:
            return Decision(pair, Instant(0), "an early nomination was answered from there")
        if pair.valid and pair.nominating_order:
            return Decision(pair, Instant(0), "it was nominated early, and the other side may use it")
        if pair.valid and nominated.relayed and not pair.relayed and can_follow(pair, nominated):
            return Decision(pair, Instant(0), "a direct pair works")
    return None


def round_trip(pair: Pair) -> int:
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
    settle: float = 0.0
    """A better pair is nominated once it has been valid for this long, seconds."""
    _settle: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flag("automatic", self.automatic)
        object.__setattr__(self, "_settle", duration("settle", self.settle))


def again(policy: Renomination, pairs: Iterable[Pair], nominated: Pair) -> Decision | None:
    """Choose the pair to nominate in place of `nominated`, and the time; `pairs` are those of its component."""
    if not policy.automatic:
        return None
    for pair in pairs:
        if pair is nominated:
            return None
        if pair.valid and pair.valid_at is not None:
            return Decision(pair, Instant(pair.valid_at + policy._settle), "a better pair works")
    return None


AGAIN: Final = Renomination()
"""The policy of later nominations with its defaults."""
