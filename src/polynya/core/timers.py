"""A machine's timers: one table from what is waited for to when it is due.

`next()` is the minimum and changes nothing that can be seen; `due(now)` takes out what is due in the order of time,
then of setting, so that the same inputs always run in the same order. A timer that is set again moves.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from .instants import Instant

KeyT = TypeVar("KeyT", bound=Hashable)


class Timers(Generic[KeyT]):
    """Timers by key. All calls are O(log n); cancelled entries are swept when they outnumber the live ones."""

    __slots__ = ("_entries", "_heap", "_sets")

    def __init__(self) -> None:
        self._entries: dict[KeyT, tuple[Instant, int, KeyT]] = {}
        """The very tuples that are in the heap: what is there besides is no longer wanted."""
        self._heap: list[tuple[Instant, int, KeyT]] = []
        self._sets = 0

    def set(self, key: KeyT, at: Instant) -> None:
        """Let `key` be due at `at`, whatever it was before."""
        self._sets += 1
        self._entries[key] = entry = (at, self._sets, key)
        heappush(self._heap, entry)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def cancel(self, key: KeyT) -> None:
        """Forget `key`; nothing happens when it was not set."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._heap.clear()

    def at(self, key: KeyT) -> Instant | None:
        """When `key` is due, or None."""
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def next(self) -> Instant | None:
        """When the first timer is due, or None."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[0]
            heappop(heap)
        return None

    def due(self, *, now: Instant) -> list[KeyT]:
        """Take out every timer that is due at `now`, earliest first."""
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
