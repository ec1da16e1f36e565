"""Runs a portable plane in an event loop that has other work, too: at once, or in rounds that gather packets.

    gather = 0     readable --> run
    gather > 0     WATCHING --readable--> WAITING --`gather` later--> run --something was there--> WAITING
                                                                          --nothing--> WATCHING

A worker process may sleep while packets gather; the server's own loop may not, for streams, signaling and timers are in
it. So it waits as for any timer, and does not watch the plane meanwhile. While packets flow a round costs one timer
and no wake-up of its own. Loops count in milliseconds, so here it is whole ones that are waited for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from polynya.plane.portable import PortablePlane


class Rounds:
    """Runs `plane` whenever it has something to do, and `after` each time."""

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
        """Run it no more; to be called before the plane is closed."""
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
        if self._plane.behind:  # what is late already does not wait for more
            self._timer = self._loop.call_soon(self._round, True)
        elif self._plane.found or after_another:
            self._timer = self._loop.call_later(self._pause, self._round)
        else:
            self._watch()

    def _run(self) -> None:
        self._plane.run(0)
        self._after()
