"""What the control plane is told when it is made. Durations are nanoseconds."""

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
    """Up to which number channels may be bound."""

    RFC8656 = "rfc8656"
    RFC5766 = "rfc5766"
    """For old clients, coturn's turnutils_uclient 4.6.1 among them."""

    @property
    def last(self) -> int:
        return LAST_CHANNEL if self is ChannelRange.RFC8656 else LAST_CHANNEL_RFC5766


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayHost:
    """An address of this host that relay ports are bound on, and what it is called outside if that differs."""

    host: str
    external: str = ""

    def __post_init__(self) -> None:
        for text in (self.host, self.external or self.host):
            try:
                address = Address.of(text, 0)
            except DecodeError as error:
                raise ConfigurationError(f"a relay address is an IP address: {error}") from None
            if text in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
                raise ConfigurationError(f"{text} is no relay address: clients are told it, so it must be a real one")
            if address.host != text:
                raise ConfigurationError(f"write the relay address {text} as {address.host}")
        if self.external and self.family != Address(self.external, 0).family:
            raise ConfigurationError(f"{self.host} and its external address {self.external} are of two families")

    @property
    def family(self) -> int:
        return 6 if ":" in self.host else 4

    @property
    def outside(self) -> str:
        """What clients are told."""
        return self.external or self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one user, one address and all together may take (security.md, line 7). 0 is no limit."""

    allocations: int = 100_000
    """In all."""
    allocations_per_user: int = 1000
    allocations_per_address: int = 10_000
    """Of one client host, or one /64 of IPv6. Many people may sit behind one NAT."""
    permissions: int = 256
    """Of one allocation."""
    channels: int = 256
    """Of one allocation, those that rest included."""
    peers_per_request: int = 64
    bytes_per_second: int = 0
    """Of one relay, both directions together, with IP and UDP headers."""
    requests_per_second: int = 20_000
    """Of one client host, or one /64 of IPv6: what is beyond is dropped before it is read."""
    unauthenticated_answers_per_second: int = 100
    """To one host or /64: what a forged source can be made to hear."""
    unauthenticated_burst: int = 200
    streams: int = 4096
    streams_per_address: int = 256
    stream_patience: int = 30 * SECOND
    """For how long a stream may stay without an allocation."""
    pending_lookups: int = 1024
    lookup_patience: int = 5 * SECOND

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ConfigurationError(f"the limit {name} is 0 (none) or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The control plane's settings."""

    realm: str
    relays: tuple[RelayHost, ...]
    ports: tuple[int, int] = (49152, 65535)
    port_rest: int = 2 * SECOND
    """How long a freed port is not given out again; longer than a few round trips, short enough for a busy server."""
    policy: PeerPolicy = field(default_factory=PeerPolicy)
    limits: Limits = field(default_factory=Limits)
    channel_range: ChannelRange = ChannelRange.RFC8656
    default_lifetime: int = DEFAULT_LIFETIME
    max_lifetime: int = MAX_LIFETIME
    nonce_lifetime: int = 600 * SECOND
    algorithms: tuple[int, ...] = (PasswordAlgorithmNumber.SHA256, PasswordAlgorithmNumber.MD5)
    """Offered to clients in this order. Without MD5 clients of RFC 5389 and 5766 cannot come in."""
    refuse_expired_refresh: bool = False
    """Whether time-limited credentials that have expired end an allocation at its next Refresh."""

    def __post_init__(self) -> None:
        opaque_string(self.realm)
        if len(self.realm.encode()) > 128:
            raise ConfigurationError("a realm has at most 128 bytes: it is in every answer to a stranger")
        if not self.relays:
            raise ConfigurationError("a TURN server needs an address to relay on")
        hosts = [name for relay in self.relays for name in {relay.host: 0, relay.outside: 0}]
        if len(dict.fromkeys(hosts)) != len(hosts):
            raise ConfigurationError("two relay addresses are the same, inside or outside")
        low, high = self.ports
        if not 1024 <= low <= high <= 65535:  # well-known ports would let clients pose as services (RFC 8656, 7.2)
            raise ConfigurationError(f"relay ports {low}-{high} are not a range within 1024-65535")
        if not self.algorithms or any(each not in list(PasswordAlgorithmNumber) for each in self.algorithms):
            raise ConfigurationError("the password algorithms are 1 (MD5) and 2 (SHA-256), at least one of them")
        if not 0 < self.default_lifetime <= self.max_lifetime or self.port_rest < 0:
            raise ConfigurationError("lifetimes are positive, and the default not above the maximum")
        if not SECOND <= self.nonce_lifetime <= 3600 * SECOND:
            raise ConfigurationError("a nonce lives between a second and an hour (RFC 8656, section 5)")

    @property
    def families(self) -> tuple[int, ...]:
        """The address families that can be relayed on: 4, 6."""
        return tuple(sorted({relay.family for relay in self.relays}))
