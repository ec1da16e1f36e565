"""The pacer of a process: no two new STUN or TURN transactions within one interval (RFC 8445, section 14.2).

An agent paces itself by Ta; the process as a whole must not start a transaction more often than every 5 ms, however
many agents run. Whoever wants to start one reserves the next free slot and starts it when the slot comes. Slots are
handed out in the order in which they are asked for, so no agent starves another.

A process that was busy acts late, and then slots lie apart but transactions need not: whoever starts one says so
with `used`, and asks `free_at` before, since the holder of an earlier slot may have been late.
"""

from __future__ import annotations

from .instants import MILLISECOND, Instant

MINIMUM_INTERVAL = 5 * MILLISECOND
"""RFC 8445, section 14.2: over all agents of a process, never more often than this."""


class Pacer:
    """Hands out slots that lie at least `interval` nanoseconds apart. One for each process."""

    def __init__(self, interval: int = MINIMUM_INTERVAL) -> None:
        if interval < 0:
            raise ValueError(f"an interval is zero or more nanoseconds, not {interval}")
        self.interval = interval
        self.free_at = Instant(0)
        """No transaction may start before, whatever slot its owner holds."""
        self._next = Instant(0)

    def reserve(self, *, now: Instant) -> Instant:
        """Take the first free slot at or after `now`. The caller acts then, not before."""
        slot = max(now, self._next)
        self._next = Instant(slot + self.interval)
        return slot

    def release(self, slot: Instant) -> None:
        """Give back a slot that is not needed after all. Only the last one handed out can be used again."""
        if self._next == slot + self.interval:
            self._next = slot

    def used(self, *, now: Instant) -> None:
        """A transaction starts now, in time or late: the next one starts no sooner than `interval` from here."""
        self.free_at = Instant(now + self.interval)
        self._next = max(self._next, self.free_at)
