"""Runs the portable data plane in the server's event loop: at once, or in rounds that gather packets.

    gather = 0     readable --> run
    gather > 0     WATCHING --readable--> WAITING --after `gather`--> run --packets found--> WAITING
                                                                          --no packets--> WATCHING

A worker process may sleep while packets gather. The server's own loop may not, because it also runs streams, signaling
and timers. It therefore sets a timer and does not watch the plane until then. While packets flow, a round costs one
timer and no wake-up of its own. Event loops have timers in milliseconds, so `gather` is rounded up to whole ones.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from polynya.plane.portable import PortablePlane


class Rounds:
    """Runs `plane` when it has packets, and calls `after` each time."""

    def __init__(
        self, plane: PortablePlane, gather: float, after: Callable[[], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._plane = plane
        self._pause = math.ceil(gather * 1000) / 1000
        self._after = after
        self._loop = loop
        self._timer: asyncio.Handle | None = None
        self._watch()

    def close(self) -> None:
        """Stop running the plane. Must be called before the plane is closed."""
        self._loop.remove_reader(self._plane.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        self._loop.add_reader(self._plane.fileno(), self._wait if self._pause else self._run)

    def _wait(self) -> None:
        self._loop.remove_reader(self._plane.fileno())
        self._timer = self._loop.call_later(self._pause, self._round)

    def _round(self, after_another: bool = False) -> None:
        self._timer = None
        self._run()
        if self._plane.behind:  # packets that are late already must not wait
            self._timer = self._loop.call_soon(self._round, True)
        elif self._plane.found or after_another:
            self._timer = self._loop.call_later(self._pause, self._round)
        else:
            self._watch()

    def _run(self) -> None:
        self._plane.run(0)
        self._after()
