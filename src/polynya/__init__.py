"""Polynya connects two programs across NATs and firewalls.

async with polynya.Agent(servers=["stun:stun.example.org"]) as agent: ...      # signaling is yours
connection = await polynya.connect_room("http://signal.example.org", "room")   # signaling is `polynya serve`
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from .aio.agent import Agent
from .aio.connection import Connection, Path
from .aio.servers import IceServer
from .aio.turn import TurnClient
from .core.errors import (
    Attempt,
    ConfigurationError,
    ConnectError,
    ConnectionClosed,
    DecodeError,
    PolynyaError,
    ProtocolError,
    RemoteProtocolError,
    SignalingError,
    TransactionError,
    UsageError,
)
from .ice.candidates import Candidate, CandidateType
from .ice.description import Description

if TYPE_CHECKING:
    from .aio.signaling import Signaling, connect_room

__version__ = version("polynya")

__all__ = [
    "Agent",
    "Attempt",
    "Candidate",
    "CandidateType",
    "ConfigurationError",
    "ConnectError",
    "Connection",
    "ConnectionClosed",
    "DecodeError",
    "Description",
    "IceServer",
    "Path",
    "PolynyaError",
    "ProtocolError",
    "RemoteProtocolError",
    "Signaling",
    "SignalingError",
    "TransactionError",
    "TurnClient",
    "UsageError",
    "connect_room",
]


def __getattr__(name: str) -> object:
    """What needs the extra `polynya[signaling]` is imported when it is first asked for."""
    if name not in {"Signaling", "connect_room"}:
        raise AttributeError(f"module 'polynya' has no attribute {name!r}")
    from .aio import signaling  # noqa: PLC0415

    return getattr(signaling, name)
