"""Options of a TURN client."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND
from polynya.stun.transactions import UNRELIABLE, Schedule
from polynya.turn.numbers import DEFAULT_LIFETIME


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
        if not self.families or len(set(self.families)) < len(self.families) or not {*self.families} <= {IPV4, IPV6}:
            raise ConfigurationError(f"families must be (4,), (6,) or both, not {self.families!r}")
        if len(self.families) > 1 and (self.even_port or self.reservation_token is not None):
            raise ConfigurationError("even_port and reservation_token work with one family only: make two allocations")
        if self.even_port is not None and self.reservation_token is not None:
            raise ConfigurationError("even_port and reservation_token exclude each other: set one of them")
        if self.reservation_token is not None and len(self.reservation_token) != 8:
            raise ConfigurationError(f"a reservation token has 8 bytes, not {len(self.reservation_token)}")
        if self.lifetime < SECOND or self.keepalive < 0:
            raise ConfigurationError("lifetime must be at least one second, and keepalive not negative")
