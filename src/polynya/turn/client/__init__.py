"""The TURN client: `TurnClient`, a machine, with what it is configured by and what it tells."""

from .allocation import State
from .client import TurnClient
from .config import ClientConfig
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
    ServerAddress,
    ServerChosen,
    TurnEvent,
)
from .report import TurnReport

__all__ = [
    "Allocated",
    "AllocationFailed",
    "ChannelBound",
    "ChannelFailed",
    "ClientConfig",
    "Credentials",
    "CredentialsNeeded",
    "Lost",
    "PeerUnreachable",
    "PermissionFailed",
    "Permitted",
    "RelayedData",
    "Released",
    "ServerAddress",
    "ServerChosen",
    "State",
    "TurnClient",
    "TurnEvent",
    "TurnReport",
]
