"""The relay ports of one host: chosen at random, taken alone or in pairs.

    FREE --take--> USED --release--> RESTING --timeout--> FREE

A released port may still get datagrams of its old peers, so it rests before another client gets it.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final

from polynya.core.instants import Instant

_FREE, _USED, _RESTING = 0, 1, 2
_TRIES: Final = 16


class RelayPorts:
    """The ports low..high of one host."""

    def __init__(self, low: int, high: int, rest: int, random: random.Random) -> None:
        self._low = low
        self._count = high - low + 1
        self._state = bytearray(self._count)
        self._rest = rest
        self._random = random
        self._resting: deque[tuple[Instant, int]] = deque()
        self._free = self._count

    def free_ports(self, *, now: Instant) -> int:
        """Return the number of free ports."""
        self._wake(now=now)
        return self._free

    @property
    def resting(self) -> int:
        """Number of released ports that rest."""
        return len(self._resting)

    @property
    def used(self) -> int:
        """Number of ports in use."""
        return self._count - self._free - len(self._resting)

    def take(self, *, now: Instant) -> int | None:
        """Take a free port; None if there is none."""
        self._wake(now=now)
        if not self._free:
            return None
        start = 0
        for _ in range(_TRIES):
            start = self._random.randrange(self._count)
            if self._state[start] == _FREE:
                return self._use(start)
        found = self._state.find(_FREE, start)
        return self._use(found if found >= 0 else self._state.find(_FREE))

    def take_even(self, *, now: Instant, pair: bool) -> int | None:
        """Take a free even port, with `pair` together with the next higher one; None if there is none."""
        self._wake(now=now)
        first = self._low & 1
        evens = (self._count - first - pair + 1) // 2
        if evens <= 0 or not self._free:
            return None
        start = self._random.randrange(evens)
        for step in range(evens):
            index = first + 2 * ((start + step) % evens)
            if self._state[index] == _FREE and (not pair or self._state[index + 1] == _FREE):
                if pair:
                    self._use(index + 1)
                return self._use(index)
        return None

    def release(self, port: int, *, now: Instant) -> None:
        """Release a port; it rests before it is free."""
        index = port - self._low
        if self._state[index] != _USED:
            raise ValueError(f"port {port} is not in use: it can be released once")
        self._state[index] = _RESTING
        self._resting.append((Instant(now + self._rest), index))

    def _use(self, index: int) -> int:
        self._state[index] = _USED
        self._free -= 1
        return self._low + index

    def _wake(self, *, now: Instant) -> None:
        resting = self._resting
        while resting and resting[0][0] <= now:
            self._state[resting.popleft()[1]] = _FREE
            self._free += 1
