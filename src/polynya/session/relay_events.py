"""What a session's relays tell: which there are, which are lost, and which paths through them are open."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.turn.client.events import ServerAddress

from .options import Base, TurnCredentials


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFound:
    """A relayed address: `flow` stands for it. `mapped` is what the server saw of the base, over UDP."""

    base: Base
    flow: Flow
    relayed: Address
    mapped: Address | None
    server: ServerAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFailed:
    """A server gives no relay to a base, and why."""

    base: Base | None
    server: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLost:
    """A relayed address is gone."""

    base: Base
    flow: Flow
    relayed: Address
    server: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReady:
    """Packets may go between a relay and this host."""

    flow: Flow
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRefused:
    """The server does not let the relay and this host exchange packets."""

    flow: Flow
    host: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsWanted:
    """A server does not accept the credentials it was given, or wants some and was given none."""

    server: TurnCredentials
    realm: str
    reason: str


RelayEvent = RelayFound | RelayFailed | RelayLost | PathReady | PathRefused | CredentialsWanted
