"""Virtual time: a queue of scheduled calls. Nothing sleeps; the clock jumps from call to call.

Calls of one instant run in the order in which they were scheduled, so the seed alone determines a run.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from polynya.core.instants import Instant


class Clock:
    """The clock of a virtual network. It starts at zero."""

    def __init__(self) -> None:
        self.now = Instant(0)
        self._queue: list[tuple[Instant, int, Callable[..., object], tuple[Any, ...]]] = []
        self._scheduled = 0

    def at(self, when: Instant, call: Callable[..., object], *args: Any) -> None:
        """Schedule `call(*args)` at `when`, or now if `when` has passed."""
        self._scheduled += 1
        heappush(self._queue, (max(self.now, when), self._scheduled, call, args))

    def after(self, delay: int, call: Callable[..., object], *args: Any) -> None:
        """Schedule `call(*args)` in `delay` nanoseconds."""
        self._scheduled += 1
        heappush(self._queue, (Instant(self.now + delay), self._scheduled, call, args))

    def step(self) -> bool:
        """Run the next scheduled call; False if there is none."""
        if not self._queue:
            return False
        self.now, _, call, args = heappop(self._queue)
        call(*args)
        return True

    def run(self, until: Instant) -> None:
        """Run every call that is scheduled up to and at `until`, then set the clock to `until`."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, args = heappop(queue)
            call(*args)
        self.now = max(self.now, until)

    def run_until(self, done: Callable[[], bool], limit: Instant) -> bool:
        """Run until `done()`, which is evaluated after every call; False if `limit` is reached first."""
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
        """The number of scheduled calls."""
        return len(self._queue)
