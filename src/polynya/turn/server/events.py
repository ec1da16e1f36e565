"""What the owner of a TURN server may want to know: for logs, metrics and whoever bans clients that misbehave."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address

from .commands import Client, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationCreated:
    """A client has relayed addresses; `relayed` are those that it was told."""

    client: Client
    user: str
    relayed: tuple[Address, ...]
    lifetime: int
    """Nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationEnded:
    """An allocation, or one address family of it, is over and its ports are free again."""

    client: Client
    user: str
    reason: str
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A request was answered with an error. `reason` says more than the client was told."""

    client: Client
    method: str
    code: int
    reason: str
    user: str = ""
    """Empty unless the request proved whose it is."""


@dataclass(frozen=True, slots=True)
class Drained:
    """The last allocation of a server that was told to drain is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused:
    """The rules forbid what a relay was to carry to or from a peer; told for the first one of each relay."""

    client: Client
    user: str
    peer: Address
    rule: str


TurnEvent = AllocationCreated | AllocationEnded | RequestRefused | PeerRefused | Drained
