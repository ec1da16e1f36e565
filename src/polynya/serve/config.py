"""What a server is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass, field

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.signaling.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Addresses to listen on and limits. Port 0 takes any free port; `Server` tells which."""

    listen: tuple[Address, ...] = ()
    """For STUN over UDP."""
    http: tuple[Address, ...] = ()
    """For signaling and /healthz, without TLS: put a proxy in front for that."""
    limits: Limits = field(default_factory=Limits)
    origins: tuple[str, ...] = ()
    """Origins (`https://example.org`) whose web pages may use the signaling, besides pages of this server itself."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    request_timeout: float = 10.0
    """Seconds from a connection's opening to its first whole request."""
    stop_timeout: float = 2.0
    """Seconds that members get to take their goodbye."""

    def __post_init__(self) -> None:
        if not self.listen and not self.http:
            raise ConfigurationError("a server without an address to listen on: give listen, http or both")
        for seconds in (self.request_timeout, self.stop_timeout):
            if not 0 < seconds <= 3600:
                raise ConfigurationError(f"a timeout is more than 0 and at most 3600 seconds, not {seconds}")
