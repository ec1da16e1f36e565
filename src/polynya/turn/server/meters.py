"""Meters: limits for all relays of one account together, by the second and by the hour.

A data plane has one meter for each account with a `SharedLimit`. A meter outlives the relays of its account, so that a
client cannot renew its share by a new allocation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from polynya.core.instants import SECOND

HOUR: Final = 3600 * SECOND
METERS: Final = 100_000
"""Meters that are kept; the one that was used by no new relay for longest is dropped."""


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """Limits of one account, with IP and UDP headers; 0 is no limit."""

    account: str
    bytes_per_second: int
    bytes_per_hour: int

    def part(self, planes: int) -> SharedLimit:
        """Return the limit of one of several data planes that cannot count together."""
        return replace(
            self, bytes_per_second=-(-self.bytes_per_second // planes), bytes_per_hour=-(-self.bytes_per_hour // planes)
        )


class Meter:
    """Counts the bytes of one account. The hour begins with its first byte, and the next one after the last's end."""

    __slots__ = ("_full_again", "_hourly", "_interval", "_left", "_over_at")

    def __init__(self, limit: SharedLimit) -> None:
        self._over_at = 0
        """When the present hour is over, nanoseconds."""
        self._full_again = 0
        self._interval = 0
        self._hourly = 0
        self._left = 0
        self.limit(limit)

    def limit(self, limit: SharedLimit) -> None:
        """Set the limits; bytes of the present hour count."""
        self._left += limit.bytes_per_hour - self._hourly
        self._hourly = limit.bytes_per_hour
        self._interval = SECOND // limit.bytes_per_second if limit.bytes_per_second else 0

    def take(self, size: int, at: int) -> bool:
        """Count `size` bytes if they are within both limits, which allow bursts of one second and of the hour."""
        if self._hourly:
            if at >= self._over_at:
                self._over_at = at + HOUR
                self._left = self._hourly
            if size > self._left:
                return False
        if self._interval:
            full_again = max(self._full_again, at) + size * self._interval
            if full_again - at > SECOND:
                return False
            self._full_again = full_again
        if self._hourly:
            self._left -= size
        return True


class Meters:
    """The meters of one data plane."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def of(self, limit: SharedLimit | None) -> Meter | None:
        """Return the meter of an account, with these limits; None without a limit."""
        if limit is None:
            return None
        meter = self._meters.pop(limit.account, None)
        if meter is None:
            meter = Meter(limit)
            if len(self._meters) >= METERS:
                del self._meters[next(iter(self._meters))]
        else:
            meter.limit(limit)
        self._meters[limit.account] = meter
        return meter
