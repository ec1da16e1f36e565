"""Pacing of new STUN and TURN transactions (RFC 8445, sections 6.1.4.2 and 14.2).

Two intervals apply at once. An agent starts no more than one new check every Ta (`Pacing`); all agents of a process
together start no more than one transaction every 5 ms (`Pacer`).

A machine reserves the next free slot of the `Pacer` and starts its transaction in that slot. Slots are given out in the
order of the requests, so no agent starves another. A busy process acts late: then two slots are apart, but the
transactions in them may not be. So a machine reports each start with `used`, and waits until `free_at` as well.
"""

from __future__ import annotations

from .instants import MILLISECOND, Instant

MINIMUM_INTERVAL = 5 * MILLISECOND
"""The shortest interval between two transactions of a process (RFC 8445, section 14.2)."""


class Pacer:
    """Gives out slots that are at least `interval` nanoseconds apart. A process has one."""

    def __init__(self, interval: int = MINIMUM_INTERVAL) -> None:
        if interval < 0:
            raise ValueError(f"an interval is zero or more nanoseconds, not {interval}")
        self.interval = interval
        self.free_at = Instant(0)
        """No transaction may start earlier, in whatever slot."""
        self._next = Instant(0)

    def reserve(self, *, now: Instant) -> Instant:
        """Take the first free slot at or after `now`. The caller acts in this slot, not before."""
        slot = max(now, self._next)
        self._next = Instant(slot + self.interval)
        return slot

    def release(self, slot: Instant) -> None:
        """Return an unused slot. Only the last slot given out can be used again."""
        if self._next == slot + self.interval:
            self._next = slot

    def used(self, *, now: Instant) -> None:
        """Report that a transaction starts now; the next one starts `interval` later at the earliest."""
        self.free_at = Instant(now + self.interval)
        self._next = max(self._next, self.free_at)


class Pacing:
    """Paces the new checks of one agent: every Ta, in slots of the process's pacer.

    A slot is reserved only if Ta has passed and there is a check to send; it is released if no check is left by then.
    """

    __slots__ = ("_at", "_last", "_pacer", "_reserved", "interval")

    def __init__(self, pacer: Pacer, interval: int) -> None:
        self.interval = interval
        """Ta, nanoseconds."""
        self._pacer = pacer
        self._last: Instant | None = None
        self._at: Instant | None = None
        self._reserved = False

    def ready(self, *, now: Instant) -> bool:
        """Return whether a check may be sent now. If not, `next_timer` is when to call again."""
        if self._at is None:
            self._at = now if self._last is None else max(now, Instant(self._last + self.interval))
        if now < self._at:
            return False
        if not self._reserved:
            self._at = self._pacer.reserve(now=now)
            self._reserved = True
        self._at = max(self._at, self._pacer.free_at)  # an earlier slot may have been used late
        return self._at <= now

    def used(self, *, now: Instant) -> None:
        """Report that a check was sent."""
        self._pacer.used(now=now)
        self._last = now
        self._at = None
        self._reserved = False

    def idle(self) -> None:
        """Release the reserved slot: there is nothing to check."""
        if self._reserved and self._at is not None:
            self._pacer.release(self._at)
        self._at = None
        self._reserved = False

    def waits(self, *, now: Instant) -> bool:
        """Return whether Ta has not passed since the last check."""
        return self._last is not None and self._last + self.interval > now

    def next_timer(self) -> Instant | None:
        return self._at
