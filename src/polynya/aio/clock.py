"""The clock of real time, and the watch that detects its jumps.

CLOCK_BOOTTIME continues while the system sleeps, so consent or an allocation that expired in the meantime is expired
when the system wakes. The event loop's own timers stop during sleep. The watch therefore compares the two clocks once a
second, for all drivers of a loop together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from polynya.core.instants import MILLISECOND, SECOND, Instant

from .features import BOOTTIME

WhoT = TypeVar("WhoT")

INTERVAL: Final = 1.0
"""Seconds between two comparisons of the clocks."""

JUMP: Final = 250 * MILLISECOND
"""The clocks drift apart by far less than this in a second; a larger difference is sleep."""


def now() -> Instant:
    """Return nanoseconds on a monotonic clock, which continues during sleep if the system has such a clock."""
    if BOOTTIME is None:
        return Instant(time.monotonic_ns())
    return Instant(time.clock_gettime_ns(BOOTTIME))


_watches: dict[asyncio.AbstractEventLoop, JumpWatch] = {}


class JumpWatch:
    """Calls its subscribers when `now()` has jumped against the loop's own clock. Each loop has one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, interval: float = INTERVAL) -> None:
        self._loop = loop
        self._subscribers: dict[Any, Callable[[Any], None]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._offset = 0
        self._interval = interval

    def subscribe(self, who: WhoT, on_jump: Callable[[WhoT], None]) -> None:
        """Call `on_jump(who)` after each jump until `who` unsubscribes."""
        self._subscribers[who] = on_jump
        if self._handle is None:
            self._offset = self._measure()
            self._handle = self._loop.call_later(self._interval, self._compare)

    def unsubscribe(self, who: object) -> None:
        """Remove a subscriber; the last one ends the watch."""
        self._subscribers.pop(who, None)
        if not self._subscribers and self._handle is not None:
            self._handle.cancel()
            self._handle = None
            _watches.pop(self._loop, None)

    def _measure(self) -> int:
        return now() - round(self._loop.time() * SECOND)

    def _compare(self) -> None:
        offset = self._measure()
        jumped, self._offset = abs(offset - self._offset) > JUMP, offset
        self._handle = self._loop.call_later(self._interval, self._compare)
        if jumped:
            for who, on_jump in list(self._subscribers.items()):
                on_jump(who)


def watch(loop: asyncio.AbstractEventLoop, *, interval: float = INTERVAL) -> JumpWatch:
    """Return the jump watch of this loop; `interval` (seconds) applies if the call creates it."""
    found = _watches.get(loop)
    if found is None:
        found = _watches[loop] = JumpWatch(loop, interval=interval)
    return found


def loops() -> tuple[asyncio.AbstractEventLoop, ...]:
    """Return the event loops that have a jump watch at present."""
    return tuple(_watches)
