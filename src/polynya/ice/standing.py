"""How far the agent is, with the reason and the changes that led there: the one writer of the agent's state."""

from __future__ import annotations

from polynya.core.instants import Instant

from .events import AgentState, AgentStateChanged, Failed
from .generation import Generation
from .history import History
from .journal import Journal
from .prognosis import attempts


class Standing:
    """The state of one agent."""

    __slots__ = ("_journal", "history", "reason", "state")

    def __init__(self, journal: Journal) -> None:
        self.state = AgentState.NEW
        self.reason = "new"
        self.history: History[AgentState] = History()
        self._journal = journal

    @property
    def closed(self) -> bool:
        return self.state is AgentState.CLOSED

    def move(self, state: AgentState, reason: str, generation: Generation, *, now: Instant) -> None:
        """Enter a state, and say so; nothing happens when it is the present one."""
        old = self.state
        if state is old:
            return
        self.state, self.reason = state, reason
        self.history.add(now, old, state, reason)
        if self._journal.trace.enabled:
            self._journal.trace.agent(reason, now=now, old=old.value, new=state.value, agent=self._journal.label)
        self._journal.event(AgentStateChanged(old=old, new=state, reason=reason))
        if state is AgentState.FAILED:
            self._journal.event(Failed(reason=reason, attempts=attempts(generation)))
