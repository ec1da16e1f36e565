"""How much a member may say, how many there may be, and for how long one may be silent."""

from __future__ import annotations

from dataclasses import dataclass, fields

from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND, Instant

from .messages import MESSAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The server's caps. Times are in whole seconds, sizes in bytes."""

    message_bytes: int = MESSAGE_BYTES
    messages_per_second: int = 50
    burst: int = 200
    """Messages that may come at once after a silence."""
    bytes_per_second: int = 131_072
    bytes_burst: int = 524_288
    offences: int = 5
    """Refused messages after which a link is closed; one is forgiven every ten seconds."""

    room_members: int = 16
    rooms: int = 10_000
    links: int = 20_000
    links_per_host: int = 256

    join_timeout: int = 10
    """From the opening of a link to its `join`."""
    idle_timeout: int = 300
    """Silence after which a link is closed; members send a keepalive at a third of it."""
    room_timeout: int = 6 * 3600
    """For which nobody joined and nothing was relayed, after which a room is closed."""
    resume_timeout: int = 30
    """For which the place of a member whose connection broke is kept."""
    away_messages: int = 128
    """Messages kept for such a member,"""
    away_bytes: int = 131_072
    """their size,"""
    away_bytes_in_all: int = 33_554_432
    """and the size of what is kept for all of them."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = (
                0
                if each.name in {"resume_timeout", "away_messages", "away_bytes", "away_bytes_in_all", "offences"}
                else 1
            )
            if value < least:
                raise ConfigurationError(f"the limit {each.name} is at least {least}, not {value}")
        if self.room_members > 256:  # a welcome names them all and must fit a message
            raise ConfigurationError(f"room_members is at most 256, not {self.room_members}")
        if not 1024 <= self.message_bytes <= MESSAGE_BYTES:
            raise ConfigurationError(f"message_bytes is within 1024..{MESSAGE_BYTES}, not {self.message_bytes}")
        if self.bytes_burst < self.message_bytes:
            raise ConfigurationError("bytes_burst must leave room for one message of message_bytes")


class Bucket:
    """A token bucket in exact integers: `rate` tokens every `per` nanoseconds, `capacity` at most."""

    __slots__ = ("_capacity", "_cost", "_full_at", "_span")

    def __init__(self, rate: int, capacity: int, *, now: Instant, per: int = SECOND) -> None:
        # told by the time at which it would be full again, it needs no tick: one comparison a take
        self._cost = per // rate
        self._capacity = capacity
        self._span = self._cost * capacity
        self._full_at = now

    def take(self, tokens: int, *, now: Instant) -> bool:
        """Take tokens if there are as many; else take none."""
        full_at = max(self._full_at, now) + self._cost * tokens
        if full_at > now + self._span:
            return False
        self._full_at = Instant(full_at)
        return True

    def ready(self, tokens: int) -> Instant:
        """When as many tokens will be there; at most the capacity's worth is ever there."""
        return Instant(self._full_at + self._cost * min(tokens, self._capacity) - self._span)
