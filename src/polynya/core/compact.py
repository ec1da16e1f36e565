"""Containers that cost little memory while they are empty.

A process may hold thousands of idle agents, and most of their queues and tables are empty most of the time. An empty
`list` takes 56 bytes and an empty `dict` 64, and each keeps its storage when it is emptied. The containers here share
one empty value and free their storage when they are drained or emptied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Table(dict[K, V]):
    """A dict that frees its storage with its last entry, which a dict keeps."""

    __slots__ = ()

    def pop(self, *args: Any) -> Any:
        value = super().pop(*args)
        if not self:
            super().clear()
        return value

    def __delitem__(self, key: K) -> None:
        super().__delitem__(key)
        if not self:
            super().clear()


class Queue(Generic[T]):
    """A first-in, first-out queue: outputs or events of a machine that its owner has not drained yet."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[T] | tuple[()] = ()

    def append(self, item: T) -> None:
        if self._items:
            self._items.append(item)
        else:
            self._items = [item]

    def extend(self, items: Iterable[T]) -> None:
        if self._items:
            self._items.extend(items)
        else:
            self._items = list(items) or ()

    def drain(self) -> list[T]:
        """Remove and return all items, oldest first."""
        items, self._items = self._items, ()
        return items or []

    def popleft(self) -> T:
        """Remove and return the oldest item; IndexError if the queue is empty."""
        if not self._items:
            raise IndexError("the queue is empty")
        first, *rest = self._items
        self._items = rest or ()
        return first

    def clear(self) -> None:
        self._items = ()

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
