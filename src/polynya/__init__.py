"""Polynya connects two programs across NATs and firewalls.

    async with polynya.connect_room("http://signal.example.org", "room") as connection:     # signaling: `polynya serve`
        connection.send(b"hello")

    async with polynya.Agent(servers=["stun:stun.example.org"]) as agent:                   # signaling of your own
        connection = await agent.connect(timeout=30)

The names, by what they are for; each has its own help, and all are in docs/reference/api.md:

    Agents and connections    Agent, Connection, ConnectionAgent, Path, IceServer, IceConfig, NominationPolicy,
                              Renomination, Schedule, Interface, InterfaceAddress
    Signaling                 Address, Candidate, CandidateType, TcpType, Description, Away, Joined, Left,
                              RemoteCandidate, RemoteDescription, Resumed, Signaling, PendingConnection,
                              connect_room
    Rooms of many             Room, PeerFound, PeerConnected, PeerFailed, PeerGone, SignalingLost
    Many agents on one socket Mux, MuxedAgent, UnknownPeer
    Events and states         AgentState, AgentStateChanged, ConsentLost, Failed, LocalCandidateAdded,
                              LocalCandidatesEnded, PairChanged, ReceiveBufferFull, Restarted, RoleChanged,
                              SelectedPairChanged, GatheringState, GatheringStateChanged, PairState, PairView,
                              LocalCandidate, Flow, Transport
    Reports                   PairReport, SessionReport, Redactor
    TURN by hand              TurnClient, Allocated, ServerAddress, TurnReport, AddressError
    NAT behavior              discover_behavior, discover_lifetime, discover_stream_mapping, Behavior,
                              BehaviorReport, LifetimeReport, StreamMappingReport
    Traces                    TraceEvent, TraceWriter, Tracer, PcapngWriter, IpPacket
    Errors                    Attempt, ConfigurationError, ConnectError, ConnectionClosed, DecodeError,
                              PolynyaError, ProtocolError, SignalingError, TransactionError, UsageError

Each name is imported when it is first used: a worker process of the server, which needs two subpackages, starts in a
third of the time and takes 12 MB less.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not imported: `typing` takes half of the time of this import


if TYPE_CHECKING:
    from .aio.agent import Agent
    from .aio.behavior import discover_behavior, discover_lifetime, discover_stream_mapping
    from .aio.connection import Connection, ConnectionAgent, Path, ReceiveBufferFull
    from .aio.meeting import PeerFound, PeerGone, PendingConnection, SignalingLost, connect_room
    from .aio.mux import Mux, MuxedAgent, UnknownPeer
    from .aio.room import PeerConnected, PeerFailed, Room
    from .aio.servers import IceServer
    from .aio.signaling import Away, Joined, Left, RemoteCandidate, RemoteDescription, Resumed, Signaling
    from .aio.turn import TurnClient
    from .core.addresses import Address
    from .core.behavior import Behavior
    from .core.errors import (
        Attempt,
        ConfigurationError,
        ConnectError,
        ConnectionClosed,
        DecodeError,
        PolynyaError,
        ProtocolError,
        SignalingError,
        TransactionError,
        UsageError,
    )
    from .core.flows import Flow, Transport
    from .core.machine import Interface, InterfaceAddress
    from .core.packets import IpPacket
    from .core.pcapng import PcapngWriter
    from .core.trace import TraceEvent, Tracer, TraceWriter
    from .ice.candidates import Candidate, CandidateType, LocalCandidate, TcpType
    from .ice.config import IceConfig
    from .ice.description import Description
    from .ice.events import (
        AgentState,
        AgentStateChanged,
        ConsentLost,
        Failed,
        LocalCandidateAdded,
        LocalCandidatesEnded,
        PairChanged,
        Restarted,
        RoleChanged,
        SelectedPairChanged,
    )
    from .ice.nomination import NominationPolicy, Renomination
    from .ice.pairs import PairState, PairView
    from .ice.report import PairReport
    from .session.events import GatheringState, GatheringStateChanged
    from .session.report import SessionReport
    from .stun.attributes import AddressError
    from .stun.behavior import BehaviorReport
    from .stun.lifetime import LifetimeReport
    from .stun.redaction import Redactor
    from .stun.stream_mapping import StreamMappingReport
    from .stun.transactions import Schedule
    from .turn.client.events import Allocated, ServerAddress
    from .turn.client.report import TurnReport

    __version__: str

__all__ = [
    "Address",
    "AddressError",
    "Agent",
    "AgentState",
    "AgentStateChanged",
    "Allocated",
    "Attempt",
    "Away",
    "Behavior",
    "BehaviorReport",
    "Candidate",
    "CandidateType",
    "ConfigurationError",
    "ConnectError",
    "Connection",
    "ConnectionAgent",
    "ConnectionClosed",
    "ConsentLost",
    "DecodeError",
    "Description",
    "Failed",
    "Flow",
    "GatheringState",
    "GatheringStateChanged",
    "IceConfig",
    "IceServer",
    "Interface",
    "InterfaceAddress",
    "IpPacket",
    "Joined",
    "Left",
    "LifetimeReport",
    "LocalCandidate",
    "LocalCandidateAdded",
    "LocalCandidatesEnded",
    "Mux",
    "MuxedAgent",
    "NominationPolicy",
    "PairChanged",
    "PairReport",
    "PairState",
    "PairView",
    "Path",
    "PcapngWriter",
    "PeerConnected",
    "PeerFailed",
    "PeerFound",
    "PeerGone",
    "PendingConnection",
    "PolynyaError",
    "ProtocolError",
    "ReceiveBufferFull",
    "Redactor",
    "RemoteCandidate",
    "RemoteDescription",
    "Renomination",
    "Restarted",
    "Resumed",
    "RoleChanged",
    "Room",
    "Schedule",
    "SelectedPairChanged",
    "ServerAddress",
    "SessionReport",
    "Signaling",
    "SignalingError",
    "SignalingLost",
    "StreamMappingReport",
    "TcpType",
    "TraceEvent",
    "TraceWriter",
    "Tracer",
    "TransactionError",
    "Transport",
    "TurnClient",
    "TurnReport",
    "UnknownPeer",
    "UsageError",
    "connect_room",
    "discover_behavior",
    "discover_lifetime",
    "discover_stream_mapping",
]

_HOMES = {
    "aio.agent": ("Agent",),
    "aio.behavior": (
        "discover_behavior",
        "discover_lifetime",
        "discover_stream_mapping",
    ),
    "aio.connection": (
        "Connection",
        "ConnectionAgent",
        "Path",
        "ReceiveBufferFull",
    ),
    "aio.meeting": (
        "PeerFound",
        "PeerGone",
        "PendingConnection",
        "SignalingLost",
        "connect_room",
    ),
    "aio.mux": (
        "Mux",
        "MuxedAgent",
        "UnknownPeer",
    ),
    "aio.room": (
        "PeerConnected",
        "PeerFailed",
        "Room",
    ),
    "aio.servers": ("IceServer",),
    "aio.signaling": (
        "Away",
        "Joined",
        "Left",
        "RemoteCandidate",
        "RemoteDescription",
        "Resumed",
        "Signaling",
    ),
    "aio.turn": ("TurnClient",),
    "core.addresses": ("Address",),
    "core.behavior": ("Behavior",),
    "core.errors": (
        "Attempt",
        "ConfigurationError",
        "ConnectError",
        "ConnectionClosed",
        "DecodeError",
        "PolynyaError",
        "ProtocolError",
        "SignalingError",
        "TransactionError",
        "UsageError",
    ),
    "core.flows": (
        "Flow",
        "Transport",
    ),
    "core.machine": (
        "Interface",
        "InterfaceAddress",
    ),
    "core.packets": ("IpPacket",),
    "core.pcapng": ("PcapngWriter",),
    "core.trace": (
        "TraceEvent",
        "TraceWriter",
        "Tracer",
    ),
    "ice.candidates": (
        "Candidate",
        "CandidateType",
        "LocalCandidate",
        "TcpType",
    ),
    "ice.config": ("IceConfig",),
    "ice.description": ("Description",),
    "ice.events": (
        "AgentState",
        "AgentStateChanged",
        "ConsentLost",
        "Failed",
        "LocalCandidateAdded",
        "LocalCandidatesEnded",
        "PairChanged",
        "Restarted",
        "RoleChanged",
        "SelectedPairChanged",
    ),
    "ice.nomination": (
        "NominationPolicy",
        "Renomination",
    ),
    "ice.pairs": (
        "PairState",
        "PairView",
    ),
    "ice.report": ("PairReport",),
    "session.events": (
        "GatheringState",
        "GatheringStateChanged",
    ),
    "session.report": ("SessionReport",),
    "stun.attributes": ("AddressError",),
    "stun.behavior": ("BehaviorReport",),
    "stun.lifetime": ("LifetimeReport",),
    "stun.redaction": ("Redactor",),
    "stun.stream_mapping": ("StreamMappingReport",),
    "stun.transactions": ("Schedule",),
    "turn.client.events": (
        "Allocated",
        "ServerAddress",
    ),
    "turn.client.report": ("TurnReport",),
}


def __getattr__(name: str) -> object:
    """Imports a name from its module; `aio.signaling` needs the extra `polynya[signaling]`."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - it takes 25 ms, and few programs need it

        value: object = version("polynya")
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'polynya' has no attribute {name!r}")
        try:
            value = getattr(import_module(f"polynya.{home}"), name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("polynya"):
                raise
            missing = (error.name or "a package").partition(".")[0]
            package = "'polynya[signaling]'" if missing in ("msgspec", "websockets") else "polynya"
            raise ImportError(f"polynya.{name} needs {missing}: pip install {package}", name=missing) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
