"""Retry times of a lost relay: at once, then after a second, then after ever longer waits.

A server that was restarted, or whose stream broke, is often back at once; one that stays away is not flooded. The waits
have a random part, so that the clients of a server do not return to it at one moment. After a refusal the wait is at
least what RFC 8656, section 7.4, requires; a refusal that the same request would meet again ends the retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

from polynya.core.instants import SECOND, Instant
from polynya.stun.registry import ErrorCode

FIRST_WAIT: Final = SECOND
LONGEST_WAIT: Final = 64 * SECOND
LEAST_WAIT: Final[Mapping[int | None, int]] = {
    ErrorCode.ALLOCATION_QUOTA_REACHED: 60 * SECOND,
    ErrorCode.INSUFFICIENT_CAPACITY: 60 * SECOND,
    ErrorCode.ALLOCATION_MISMATCH: 120 * SECOND,
}
"""Nanoseconds to wait at least, by STUN error code."""
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
"""STUN error codes that the same request would meet again."""


class Backoff:
    """Exponential backoff of one relay; `due` reports when to allocate it again."""

    __slots__ = ("_at", "_count", "_random")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._count = 0
        self._at: Instant | None = None

    def lost(self, *, now: Instant) -> None:
        """Schedule the first retry, or the next one if the relay was not found since: it was lost."""
        self._schedule(now=now, least=0)

    def refused(self, *, now: Instant, code: int | None) -> None:
        """Schedule the next retry, if one can help: the last was refused with `code`, or timed out with None."""
        if code in FINAL:
            self.reset()
        else:
            self._schedule(now=now, least=LEAST_WAIT.get(code, 0))

    def reset(self) -> None:
        """Cancel the retries and start again with the shortest wait."""
        self._count = 0
        self._at = None

    def due(self, *, now: Instant) -> bool:
        """Whether to retry now; True once for each retry."""
        due = self._at is not None and self._at <= now
        if due:
            self._at = None
        return due

    def next_timer(self) -> Instant | None:
        return self._at

    def _schedule(self, *, now: Instant, least: int) -> None:
        self._count += 1
        wait = 0 if self._count == 1 else min(FIRST_WAIT << min(self._count - 2, 16), LONGEST_WAIT)
        spread = self._random.randrange(wait // 4) if wait else 0
        self._at = Instant(now + max(wait - spread, least))
