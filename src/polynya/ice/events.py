"""Events of an ICE agent. All are frozen, so they can be kept.

`IceEvent` has the events for users; `InternalEvent` has those for the owner of the agent's flows, such as `Session`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.errors import Attempt
from polynya.core.flows import Flow

from .candidates import Candidate, LocalCandidate
from .pairs import PairState, PairView


class AgentState(Enum):
    """State of an agent; `Outcome` derives it from the pairs."""

    NEW = "new"
    """The remote description or a local address is missing."""
    CHECKING = "checking"
    CONNECTED = "connected"
    """Every component has a valid pair: data can be sent."""
    COMPLETED = "completed"
    """Every component has a nominated pair."""
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidateAdded:
    """A local candidate to signal now (trickle, RFC 8838)."""

    candidate: Candidate
    local: LocalCandidate


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidatesEnded:
    """The local candidates of a generation have ended: signal end-of-candidates (RFC 8838, section 8.2)."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChanged:
    """The state or flags of a pair changed, or a pair was made (`old` is None)."""

    pair: PairView
    old: PairState | None
    new: PairState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAuthenticated:
    """A message from `remote` on `flow` was authenticated: accept data from there."""

    flow: Flow
    remote: Address
    stream: int
    component: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRevoked:
    """Refuse data from `remote` on `flow` again: the generation, the flow or the agent ended."""

    flow: Flow
    remote: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedPairChanged:
    """The pair that carries the data of a component changed; None if there is none.

    It is the best valid pair at first, and the nominated one later.
    """

    stream: int
    component: int
    pair: PairView | None
    nominated: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWanted:
    """Open the path of a pair, for example by a TURN permission, and call `IceAgent.path_ready` or `path_refused`."""

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
    """The role of the agent changed: by a role conflict, by the owner, or because the other side is lite."""

    controlling: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentLost:
    """Consent to send on a pair was lost (RFC 7675): sending on it stops at once."""

    stream: int
    component: int
    pair: PairView
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No pair of a component works. `attempts` has every failed pair and the reason."""

    reason: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """A new generation began. The old pair carries data until a pair of the new generation is nominated."""

    generation: int
    reason: str


InternalEvent = RemoteAuthenticated | RemoteRevoked | PathWanted
"""Events for the owner of the agent's flows, which carries them out. They are no news for users."""

IceEvent = (
    LocalCandidateAdded
    | LocalCandidatesEnded
    | PairChanged
    | SelectedPairChanged
    | AgentStateChanged
    | RoleChanged
    | ConsentLost
    | Failed
    | Restarted
)
"""Events for users."""
