"""What an agent does next by itself: the nomination that is due, and the checks whose slot has come.

Both only queue or send; what follows from an answer is the client's and the verdicts' business (RFC 8445, sections
6.1.4.2 and 8.1.1).
"""

from __future__ import annotations

from collections.abc import Iterable

from polynya.core.errors import UsageError
from polynya.core.instants import Instant

from .generation import Generation
from .journal import Journal
from .nomination import Decision, NominationPolicy, Renomination
from .pacing import Pacing
from .pairs import Pair, PairState


def nominate(
    generation: Generation,
    policy: NominationPolicy,
    again: Renomination | None,
    journal: Journal,
    *,
    ta: int,
    more_may_come: bool,
    now: Instant,
) -> Instant | None:
    """As the controlling agent, queue the nominating check of each component that is ripe; when to look again.

    `again`: what is nominated may be changed, should the other side have signaled that it follows.
    """
    later: list[Instant] = []
    for stream, component in generation.keys:
        pairs = list(generation.checklists.lists[stream].of(component))
        if any(pair.nominating for pair in pairs):
            continue
        nominated = generation.verdicts.chosen(stream, component)
        if nominated is None:
            decision = policy.decide(pairs, ta=ta, more_may_come=more_may_come)
        else:
            decision = _change(generation, nominated, pairs, again)
        if decision is None:
            continue
        if decision.at > now:
            later.append(decision.at)
            continue
        _queue(generation, decision.pair, decision.reason, journal, now=now)
    return min(later, default=None)


def nominate_by_hand(generation: Generation, pair_id: int, journal: Journal, *, now: Instant) -> None:
    """Queue the nominating check of the pair that the owner chose; UsageError where that cannot be."""
    pair = next((pair for pair in generation.checklists if pair.id == pair_id), None)
    if pair is None or not pair.valid:
        raise UsageError(f"nominate: there is no valid pair {pair_id}")
    checklist, again = generation.checklists.lists[pair.stream], generation.verdicts.renomination
    for other in checklist.of(pair.component):
        if other is pair or again:
            continue
        if other.nominated and other.valid:
            raise UsageError(f"nominate: pair {other.id} is nominated, and not both sides signaled `renomination`")
        if other.nominating and other not in checklist.triggered:
            raise UsageError(
                f"nominate: pair {other.id} is being nominated, and not both sides signaled `renomination`"
            )
        other.nominating = False
    if not pair.nominated:
        _queue(generation, pair, "as asked for", journal, now=now)


def _queue(generation: Generation, pair: Pair, reason: str, journal: Journal, *, now: Instant) -> None:
    """Let the next triggered check of a pair be the one that nominates it."""
    pair.nominating = True
    generation.checklists.lists[pair.stream].trigger(pair)
    journal.note(f"pair {pair.id} is to be nominated: {reason}", now=now)


def _change(
    generation: Generation, nominated: Pair, pairs: Iterable[Pair], again: Renomination | None
) -> Decision | None:
    """What to nominate although there is a nominated pair (draft-thatcher-ice-renomination)."""
    if again is None or not generation.verdicts.renomination or nominated.valid_at is None:
        return None
    if generation.verdicts.superseded(nominated):
        return Decision(nominated, nominated.valid_at, "the nomination of another pair came to nothing")
    return again.decide(pairs, nominated)


def choose_unchecked(generation: Generation, *, now: Instant) -> None:
    """Between two lite agents nothing is checked: once all candidates are known, each component's best pair is taken.

    RFC 8445, section 8.2 leaves the choice among several pairs to RFC 6724 and has the controlling agent reconcile the
    two sides. The priority of a pair follows the same preferences and both sides compute it alike.
    """
    if generation.remote is None or not (generation.local.lite and generation.remote.lite):
        return
    for stream, component in generation.keys:
        best = next(generation.checklists.lists[stream].of(component), None)
        if best is not None and generation.verdicts.chosen(stream, component) is None:
            generation.authenticated.add(best.path, best.local)
            generation.verdicts.trust(best, now=now)


def run_checks(generation: Generation, pacing: Pacing, *, now: Instant) -> None:
    """Send the checks whose slot has come; without anything to check no slot is taken."""
    may_check = generation.remote is not None and not generation.local.lite
    while may_check and generation.checklists.has_work(now=now):
        if not pacing.ready(now=now):
            return
        found = generation.checklists.next_check(now=now)
        if found is None:
            break
        pair, triggered = found
        if pair.state is PairState.SUCCEEDED and not pair.nominating:
            continue
        generation.client.check(pair, now=now, nominate=pair.nominating, triggered=triggered)
        pacing.used(now=now)
    pacing.idle()
