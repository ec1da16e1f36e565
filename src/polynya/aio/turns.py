"""Turns of an event loop: bounds the input of accepted streams that one turn handles, so that no client starves others.

A loop handles everything that is ready, then waits for more: one turn. A turn has a fixed number of shares for all
streams, and each stream gets one share of it. The size of a share is up to the stream.

    input --share left, first of this stream in the turn--> handled now
    input --otherwise--> kept; reading is paused --a later turn, in order--> handled, then reading is resumed
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

SHARES: Final = 8
"""Shares of one turn, for all streams of the loop."""


class Waiting(Protocol):
    """A stream with input that waits for a share."""

    def go_on(self) -> None:
        """Handle one share of the input; called in a later turn."""


class Turns:
    """Divides the turns of one event loop among streams."""

    __slots__ = ("_left", "_loop", "_waiting", "number")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.number = 0
        """Number of the turn in which a share was last taken."""
        self._loop = loop
        self._left = 0
        self._waiting: dict[Waiting, None] | None = None
        """Streams that wait, in their order; None if the next turn needs no call."""

    def take(self, last: int) -> bool:
        """Take a share for a stream that took its last one in turn `last`; False if it must `wait`.

        If this returns True, `number` is the new value of `last`.
        """
        if self._waiting is None:
            self._begin()
            self._waiting = {}
            self._loop.call_soon(self._next)
        if last == self.number or not self._left:
            return False
        self._left -= 1
        return True

    def wait(self, stream: Waiting) -> None:
        """Call `go_on` of the stream in a later turn. Follows a `take` of the same turn, or comes from `go_on`."""
        assert self._waiting is not None
        self._waiting[stream] = None

    def _begin(self) -> None:
        self.number += 1
        self._left = SHARES

    def _next(self) -> None:
        """Begin a turn with the streams that wait. The last turn of a series only ends it."""
        waiting = self._waiting
        if not waiting:
            self._waiting = None
            return
        self._begin()
        self._loop.call_soon(self._next)
        for _ in range(min(SHARES, len(waiting))):
            stream = next(iter(waiting))
            del waiting[stream]
            self._left -= 1
            try:
                stream.go_on()
            except Exception as error:  # noqa: BLE001 - an error of one stream must not stop the others
                self._loop.call_exception_handler({"message": "a stream failed", "exception": error})


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns(loop: asyncio.AbstractEventLoop) -> Turns:
    """Return the turns of this loop."""
    found = _turns.get(loop)
    if found is None:
        found = _turns[loop] = Turns(loop)
    return found
