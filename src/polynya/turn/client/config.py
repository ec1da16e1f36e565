"""Options of a TURN client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import IPV4, Address
from polynya.core.arguments import families, flag, instance
from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND
from polynya.stun.transactions import UNRELIABLE, Schedule
from polynya.turn.numbers import DEFAULT_LIFETIME

MAX_LIFETIME: Final = (2**32 - 1) * SECOND
"""LIFETIME has 32 bits of seconds (RFC 8656, section 18.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Options of one allocation. Durations are nanoseconds.

    Raises ConfigurationError for options that exclude each other or that no server supports.
    """

    families: tuple[int, ...] = (IPV4,)
    """4, 6, or both in one allocation (RFC 8656, section 7.1)."""
    lifetime: int = DEFAULT_LIFETIME
    """The requested lifetime; the server may grant another."""
    even_port: bool | None = None
    """False requests an even relayed port. True also reserves the next port; `Allocated` has the token for it."""
    reservation_token: bytes | None = None
    """Requests the port that another client's `even_port=True` reserved."""
    dont_fragment: bool = False
    """Requests support for datagrams with DF set; `Allocated` reports whether the server has it."""
    local: Address | None = None
    """Local address of the client's own flows, with port 0 for any port; None leaves it to the system."""
    interface: str | None = None
    keepalive: int = 15 * SECOND
    """Over UDP an indication is sent after this much silence, to keep NAT mappings; 0 disables it."""
    schedule: Schedule = UNRELIABLE
    """Retransmission of requests over UDP."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", families(self.families))
        if self.even_port is not None:
            flag("even_port", self.even_port)
        flag("dont_fragment", self.dont_fragment)
        instance("schedule", self.schedule, Schedule)
        if self.reservation_token is not None:
            instance("reservation_token", self.reservation_token, bytes)
        if self.local is not None:
            instance("local", self.local, Address, hint="write Address.parse(text)")
        if len(self.families) > 1 and (self.even_port or self.reservation_token is not None):
            raise ConfigurationError("even_port and reservation_token work with one family only: make two allocations")
        if self.even_port is not None and self.reservation_token is not None:
            raise ConfigurationError("even_port and reservation_token exclude each other: set one of them")
        if self.reservation_token is not None and len(self.reservation_token) != 8:
            raise ConfigurationError(f"a reservation token has 8 bytes, not {len(self.reservation_token)}")
        if not SECOND <= self.lifetime <= MAX_LIFETIME or self.keepalive < 0:
            raise ConfigurationError("lifetime must be 1 to 4294967295 seconds, and keepalive not negative")
