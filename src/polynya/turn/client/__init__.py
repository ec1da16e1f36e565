"""TURN client: the machine `TurnClient`, its configuration, events and report."""

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
    ServerFailed,
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
    "ServerFailed",
    "State",
    "TurnClient",
    "TurnEvent",
    "TurnReport",
]
