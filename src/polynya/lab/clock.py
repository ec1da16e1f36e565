"""Virtual time: a queue of what happens next. Nothing sleeps; the clock jumps from event to event.

Events of one instant happen in the order in which they were scheduled, so a run is decided by its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from polynya.core.instants import Instant


class Clock:
    """The clock of a simulated network. It starts at zero."""

    def __init__(self) -> None:
        self.now = Instant(0)
        self._queue: list[tuple[Instant, int, Callable[..., object], tuple[Any, ...]]] = []
        self._scheduled = 0

    def at(self, when: Instant, call: Callable[..., object], *args: Any) -> None:
        """Let `call(*args)` happen at `when`, or now when that has passed."""
        self._scheduled += 1
        heappush(self._queue, (max(self.now, when), self._scheduled, call, args))

    def after(self, delay: int, call: Callable[..., object], *args: Any) -> None:
        """Let `call(*args)` happen `delay` nanoseconds from now."""
        self._scheduled += 1
        heappush(self._queue, (Instant(self.now + delay), self._scheduled, call, args))

    def step(self) -> bool:
        """Let the next event happen; False when there is none."""
        if not self._queue:
            return False
        self.now, _, call, args = heappop(self._queue)
        call(*args)
        return True

    def run(self, until: Instant) -> None:
        """Let everything up to and at `until` happen; the clock shows `until` afterwards."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, args = heappop(queue)
            call(*args)
        self.now = max(self.now, until)

    def run_until(self, done: Callable[[], bool], limit: Instant) -> bool:
        """Run until `done()` holds, asked after every event; False when it does not by `limit`."""
        queue = self._queue
        if done():
            return True
        while queue and queue[0][0] <= limit:
            self.now, _, call, args = heappop(queue)
            call(*args)
            if done():
                return True
        self.now = max(self.now, limit)
        return False

    @property
    def waiting(self) -> int:
        """How many events are scheduled."""
        return len(self._queue)
