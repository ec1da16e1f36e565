"""What a TURN client is asked to allocate, and how."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND
from polynya.stun.transactions import UNRELIABLE, Schedule
from polynya.turn.numbers import DEFAULT_LIFETIME


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """ConfigurationError for what no server can give. Durations are nanoseconds."""

    families: tuple[int, ...] = (IPV4,)
    """4, 6, or both in one allocation (RFC 8656, section 7.1)."""
    lifetime: int = DEFAULT_LIFETIME
    """What is asked for; the server grants what it likes."""
    even_port: bool | None = None
    """False: the relayed port is even. True: the next one is reserved, too, and `Allocated` has the token for it."""
    reservation_token: bytes | None = None
    """Allocate the port that another client's `even_port=True` reserved."""
    dont_fragment: bool = False
    """Ask for a server that can send with DF set; `Allocated` says whether it can."""
    local: Address | None = None
    """Where flows of our own are bound; port 0 takes any. None leaves it to the system."""
    interface: str | None = None
    keepalive: int = 15 * SECOND
    """Over UDP an indication is sent after this much silence, so that no NAT forgets the path; 0 for never."""
    schedule: Schedule = UNRELIABLE
    """Of requests over UDP."""

    def __post_init__(self) -> None:
        if not self.families or len(set(self.families)) < len(self.families) or not {*self.families} <= {IPV4, IPV6}:
            raise ConfigurationError(f"the families of an allocation are 4, 6 or both, not {self.families!r}")
        if len(self.families) > 1 and (self.even_port or self.reservation_token is not None):
            raise ConfigurationError("ports are reserved for one family at a time: ask for two allocations")
        if self.even_port is not None and self.reservation_token is not None:
            raise ConfigurationError("an allocation takes a reserved port or makes a reservation, not both")
        if self.reservation_token is not None and len(self.reservation_token) != 8:
            raise ConfigurationError("a reservation token has 8 bytes")
        if self.lifetime < SECOND or self.keepalive < 0:
            raise ConfigurationError("a lifetime is a second or more, a keepalive interval is not negative")
