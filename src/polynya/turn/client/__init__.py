"""The TURN client: `TurnClient`, a machine, with what it is configured by and what it tells."""

from .allocation import State
from .client import TurnClient
from .config import TurnConfig
from .credentials import Credentials
from .events import (
    Allocated,
    AllocationFailed,
    ChannelBound,
    ChannelFailed,
    CredentialsNeeded,
    Lost,
    PeerUnreachable,
    PermissionFailed,
    Permitted,
    RelayedData,
    Released,
    ServerChosen,
    TurnEvent,
    TurnServer,
)
from .report import TurnReport

__all__ = [
    "Allocated",
    "AllocationFailed",
    "ChannelBound",
    "ChannelFailed",
    "Credentials",
    "CredentialsNeeded",
    "Lost",
    "PeerUnreachable",
    "PermissionFailed",
    "Permitted",
    "RelayedData",
    "Released",
    "ServerChosen",
    "State",
    "TurnClient",
    "TurnConfig",
    "TurnEvent",
    "TurnReport",
    "TurnServer",
]
