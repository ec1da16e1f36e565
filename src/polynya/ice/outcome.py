"""Outcome of an agent: the states of checklists and agent, by their pairs (RFC 8445, 8.1.2; RFC 8863; RFC 8838, 8).

    NEW        the remote description or a local address is missing
    CHECKING   none of the following
    CONNECTED  every component has a valid pair
    COMPLETED  every component has a nominated pair
    FAILED     a component is given up
    CLOSED     `close` was called; the agent does nothing any more

A component is given up if none of its pairs is valid, open or queued; if the patience of RFC 8863 is over, since the
checks of the other side may still come from an unknown address; and if no more candidates are expected, or were not
signaled in time. It is given up as well if the other side does not answer a restart in that time while no pair of the
former generation carries data. It is given up at once if the consent of its selected pair is lost and no other pair is
valid, or if the other side has closed its agent.

FAILED is left when checks of the other side or new candidates arrive after all, and by a restart. If the other side
has closed, only by a restart.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from polynya.core.compact import History
from polynya.core.errors import Attempt
from polynya.core.instants import Instant, in_seconds

from .checklist import Checklist, ChecklistState
from .config import durations
from .context import Context
from .events import AgentState, AgentStateChanged, Failed
from .generation import Generation
from .pairs import PairState

_OPEN = (PairState.FROZEN, PairState.WAITING, PairState.IN_PROGRESS)


class _Outlook(NamedTuple):
    """Outlook of a component without a valid pair."""

    reason: str | None = None
    """The reason why it is given up, if it is."""
    at: Instant | None = None
    """The time to look again."""


_UNDECIDED: Final = _Outlook()
"""A check is open: its result decides."""


class Outcome:
    """State of one agent, with its reason and history. It is the only writer of this state."""

    __slots__ = ("_context", "history", "look_at", "reason", "state")

    def __init__(self, context: Context) -> None:
        self.state = AgentState.NEW
        self.reason = "new"
        self.history: History[AgentState] = History()
        self.look_at: Instant | None = None
        """The time to call `update` although no pair changed."""
        self._context = context

    @property
    def closed(self) -> bool:
        return self.state is AgentState.CLOSED

    def close(self, generation: Generation, *, now: Instant) -> None:
        """Enter the state CLOSED."""
        self.look_at = None
        self._enter(AgentState.CLOSED, "closed here", generation, now=now)

    def update(self, generation: Generation, *, local_ended: bool, carried: bool, now: Instant) -> None:
        """Derive the states of every checklist and of the agent.

        `local_ended`: gathering is complete. `carried`: a pair of the former generation carries data.
        """
        failed: list[str] = []
        look_at: list[Instant] = []
        valid = completed = wanted = 0
        for checklist in generation.checklists.lists:
            done, hopeless = 0, False
            components = self._components(generation, checklist, local_ended=local_ended)
            wanted += components
            for component in range(1, components + 1):
                if generation.over is not None:
                    failed.append(generation.over)
                    hopeless = True
                    continue
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
                if generation.started_at is None:
                    outlook = _UNDECIDED if carried else self._unanswered(generation, now=now)
                else:
                    outlook = self._outlook(generation, checklist, component, local_ended=local_ended, now=now)
                if outlook.reason is not None:
                    failed.append(outlook.reason)
                    hopeless = True
                elif outlook.at is not None:
                    look_at.append(outlook.at)
            completed += done
            complete = ChecklistState.COMPLETED if done == components else ChecklistState.RUNNING
            checklist.move(ChecklistState.FAILED if hopeless else complete, self._context.outbox, now=now)
        self.look_at = None if failed else min(look_at, default=None)
        if failed:
            self._enter(AgentState.FAILED, "; ".join(dict.fromkeys(failed)), generation, now=now)
        elif completed == wanted:
            self._enter(AgentState.COMPLETED, "every component has a nominated pair", generation, now=now)
        elif valid == wanted:
            self._enter(AgentState.CONNECTED, "every component has a valid pair", generation, now=now)
        elif generation.remote is None or not self._context.locals.all:
            missing = "the remote description" if generation.remote is None else "a local address"
            state = AgentState.CHECKING if generation.number else AgentState.NEW
            self._enter(state, f"{missing} is missing", generation, now=now)
        else:
            self._enter(AgentState.CHECKING, "pairs are checked", generation, now=now)

    def _components(self, generation: Generation, checklist: Checklist, *, local_ended: bool) -> int:
        """Return how many components of a stream count: those that both sides have candidates for (6.1.2.2).

        The candidates of a side count once they have ended, and if there are any.
        """
        count = checklist.components
        if count > 1 and generation.remote_ended and checklist.remotes:
            count = min(count, max(candidate.component for candidate in checklist.remotes))
        if count > 1 and local_ended:
            ours = [local.component for local in self._context.locals.all if local.stream == checklist.stream]
            count = min(count, max(ours, default=count))
        return count

    def _unanswered(self, generation: Generation, *, now: Instant) -> _Outlook:
        """Return the outlook while the other side has not described itself: a restart waits for a limited time."""
        if generation.restarted_at is None:
            return _UNDECIDED
        limit = durations(self._context.config).trickle_limit
        until = Instant(generation.restarted_at + limit)
        if now < until:
            return _Outlook(at=until)
        return _Outlook(f"the other side did not answer the restart within {in_seconds(limit):g} s")

    def _outlook(
        self, generation: Generation, checklist: Checklist, component: int, *, local_ended: bool, now: Instant
    ) -> _Outlook:
        """Return the outlook of a component without a valid pair."""
        if generation.started_at is None:
            return _UNDECIDED
        pairs = list(checklist.of(component))
        revoked = next((pair for pair in pairs if pair.revoked), None)
        if revoked is not None:
            return _Outlook(f"{revoked.name}: {revoked.reason}")
        if any(pair.state in _OPEN for pair in pairs):
            return _UNDECIDED
        timing = durations(self._context.config)
        patient_until = Instant(generation.started_at + timing.patience)
        if not (local_ended and generation.remote_ended):
            patient_until = max(patient_until, Instant(generation.started_at + timing.trickle_limit))
        if now < patient_until:
            return _Outlook(at=patient_until)
        if pairs:
            count = "its only pair" if len(pairs) == 1 else f"all {len(pairs)} pairs"
            return _Outlook(f"stream {checklist.stream} component {component}: {count} failed")
        return _Outlook(f"stream {checklist.stream} component {component}: no pair could be made")

    def _enter(self, state: AgentState, reason: str, generation: Generation, *, now: Instant) -> None:
        """Enter a state and report it; the present state changes nothing."""
        old = self.state
        if state is old:
            return
        self.state, self.reason = state, reason
        self.history.add(now, old, state, reason)
        outbox = self._context.outbox
        outbox.trace.agent(reason, now=now, old=old, new=state)
        outbox.events.append(AgentStateChanged(old=old, new=state, reason=reason))
        if state is AgentState.FAILED:
            outbox.events.append(Failed(reason=reason, attempts=attempts(generation)))


def attempts(generation: Generation) -> tuple[Attempt, ...]:
    """Return every pair that does not work, with the reason."""
    failed = tuple(Attempt(pair.name, pair.reason) for pair in generation.checklists if not pair.valid)
    if failed:
        return failed
    remotes = sum(len(checklist.remotes) for checklist in generation.checklists.lists)
    signaled = f"the other side signaled {remotes} candidates" if remotes else "the other side signaled no candidate"
    return (Attempt("pairing", f"{signaled}, and none fits an address of ours"),)
