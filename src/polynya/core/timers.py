"""The timers of a machine: a table from keys to the times when they are due.

`next()` returns the earliest time. `due(now=)` removes and returns the keys that are due, ordered by time and then by
the order in which they were set. The same inputs therefore have the same results. Setting a timer again moves it.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from .instants import Instant

KeyT = TypeVar("KeyT", bound=Hashable)


class Timers(Generic[KeyT]):
    """Timers by key. Each call takes O(log n); canceled heap entries are swept when they outnumber the live ones."""

    __slots__ = ("_entries", "_heap", "_sets")

    def __init__(self) -> None:
        self._entries: dict[KeyT, tuple[Instant, int, KeyT]] = {}
        """The live heap entries, as the same objects; other entries of the heap are canceled."""
        self._heap: list[tuple[Instant, int, KeyT]] = []
        self._sets = 0

    def set(self, key: KeyT, at: Instant) -> None:
        """Set the timer of `key` to `at`, replacing an earlier setting."""
        self._sets += 1
        self._entries[key] = entry = (at, self._sets, key)
        heappush(self._heap, entry)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def cancel(self, key: KeyT) -> None:
        """Cancel the timer of `key`, if it is set."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Cancel all timers."""
        self._entries.clear()
        self._heap.clear()

    def at(self, key: KeyT) -> Instant | None:
        """Return the time of the timer of `key`, or None if it is not set."""
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def next(self) -> Instant | None:
        """Return the time of the earliest timer, or None if none is set."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[0]
            heappop(heap)
        return None

    def due(self, *, now: Instant) -> list[KeyT]:
        """Remove the timers that are due at `now`; return their keys, earliest first."""
        due: list[KeyT] = []
        while (at := self.next()) is not None and at <= now:
            key = heappop(self._heap)[2]
            del self._entries[key]
            due.append(key)
        return due

    @property
    def size(self) -> int:
        """Heap entries, including canceled ones that were not swept yet."""
        return len(self._heap)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
