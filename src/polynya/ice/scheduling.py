"""What an agent does next by itself: the nomination that is due, and the checks whose slot has come.

Both only queue or send; what follows from an answer is the client's and the verdicts' business (RFC 8445, sections
6.1.4.2 and 8.1.1).
"""

from __future__ import annotations

from collections.abc import Iterable

from polynya.core.instants import Instant

from .generation import Generation
from .journal import Journal
from .nomination import NominationPolicy
from .pacing import Pacing
from .pairs import PairState
from .selection import Key


def nominate(
    generation: Generation,
    keys: Iterable[Key],
    policy: NominationPolicy,
    journal: Journal,
    *,
    ta: int,
    more_may_come: bool,
    now: Instant,
) -> Instant | None:
    """As the controlling agent, queue the nominating check of each component that is ripe; when to look again."""
    later: list[Instant] = []
    for stream, component in keys:
        checklist = generation.checklists.lists[stream]
        pairs = list(checklist.of(component))
        if any((pair.nominated and pair.valid) or pair.nominating for pair in pairs):
            continue
        decision = policy.decide(pairs, ta=ta, more_may_come=more_may_come)
        if decision is None:
            continue
        if decision.at > now:
            later.append(decision.at)
            continue
        decision.pair.nominating = True
        checklist.trigger(decision.pair)
        journal.note(f"pair {decision.pair.id} is to be nominated: {decision.reason}", now)
    return min(later, default=None)


def run_checks(generation: Generation, pacing: Pacing, now: Instant) -> None:
    """Send the checks whose slot has come; without anything to check no slot is taken."""
    may_check = generation.remote is not None and not generation.local.lite
    while may_check and generation.checklists.has_work():
        if not pacing.ready(now):
            return
        found = generation.checklists.next_check(now)
        if found is None:
            break
        pair, triggered = found
        if pair.state is PairState.SUCCEEDED and not pair.nominating:
            continue
        generation.client.check(pair, now, nominate=pair.nominating, triggered=triggered)
        pacing.used(now)
    pacing.idle()
