"""How far an agent is, by its pairs (RFC 8445, section 8.1.2; RFC 8863; RFC 8838, section 8).

A component is given up when all of these hold: no pair is valid, open or queued; the patience of RFC 8863 is over,
since the other side's checks may come from where no candidate told of; and no more candidates are to come, or have
been waited for long enough. It is given up at once when the consent of its selected pair is lost and no other pair
is valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from polynya.core.errors import Attempt
from polynya.core.instants import Instant

from .candidates import LocalCandidates
from .checklist import Checklist, ChecklistState
from .config import IceConfig
from .events import AgentState
from .generation import Generation
from .journal import Journal
from .pairs import PairState

_OPEN = (PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Prognosis:
    """`reason` is set when the component is given up; `at` is when to look again."""

    reason: str | None = None
    at: Instant | None = None


_UNDECIDED: Final = Prognosis()
"""Something is under way; what comes of it will be seen."""


def prognosis(
    generation: Generation, stream: int, component: int, config: IceConfig, *, local_ended: bool, now: Instant
) -> Prognosis:  # fmt: skip
    """The outlook of a component that has no valid pair."""
    if generation.started_at is None:
        return _UNDECIDED
    pairs = list(generation.checklists.lists[stream].of(component))
    revoked = next((pair for pair in pairs if pair.revoked), None)
    if revoked is not None:
        return Prognosis(f"{revoked.name}: {revoked.reason}")
    if any(pair.state in _OPEN for pair in pairs):
        return _UNDECIDED
    patient_until = Instant(generation.started_at + config.patience)
    if not (local_ended and generation.remote_ended):
        patient_until = max(patient_until, Instant(generation.started_at + config.trickle_limit))
    if now < patient_until:
        return Prognosis(at=patient_until)
    if pairs:
        count = "its only pair" if len(pairs) == 1 else f"all {len(pairs)} pairs"
        return Prognosis(f"stream {stream} component {component}: {count} failed")
    return Prognosis(f"stream {stream} component {component}: no pair could be made")


def attempts(generation: Generation) -> tuple[Attempt, ...]:
    """Every pair that does not work, and why."""
    failed = tuple(Attempt(pair.name, pair.reason) for pair in generation.checklists if not pair.valid)
    if failed:
        return failed
    remotes = sum(len(checklist.remotes) for checklist in generation.checklists.lists)
    told = f"the other side signaled {remotes} candidates" if remotes else "the other side signaled no candidate"
    return (Attempt("pairing", f"{told}, and none fits an address of ours"),)


def _components(
    generation: Generation, checklist: Checklist, locals_: LocalCandidates, *, local_ended: bool
) -> int:  # fmt: skip
    """How many components of a stream count: no more than either side has candidates for (RFC 8445, section 6.1.2.2).

    It is known once a side's candidates have ended; a side without any gives nothing to go by.
    """
    count = checklist.components
    if count > 1 and generation.remote_ended and checklist.remotes:
        count = min(count, max(candidate.component for candidate in checklist.remotes))
    if count > 1 and local_ended:
        ours = [local.component for local in locals_.all if local.stream == checklist.stream]
        count = min(count, max(ours, default=count))
    return count


@dataclass(slots=True)
class Conclusion:
    """The state that the pairs amount to, and when to look again though nothing moved."""

    state: AgentState
    reason: str
    look_at: Instant | None = None


def conclude(
    generation: Generation,
    config: IceConfig,
    journal: Journal,
    locals_: LocalCandidates,
    *,
    local_ended: bool,
    now: Instant,
) -> Conclusion:
    """The state of every checklist, which is set, and of the agent."""
    failed: list[str] = []
    look_at: list[Instant] = []
    valid = completed = wanted = 0
    for checklist in generation.checklists.lists:
        done, hopeless = 0, False
        components = _components(generation, checklist, locals_, local_ended=local_ended)
        wanted += components
        for component in range(1, components + 1):
            works = nominated = False
            for pair in checklist.of(component):
                if pair.valid:
                    works = True
                    if pair.nominated:
                        nominated = True
                        break
            if works:
                valid += 1
                done += nominated
                continue
            outlook = prognosis(generation, checklist.stream, component, config, local_ended=local_ended, now=now)
            if outlook.reason is not None:
                failed.append(outlook.reason)
                hopeless = True
            elif outlook.at is not None:
                look_at.append(outlook.at)
        completed += done
        complete = ChecklistState.COMPLETED if done == components else ChecklistState.RUNNING
        journal.checklist(checklist, ChecklistState.FAILED if hopeless else complete, now=now)
    again = min(look_at, default=None)
    if failed:
        return Conclusion(AgentState.FAILED, "; ".join(failed))
    if completed == wanted:
        return Conclusion(AgentState.COMPLETED, "every component has a nominated pair")
    if valid == wanted:
        return Conclusion(AgentState.CONNECTED, "every component has a valid pair", again)
    if generation.remote is None or not locals_.all:
        missing = "the other side's description" if generation.remote is None else "an address of ours"
        state = AgentState.CHECKING if generation.number else AgentState.NEW
        return Conclusion(state, f"{missing} is awaited", again)
    return Conclusion(AgentState.CHECKING, "pairs are checked", again)
