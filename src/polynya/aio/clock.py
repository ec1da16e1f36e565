"""The clock of real time, and the watch that notices when it jumped.

CLOCK_BOOTTIME runs on while the machine sleeps, so that a consent or an allocation that ran out in the meantime is
seen to have run out. The event loop's own timers stand still in sleep, which is why somebody must look: one look a
second for each loop, however many drivers it has.
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
"""Seconds between two looks at the clocks."""

JUMP: Final = 250 * MILLISECOND
"""The clocks drift apart by far less than this in a second; more is a sleep."""


def now() -> Instant:
    """Nanoseconds on a clock that never goes back and, where the system has one, runs on in sleep."""
    if BOOTTIME is None:
        return Instant(time.monotonic_ns())
    return Instant(time.clock_gettime_ns(BOOTTIME))


_watches: dict[asyncio.AbstractEventLoop, JumpWatch] = {}


class JumpWatch:
    """Calls its subscribers when `now()` has moved on further than the loop's own clock. One for each loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, interval: float = INTERVAL) -> None:
        self._loop = loop
        self._subscribers: dict[Any, Callable[[Any], None]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._offset = 0
        self._interval = interval

    def subscribe(self, who: WhoT, on_jump: Callable[[WhoT], None]) -> None:
        """Call `on_jump(who)` after every jump until `who` unsubscribes."""
        self._subscribers[who] = on_jump
        if self._handle is None:
            self._offset = self._measure()
            self._handle = self._loop.call_later(self._interval, self._look)

    def unsubscribe(self, who: object) -> None:
        """Forget `who`; the watch rests when nobody is left."""
        self._subscribers.pop(who, None)
        if not self._subscribers and self._handle is not None:
            self._handle.cancel()
            self._handle = None
            _watches.pop(self._loop, None)

    def _measure(self) -> int:
        return now() - round(self._loop.time() * SECOND)

    def _look(self) -> None:
        offset = self._measure()
        jumped, self._offset = abs(offset - self._offset) > JUMP, offset
        self._handle = self._loop.call_later(self._interval, self._look)
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
    """The event loops that have a jump watch at present."""
    return tuple(_watches)
