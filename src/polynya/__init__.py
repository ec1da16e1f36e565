"""Polynya connects two programs across NATs and firewalls.

async with polynya.Agent(servers=["stun:stun.example.org"]) as agent: ...      # signaling is yours
connection = await polynya.connect_room("http://signal.example.org", "room")   # signaling is `polynya serve`

Each name is imported when it is first asked for: a worker of the server, which needs two folders of all this, starts in
a third of the time and holds 12 MB less.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .aio.agent import Agent
    from .aio.behavior import discover_behavior, discover_lifetime, discover_stream_mapping
    from .aio.connection import Connection, Path
    from .aio.mux import Mux, UnknownPeer
    from .aio.muxed import MuxedAgent
    from .aio.servers import IceServer
    from .aio.signaling import Signaling, connect_room
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
    from .ice.config import IceConfig
    from .ice.description import Description
    from .stun.behavior import BehaviorReport
    from .stun.lifetime import LifetimeReport
    from .stun.stream_mapping import StreamMappingReport

    __version__: str

__all__ = [
    "Agent",
    "Attempt",
    "BehaviorReport",
    "Candidate",
    "CandidateType",
    "ConfigurationError",
    "ConnectError",
    "Connection",
    "ConnectionClosed",
    "DecodeError",
    "Description",
    "IceConfig",
    "IceServer",
    "LifetimeReport",
    "Mux",
    "MuxedAgent",
    "Path",
    "PolynyaError",
    "ProtocolError",
    "RemoteProtocolError",
    "Signaling",
    "SignalingError",
    "StreamMappingReport",
    "TransactionError",
    "TurnClient",
    "UnknownPeer",
    "UsageError",
    "connect_room",
    "discover_behavior",
    "discover_lifetime",
    "discover_stream_mapping",
]

_HOMES: Final = {
    "aio.agent": ("Agent",),
    "aio.behavior": ("discover_behavior", "discover_lifetime", "discover_stream_mapping"),
    "aio.connection": ("Connection", "Path"),
    "aio.mux": ("Mux", "UnknownPeer"),
    "aio.muxed": ("MuxedAgent",),
    "aio.servers": ("IceServer",),
    "aio.signaling": ("Signaling", "connect_room"),
    "aio.turn": ("TurnClient",),
    "core.errors": (
        "Attempt",
        "ConfigurationError",
        "ConnectError",
        "ConnectionClosed",
        "DecodeError",
        "PolynyaError",
        "ProtocolError",
        "RemoteProtocolError",
        "SignalingError",
        "TransactionError",
        "UsageError",
    ),
    "ice.candidates": ("Candidate", "CandidateType"),
    "ice.config": ("IceConfig",),
    "ice.description": ("Description",),
    "stun.behavior": ("BehaviorReport",),
    "stun.lifetime": ("LifetimeReport",),
    "stun.stream_mapping": ("StreamMappingReport",),
}


def __getattr__(name: str) -> object:
    """What is asked for, from where it lives; `aio.signaling` needs the extra `polynya[signaling]`."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - 25 ms that few need

        value: object = version("polynya")
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'polynya' has no attribute {name!r}")
        value = getattr(import_module(f"polynya.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
