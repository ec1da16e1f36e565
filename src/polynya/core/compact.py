"""Containers that cost little memory while they are empty.

A process may hold thousands of idle agents, and most of their queues and tables are empty most of the time. An empty
`list` takes 56 bytes and an empty `dict` 64, and each keeps its storage when it is emptied. The containers here share
one empty value and free their storage when they are drained or emptied. `History` shares equal entries among all
agents of the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from .instants import Instant

HISTORY_LENGTH: Final = 16
"""Transitions that a `History` keeps; older ones are dropped, except for the first."""

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


NO_COUNTS: Final[Mapping[str, int]] = MappingProxyType({})
"""Counters that are all zero, shared by all machines that have counted nothing."""


def count(counters: Mapping[str, int], name: str) -> Mapping[str, int]:
    """Return new counters, with this one raised by one."""
    return {**counters, name: counters.get(name, 0) + 1}


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


@dataclass(slots=True)
class Transition(Generic[T]):
    """One change of a state. `packet` is the trace's id of the packet that caused it, or 0."""

    at: Instant
    old: T
    new: T
    reason: str
    packet: int = 0


class _Step(NamedTuple):
    old: Any
    new: Any
    reason: str


_step = lru_cache(maxsize=1024)(_Step)


class History(Generic[T]):
    """The transitions of one state, oldest first.

    An idle agent keeps some fifteen, and most are equal in all agents: "waiting to in-progress, a check was sent". So a
    step is stored once for all agents, and a history is one flat tuple: time, step, packet, time, step, ...
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[Any, ...] = ()

    def add(self, at: Instant, old: T, new: T, reason: str, packet: int = 0) -> None:
        kept = self._kept
        if len(kept) >= 3 * HISTORY_LENGTH:
            kept = kept[:3] + kept[6:]
        self._kept = (*kept, at, _step(old, new, reason), packet)

    def transitions(self) -> list[Transition[T]]:
        kept = iter(self._kept)
        return [
            Transition(at, step.old, step.new, step.reason, packet)
            for at, step, packet in zip(kept, kept, kept, strict=True)
        ]
