"""When an agent may send its next new check (RFC 8445, sections 6.1.4.2 and 14.2).

Two intervals hold at once: Ta between two checks of the agent, and the pacer's between any two of the process. A
slot is reserved only when Ta has passed and there is something to check, and given back when nothing is left to
check by then.
"""

from __future__ import annotations

from polynya.core.instants import Instant
from polynya.core.pacer import Pacer


class Pacing:
    """The pace of one agent."""

    __slots__ = ("_at", "_last", "_pacer", "_reserved", "interval")

    def __init__(self, pacer: Pacer, interval: int) -> None:
        self.interval = interval
        """Ta, nanoseconds."""
        self._pacer = pacer
        self._last: Instant | None = None
        self._at: Instant | None = None
        self._reserved = False

    def ready(self, *, now: Instant) -> bool:
        """There is something to check: whether it may be sent now. If not, `next_timer` says when to ask again."""
        if self._at is None:
            self._at = now if self._last is None else max(now, Instant(self._last + self.interval))
        if now < self._at:
            return False
        if not self._reserved:
            self._at = self._pacer.reserve(now=now)
            self._reserved = True
        self._at = max(self._at, self._pacer.free_at)  # another's slot may have been used late
        return self._at <= now

    def used(self, *, now: Instant) -> None:
        """A check was sent."""
        self._pacer.used(now=now)
        self._last = now
        self._at = None
        self._reserved = False

    def idle(self) -> None:
        """There is nothing to check."""
        if self._reserved and self._at is not None:
            self._pacer.release(self._at)
        self._at = None
        self._reserved = False

    def next_timer(self) -> Instant | None:
        return self._at
