"""ICE (RFC 8445): candidates, pairs, checks, nomination, consent, and the agent that combines them."""

from .agent import IceAgent, IceInput
from .candidates import Candidate, CandidateType, Gathered, LocalCandidate, TcpType
from .config import IceConfig
from .description import Description
from .events import (
    AgentState,
    AgentStateChanged,
    ConsentLost,
    Failed,
    IceEvent,
    InternalEvent,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    PairChanged,
    PathWanted,
    RemoteAuthenticated,
    RemoteRevoked,
    Restarted,
    RoleChanged,
    SelectedPairChanged,
)
from .nomination import NominationPolicy, Renomination
from .pairs import PairState, PairView
from .report import PairReport, Report
from .sdp.candidate import RemoteCandidate, UnsupportedCandidate
from .sdp.fragment import Fragment
from .sdp.section import Section

__all__ = [
    "AgentState",
    "AgentStateChanged",
    "Candidate",
    "CandidateType",
    "ConsentLost",
    "Description",
    "Failed",
    "Fragment",
    "Gathered",
    "IceAgent",
    "IceConfig",
    "IceEvent",
    "IceInput",
    "InternalEvent",
    "LocalCandidate",
    "LocalCandidateAdded",
    "LocalCandidatesEnded",
    "NominationPolicy",
    "PairChanged",
    "PairReport",
    "PairState",
    "PairView",
    "PathWanted",
    "RemoteAuthenticated",
    "RemoteCandidate",
    "RemoteRevoked",
    "Renomination",
    "Report",
    "Restarted",
    "RoleChanged",
    "Section",
    "SelectedPairChanged",
    "TcpType",
    "UnsupportedCandidate",
]
