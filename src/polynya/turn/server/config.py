"""Options of a TURN server's control plane. Durations are nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.instants import SECOND
from polynya.stun.opaque_string import opaque_string
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.turn.numbers import DEFAULT_LIFETIME, LAST_CHANNEL, LAST_CHANNEL_RFC5766, MAX_LIFETIME

from .policy import PeerPolicy


class ChannelRange(Enum):
    """The range of channel numbers that clients may bind."""

    RFC8656 = "rfc8656"
    """0x4000 to 0x4FFF."""
    RFC5766 = "rfc5766"
    """0x4000 to 0x7FFF, for old clients, such as coturn's turnutils_uclient 4.6.1."""

    @property
    def last(self) -> int:
        return LAST_CHANNEL if self is ChannelRange.RFC8656 else LAST_CHANNEL_RFC5766


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayHost:
    """An address of this host for relay ports, and its external address where a NAT is in between."""

    host: str
    external: str = ""

    def __post_init__(self) -> None:
        for text in (self.host, self.external or self.host):
            try:
                address = Address.of(text, 0)
            except DecodeError as error:
                raise ConfigurationError(f"a relay address is an IP address: {error}") from None
            if text in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
                raise ConfigurationError(
                    f"{text} is no relay address: clients send to it, so write an address of this host"
                )
            if address.host != text:
                raise ConfigurationError(f"write the relay address {text} as {address.host}")
        if self.external and self.family != Address(self.external, 0).family:
            raise ConfigurationError(
                f"{self.host} and its external address {self.external} must be of one address family"
            )

    @property
    def family(self) -> int:
        return 6 if ":" in self.host else 4

    @property
    def outside(self) -> str:
        """The address that clients get: the external one where there is one."""
        return self.external or self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for a user, a source and the whole server (security.md, line 7). 0 is no limit."""

    allocations: int = 100_000
    """Of the server."""
    allocations_per_user: int = 1000
    allocations_per_address: int = 10_000
    """Of one client host, or one /64 of IPv6. Many users may share one NAT."""
    permissions: int = 256
    """Of one allocation."""
    channels: int = 256
    """Of one allocation, expired ones that cannot be bound again yet included."""
    peers_per_request: int = 64
    bytes_per_second: int = 0
    """Of one relay, for both directions together, with IP and UDP headers."""
    open_bytes_per_second: int = 1_000_000
    """Of all relays of one account with credentials that any visitor can get (`User.open`)."""
    open_bytes_per_hour: int = 1_000_000_000
    """Of the same relays."""
    requests_per_second: int = 20_000
    """Of one client host, or one /64 of IPv6. Requests beyond the limit are dropped before they are parsed."""
    unauthenticated_answers_per_second: int = 100
    """To one host or /64: limits the traffic that requests with a forged source cause at a victim."""
    unauthenticated_burst: int = 200
    streams: int = 4096
    streams_per_address: int = 256
    stream_patience: int = 30 * SECOND
    """Time after which a stream without an allocation is closed."""
    pending_lookups: int = 1024
    lookup_patience: int = 5 * SECOND

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ConfigurationError(f"the limit {name} must be 0 (no limit) or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Options of the control plane."""

    realm: str
    relays: tuple[RelayHost, ...]
    ports: tuple[int, int] = (49152, 65535)
    port_rest: int = 2 * SECOND
    """Time before a freed port is used again: longer than a few round trips, short enough for a busy server."""
    policy: PeerPolicy = field(default_factory=PeerPolicy)
    limits: Limits = field(default_factory=Limits)
    channel_range: ChannelRange = ChannelRange.RFC5766
    default_lifetime: int = DEFAULT_LIFETIME
    max_lifetime: int = MAX_LIFETIME
    nonce_lifetime: int = 600 * SECOND
    algorithms: tuple[int, ...] = (PasswordAlgorithmNumber.SHA256, PasswordAlgorithmNumber.MD5)
    """Offered to clients in this order. Without MD5, clients of RFC 5389 and 5766 cannot authenticate."""
    refuse_expired_refresh: bool = False
    """Whether a Refresh with expired time-limited credentials is refused."""

    def __post_init__(self) -> None:
        opaque_string(self.realm)
        if len(self.realm.encode()) > 128:
            raise ConfigurationError(
                "a realm has at most 128 bytes: every response to an unauthenticated request contains it"
            )
        if not self.relays:
            raise ConfigurationError("a TURN server needs at least one relay address")
        hosts = [name for relay in self.relays for name in {relay.host: 0, relay.outside: 0}]
        if len(dict.fromkeys(hosts)) != len(hosts):
            raise ConfigurationError("two relay addresses are the same, or one is the external address of another")
        low, high = self.ports
        if not 1024 <= low <= high <= 65535:  # well-known ports would let clients pose as services (RFC 8656, 7.2)
            raise ConfigurationError(f"relay ports {low}-{high} are not a range within 1024-65535")
        if not self.algorithms or any(each not in list(PasswordAlgorithmNumber) for each in self.algorithms):
            raise ConfigurationError("the password algorithms are 1 (MD5) and 2 (SHA-256): set at least one of them")
        if not 0 < self.default_lifetime <= self.max_lifetime or self.port_rest < 0:
            raise ConfigurationError("lifetimes must be positive, and the default at most the maximum")
        if not SECOND <= self.nonce_lifetime <= 3600 * SECOND:
            raise ConfigurationError(
                "the lifetime of a nonce must be between a second and an hour (RFC 8656, section 5)"
            )

    @property
    def families(self) -> tuple[int, ...]:
        """The address families of the relay addresses: 4, 6."""
        return tuple(sorted({relay.family for relay in self.relays}))
