"""What happened to a pair or an agent, remembered in little room.

An idle agent remembers some fifteen changes, and most say the same in all agents: "waiting to in-progress, a check was
sent". So a step is kept once for all of them, and a history is one flat tuple: time, step, packet, time, step, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

from polynya.core.instants import Instant

LENGTH: Final = 16
"""How many changes are remembered; the oldest but the first are dropped."""

StateT = TypeVar("StateT")


@dataclass(slots=True)
class Transition(Generic[StateT]):
    """One change, for `why()`. `packet` is the trace's id of the packet that caused it, or 0."""

    at: Instant
    old: StateT
    new: StateT
    reason: str
    packet: int = 0


class _Step(NamedTuple):
    old: Any
    new: Any
    reason: str


_step = lru_cache(maxsize=1024)(_Step)


class History(Generic[StateT]):
    """The changes of one thing, oldest first."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[Any, ...] = ()

    def add(self, at: Instant, old: StateT, new: StateT, reason: str, packet: int = 0) -> None:
        kept = self._kept
        if len(kept) >= 3 * LENGTH:
            kept = kept[:3] + kept[6:]
        self._kept = (*kept, at, _step(old, new, reason), packet)

    def transitions(self) -> list[Transition[StateT]]:
        kept = iter(self._kept)
        return [
            Transition(at, step.old, step.new, step.reason, packet)
            for at, step, packet in zip(kept, kept, kept, strict=True)
        ]
