"""Inquiry: three consent checks within two seconds, when the other side may be gone (RFC 7675, section 5.1).

Usual consent lasts 30 s without a response. An owner that learns by signaling that the other side may be gone need not
wait for so long. A response to any of the checks ends the inquiry for its pair.
"""

from __future__ import annotations

from typing import Final

from polynya.core.instants import MILLISECOND, SECOND, Instant, in_seconds

from .pairs import Pair

CHECKS: Final = 3
"""Consent checks on each pair."""
INTERVAL: Final = 500 * MILLISECOND
"""Time between two of them."""
TIMEOUT: Final = 2 * SECOND
"""From the first check until a pair without a response is lost."""


class Inquiry:
    """One inquiry about all pairs that carry data, or could."""

    __slots__ = ("_sent", "_since")

    reason = f"no answer to {CHECKS} consent checks within {in_seconds(TIMEOUT):g} s: the other side seems to be gone"

    def __init__(self, *, now: Instant) -> None:
        self._since = now
        self._sent = 0

    def awaits(self, pair: Pair) -> bool:
        """Return whether a pair has not answered since the inquiry began."""
        return (pair.answered_at or 0) < self._since

    def due(self, *, now: Instant) -> bool:
        """Return whether the next check is due, and count it."""
        if self._sent == CHECKS or now < self._since + self._sent * INTERVAL:
            return False
        self._sent += 1
        return True

    def over(self, *, now: Instant) -> bool:
        """Return whether the time for a response is over."""
        return now >= self._since + TIMEOUT

    def next_timer(self) -> Instant:
        return Instant(self._since + (TIMEOUT if self._sent == CHECKS else self._sent * INTERVAL))
