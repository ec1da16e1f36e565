"""ICE (RFC 8445): candidates, pairs, checks, nomination, consent, and the agent that is made of them."""

from .agent import IceAgent
from .candidates import Candidate, CandidateType, Gathered, LocalCandidate, TcpType
from .config import IceConfig
from .description import Description
from .events import (
    AgentState,
    AgentStateChanged,
    ConsentLost,
    Failed,
    IceEvent,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    PairChanged,
    RemoteAuthenticated,
    RemoteRevoked,
    Restarted,
    RoleChanged,
    SelectedPairChanged,
)
from .fragments import Fragment
from .inbox import IceInput
from .nomination import NominationPolicy, Renomination
from .pairs import PairState, PairView
from .report import Report
from .sdp import RemoteCandidate, UnsupportedCandidate
from .sections import Section

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
    "LocalCandidate",
    "LocalCandidateAdded",
    "LocalCandidatesEnded",
    "NominationPolicy",
    "PairChanged",
    "PairState",
    "PairView",
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
