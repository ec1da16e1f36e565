"""When a relay that was lost is asked for again: at once, then after a second, and after ever longer times.

A server that was started anew, or whose stream broke, has mostly come back; one that stays away is not pestered. The
waits differ by chance, so that not all clients of a server come back to it at one moment. One that has refused is left
alone for as long as RFC 8656, section 7.4, says: for good where the same request would be refused again.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers
from polynya.stun.registry import ErrorCode
from polynya.stun.uris import TurnUri

FIRST_WAIT: Final = SECOND
LONGEST_WAIT: Final = 64 * SECOND
LEAST_WAIT: Final[Mapping[int | None, int]] = {
    ErrorCode.ALLOCATION_QUOTA_REACHED: 60 * SECOND,
    ErrorCode.INSUFFICIENT_CAPACITY: 60 * SECOND,
    ErrorCode.ALLOCATION_MISMATCH: 120 * SECOND,
}
FINAL: Final = frozenset(
    {
        ErrorCode.BAD_REQUEST,
        ErrorCode.FORBIDDEN,
        ErrorCode.UNKNOWN_ATTRIBUTE,
        ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED,
        ErrorCode.WRONG_CREDENTIALS,
        ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL,
    }
)
"""Refusals that the next request would meet, too."""

Way = tuple[Flow, TurnUri]
"""From which base to which server."""


class Losses:
    """The ways by which a relay is missing."""

    __slots__ = ("_counts", "_random", "_timers")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._counts: dict[Way, int] = {}
        self._timers: Timers[Way] = Timers()

    def lost(self, way: Way, *, now: Instant) -> None:
        """A relay was lost."""
        self._again(way, now=now, least=0)

    def refused(self, way: Way, *, now: Instant, code: int | None) -> None:
        """It was asked for again in vain: with this error, or None when nobody answered."""
        if code in FINAL:
            self.found(way)
        else:
            self._again(way, now=now, least=LEAST_WAIT.get(code, 0))

    def _again(self, way: Way, *, now: Instant, least: int) -> None:
        count = self._counts[way] = self._counts.get(way, 0) + 1
        wait = 0 if count == 1 else min(FIRST_WAIT << min(count - 2, 16), LONGEST_WAIT)
        spread = self._random.randrange(wait // 4) if wait else 0
        self._timers.set(way, Instant(now + max(wait - spread, least)))

    def found(self, way: Way) -> None:
        """There is one again, or none is wanted."""
        self._counts.pop(way, None)
        self._timers.cancel(way)

    def forget(self, flow: Flow) -> None:
        """The base is gone."""
        for way in [way for way in self._counts if way[0] == flow]:
            self.found(way)

    def clear(self) -> None:
        self._counts.clear()
        self._timers.clear()

    def __contains__(self, way: object) -> bool:
        """Whether one is missing."""
        return way in self._counts

    def due(self, *, now: Instant) -> list[Way]:
        """By which ways to ask now; each is told once."""
        return self._timers.due(now=now)

    def next_timer(self) -> Instant | None:
        return self._timers.next()
