"""What gathering tells: how far it is, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.flows import Flow

from .options import Base
from .relay_events import CredentialsWanted, PathReady, PathRefused, RelayFound, RelayLost


class GatheringState(Enum):
    """As in WebRTC's `iceGatheringState`."""

    NEW = "new"
    GATHERING = "gathering"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOpened:
    """A socket stands on a local address: a base, and unless the policy forbids it a host candidate."""

    base: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFound:
    """A server saw `mapped` as the source of packets that left by `flow`."""

    flow: Flow
    mapped: Address
    server: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringStateChanged:
    old: GatheringState
    new: GatheringState
    reason: str


GatheringEvent = (
    BaseOpened
    | MappingFound
    | GatheringStateChanged
    | RelayFound
    | RelayLost
    | PathReady
    | PathRefused
    | CredentialsWanted
)
