"""Events of gathering: its state, and the sockets, mappings, relays and relayed paths that it finds or loses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.turn.client.events import ServerAddress

from .options import Base, TurnCredentials


class GatheringState(Enum):
    """State of gathering, as in WebRTC's `iceGatheringState`."""

    NEW = "new"
    GATHERING = "gathering"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringStateChanged:
    """Gathering changed its state."""

    old: GatheringState
    new: GatheringState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOpened:
    """A socket was opened on a local address: a base, and a host candidate unless the policy forbids it."""

    base: Base


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFound:
    """A STUN server saw `mapped` as the source of packets that left by `flow`."""

    flow: Flow
    mapped: Address
    server: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFound:
    """A TURN server allocated a relayed address, which is used as `flow`.

    `mapped` is the base's address as seen by the server; None if the server is reached by another flow.
    """

    base: Base
    flow: Flow
    relayed: Address
    mapped: Address | None
    related: Address | None
    """The client's address as seen by the server, by any flow."""
    server: ServerAddress
    rtt: int | None = None
    """The shortest round trip to the server so far, nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFailed:
    """A TURN server allocated nothing or impossible addresses for a base, or a URI names no server (`base` None)."""

    base: Base | None
    server: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLost:
    """A relayed address is lost."""

    base: Base
    flow: Flow
    relayed: Address
    server: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReady:
    """The TURN server relays packets between a relay's `flow` and this peer host."""

    flow: Flow
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRefused:
    """The TURN server refuses to relay packets between a relay's `flow` and this peer host."""

    flow: Flow
    host: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsWanted:
    """A TURN server refused the credentials, or asks for some and none are configured."""

    server: TurnCredentials
    realm: str
    reason: str


RelayEvent = RelayFound | RelayFailed | RelayLost | PathReady | PathRefused | CredentialsWanted

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
