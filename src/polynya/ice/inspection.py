"""What can be seen of an agent: nothing here changes it.

The agent is this and the calls that move it (`agent.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from polynya.core.addresses import Address
from polynya.core.errors import Attempt
from polynya.core.flows import Flow
from polynya.core.machine import Resolve

from . import report
from .candidates import Candidate, LocalCandidate, LocalCandidates
from .description import Description
from .events import AgentState
from .generation import Generation
from .generations import Generations
from .inbox import Inbox
from .journal import Journal
from .pairs import PairView
from .prognosis import attempts
from .report import PairReport, Report
from .roles import Role
from .selection import Selections
from .standing import Standing
from .statistics import Statistics, agent_statistics


class Inspection:
    """The read-only half of `IceAgent`."""

    __slots__ = ("_generations", "_inbox", "_journal", "_locals", "_role", "_selections", "_standing")

    _generations: Generations
    _inbox: Inbox
    _journal: Journal
    _locals: LocalCandidates
    _role: Role
    _selections: Selections
    _standing: Standing

    @property
    def state(self) -> AgentState:
        return self._standing.state

    @property
    def reason(self) -> str:
        """Why the agent is in its state."""
        return self._standing.reason

    @property
    def local_description(self) -> Description:
        """What to signal first."""
        return self._generation.local

    @property
    def remote_description(self) -> Description | None:
        return self._generation.remote

    @property
    def controlling(self) -> bool:
        return self._role.controlling

    @property
    def components(self) -> tuple[int, ...]:
        """The number of components of each stream, 0 for one that was removed."""
        return self._generation.components

    @property
    def _generation(self) -> Generation:
        return self._generations.current

    def expects(self, query: Resolve) -> bool:
        """Whether the answer to a look-up is for this agent."""
        return self._inbox.names.expects(query)

    def owns_transaction(self, transaction_id: bytes) -> bool:
        """Whether an answer with this id is for this agent."""
        return any(transaction_id in generation.transactions for generation in self._generations.all())

    @property
    def local_ufrags(self) -> tuple[str, ...]:
        """The ufrags that requests for this agent begin their USERNAME with: the current one first."""
        return tuple(generation.local.ufrag for generation in self._generations.all())

    def pairs(self) -> list[PairView]:
        """Every pair as it is now, stream by stream, the highest priority first."""
        return [pair.view(selected=self._selections.holds(pair)) for pair in self._generation.checklists]

    def selected(self, stream: int = 0, component: int = 1) -> PairView | None:
        """Where a component's data goes now."""
        selection = self._selections.at((stream, component))
        return None if selection is None else selection.pair.view(selected=True)

    def path(self, stream: int = 0, component: int = 1) -> tuple[Flow, Address] | None:
        """The flow and remote address that a component's data is sent to, if it can be sent."""
        selection = self._selections.at((stream, component))
        return None if selection is None else selection.pair.path

    def accepts(self, flow: Flow, remote: Address) -> tuple[int, int] | None:
        """The stream and component that data from there is for; None where no authenticated check came from there."""
        if not any((flow, remote) in generation.authenticated for generation in self._generations.all()):
            return None
        base = self._locals.base(flow)
        return None if base is None else base.key

    def attempts(self) -> tuple[Attempt, ...]:
        """Every pair that does not work, and why."""
        return attempts(self._generation)

    def local_candidates(self) -> list[LocalCandidate]:
        return list(self._locals.all)

    def remote_candidates(self, stream: int | None = None) -> list[Candidate]:
        """The other side's candidates of one stream, or of all; peer-reflexive ones are among them."""
        lists = self._generation.checklists.lists
        return [each for checklist in lists if stream in {None, checklist.stream} for each in checklist.remotes]

    def why(self) -> Report:
        """What happened and why, down to each transition of each pair."""
        return report.agent_report(
            state=self.state.value,
            reason=self.reason,
            role=self._role.name,
            generation=self._generation,
            locals_=self._locals.all,
            selected=[selection.pair for selection in self._selections.all],
            counters=self.counters,
            history=self._standing.history,
        )

    def why_pair(self, number: int) -> PairReport | None:
        """The same of one pair, by its `PairView.id`; None where there is no such pair any more."""
        since = report.beginning(self._standing.history, self._generation)
        for generation in self._generations.all():
            for pair in generation.checklists:
                if pair.id == number:
                    return PairReport(report.pair_report(pair, selected=self._selections.holds(pair), since=since))
        return None

    def stats(self) -> Statistics:
        """Every pair, candidate and transport in the terms of W3C's webrtc-stats, by their ids."""
        return agent_statistics(
            self._generations.all(), self._locals.all, self._selections, state=self.state.value, role=self._role.name
        )

    @property
    def counters(self) -> Mapping[str, int]:
        """What was counted."""
        return dict(self._journal.counters)
