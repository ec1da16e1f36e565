"""How far the agent is, with the reason and the changes that led there: the one writer of the agent's state."""

from __future__ import annotations

from typing import Final

from polynya.core.instants import Instant

from .events import AgentState, AgentStateChanged, Failed
from .generation import Generation
from .journal import Journal
from .prognosis import attempts

_HISTORY: Final = 16
"""Changes that are remembered; the oldest but the first are dropped."""


class Standing:
    """The state of one agent."""

    __slots__ = ("_journal", "history", "reason", "state")

    def __init__(self, journal: Journal) -> None:
        self.state = AgentState.NEW
        self.reason = "new"
        self.history: list[tuple[Instant, str, str, str]] = []
        """When, from what, to what, and why."""
        self._journal = journal

    @property
    def closed(self) -> bool:
        return self.state is AgentState.CLOSED

    def move(self, state: AgentState, reason: str, generation: Generation, now: Instant) -> None:
        """Enter a state, and say so; nothing happens when it is the present one."""
        old = self.state
        if state is old:
            return
        self.state, self.reason = state, reason
        self.history.append((now, old.value, state.value, reason))
        if len(self.history) > _HISTORY:
            del self.history[1]
        if self._journal.trace.enabled:
            self._journal.trace(now, "agent", reason, old=old.value, new=state.value, agent=self._journal.label)
        self._journal.event(AgentStateChanged(old=old, new=state, reason=reason))
        if state is AgentState.FAILED:
            self._journal.event(Failed(reason=reason, attempts=attempts(generation)))
