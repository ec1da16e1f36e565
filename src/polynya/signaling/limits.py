"""Limits of the signaling server: messages, members, rooms, links, timeouts; and the token bucket that counts rates."""

from __future__ import annotations

from dataclasses import dataclass, fields

from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND, Instant

from .messages import MESSAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a signaling server. Times are whole seconds, sizes are bytes."""

    message_bytes: int = MESSAGE_BYTES
    messages_per_second: int = 50
    burst: int = 200
    """Messages that a client may send at once after a silence."""
    bytes_per_second: int = 131_072
    bytes_burst: int = 524_288
    server_lists: int = 4
    """Server lists that a client may request at once. One more is granted every ten seconds."""
    offenses: int = 5
    """Refused messages before a link is closed. One is forgiven every ten seconds."""

    room_members: int = 16
    rooms: int = 10_000
    links: int = 20_000
    links_per_host: int = 256

    join_timeout: int = 10
    """From the opening of a link to the client's `join`."""
    silence_timeout: int = 2
    """Time in which the members of a full room answer a ping when a newcomer waits. One that does not is replaced."""
    idle_timeout: int = 300
    """Silence after which a link is closed. Members send a keepalive after a third of it."""
    room_timeout: int = 6 * 3600
    """Time without a join or a signal after which a room is closed."""
    resume_timeout: int = 30
    """Time for which the place of a member whose connection broke is kept."""
    away_messages: int = 128
    """Messages that are kept for such a member."""
    away_bytes: int = 131_072
    """Total size of the messages that are kept for such a member."""
    away_bytes_in_all: int = 33_554_432
    """Total size of the messages that are kept for all such members."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = (
                0
                if each.name in {"resume_timeout", "away_messages", "away_bytes", "away_bytes_in_all", "offenses"}
                else 1
            )
            if value < least:
                raise ConfigurationError(f"the limit {each.name} must be at least {least}, not {value}")
        if self.room_members > 256:  # a welcome lists all members and must fit into a message
            raise ConfigurationError(f"the limit room_members must be at most 256, not {self.room_members}")
        if not 1024 <= self.message_bytes <= MESSAGE_BYTES:
            raise ConfigurationError(
                f"the limit message_bytes must be 1024 to {MESSAGE_BYTES}, not {self.message_bytes}"
            )
        if self.bytes_burst < self.message_bytes:
            raise ConfigurationError("the limit bytes_burst must not be less than message_bytes")


class Bucket:
    """A token bucket in exact integers: fills with `rate` tokens every `per` nanoseconds, up to `capacity`."""

    __slots__ = ("_capacity", "_cost", "_full_at", "_span")

    def __init__(self, rate: int, capacity: int, *, now: Instant, per: int = SECOND) -> None:
        # the state is the instant at which the bucket will be full: no tick is needed, and a take is one comparison
        self._cost = per // rate
        self._capacity = capacity
        self._span = self._cost * capacity
        self._full_at = now

    def take(self, tokens: int, *, now: Instant) -> bool:
        """Take this many tokens and return True, or take none and return False."""
        full_at = max(self._full_at, now) + self._cost * tokens
        if full_at > now + self._span:
            return False
        self._full_at = Instant(full_at)
        return True

    def ready(self, tokens: int) -> Instant:
        """The instant at which this many tokens, at most the capacity, will be available."""
        return Instant(self._full_at + self._cost * min(tokens, self._capacity) - self._span)
