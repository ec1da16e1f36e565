"""What an agent tells its owner. All are frozen: they may be kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.errors import Attempt
from polynya.core.flows import Flow

from .candidates import Candidate, LocalCandidate
from .pairs import PairState, PairView


class AgentState(Enum):
    """How far the agent is; derived from its pairs in one place, `IceAgent._evaluate`."""

    NEW = "new"
    """Nothing to check yet: the other side, or an address of ours, is not known."""
    CHECKING = "checking"
    CONNECTED = "connected"
    """Every component has a valid pair: data may flow."""
    COMPLETED = "completed"
    """Every component has a nominated pair."""
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidateAdded:
    """A candidate to be signaled now (trickle, RFC 8838)."""

    candidate: Candidate
    local: LocalCandidate


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidatesEnded:
    """No more candidates of this generation: to be signaled as end-of-candidates (RFC 8838, section 8.2)."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChanged:
    """A pair's state or flags changed, or a new pair was made (`old` is None)."""

    pair: PairView
    old: PairState | None
    new: PairState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAuthenticated:
    """An authenticated check came by `flow` from `remote`: from now on so may data."""

    flow: Flow
    remote: Address
    stream: int
    component: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRevoked:
    """Data that comes by `flow` from `remote` is to be refused again: the generation, the flow or the agent ended."""

    flow: Flow
    remote: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedPairChanged:
    """Where a component's data goes: first the first valid pair, then the nominated one. `pair` None: nowhere."""

    stream: int
    component: int
    pair: PairView | None
    nominated: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWanted:
    """A pair needs a path that must be opened first (a TURN permission); `IceAgent.path_ready` lets it be checked."""

    flow: Flow
    remote: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStateChanged:
    """The state of the agent changed."""

    old: AgentState
    new: AgentState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """A role conflict was decided, or the other side turned out to be lite."""

    controlling: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentLost:
    """The other side no longer agrees to be sent to on this pair (RFC 7675): sending on it stops at once."""

    stream: int
    component: int
    pair: PairView
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No pair works for some component. `attempts` has every pair and why it failed."""

    reason: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """A new generation began; the old pair carries data until a pair of the new one is selected."""

    generation: int
    reason: str


IceEvent = (
    LocalCandidateAdded
    | LocalCandidatesEnded
    | PairChanged
    | RemoteAuthenticated
    | RemoteRevoked
    | SelectedPairChanged
    | PathWanted
    | AgentStateChanged
    | RoleChanged
    | ConsentLost
    | Failed
    | Restarted
)
