"""Events of a TURN server, for logs, metrics and programs that ban clients."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address

from .commands import Client, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationCreated:
    """An allocation was made; `relayed` are the relayed addresses as the client gets them."""

    client: Client
    user: str
    relayed: tuple[Address, ...]
    lifetime: int
    """Nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationEnded:
    """An allocation has ended and its ports are free again."""

    client: Client
    user: str
    reason: str
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A request was answered with an error. `reason` is more precise than the response."""

    client: Client
    method: str
    code: int
    reason: str
    user: str = ""
    """Empty for a request that was not authenticated."""


@dataclass(frozen=True, slots=True)
class Drained:
    """The last allocation of a draining server has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRefused:
    """The peer policy denied a datagram to or from a peer; emitted once for each relay."""

    client: Client
    user: str
    peer: Address
    rule: str


TurnEvent = AllocationCreated | AllocationEnded | RequestRefused | PeerRefused | Drained
