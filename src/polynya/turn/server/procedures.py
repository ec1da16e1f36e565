"""Runs the procedures: numbers their commands, and resumes each with what the plane says to it.

start --a command--> WAITING --Done, Refused or too long--> resumed --a command--> WAITING ...
                                                                    --returns or raises--> an Outcome
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from polynya.core.instants import SECOND, Instant

from .commands import Command, Done, Refused
from .requests import Order, Refusal, Resumed

ContextT = TypeVar("ContextT")

PATIENCE: Final = 10 * SECOND
"""After which a plane that says nothing counts as one that refused."""


@dataclass(slots=True)
class Outcome(Generic[ContextT]):
    """A procedure is over: it returned `value`, or its answer is `refusal`."""

    context: ContextT
    value: Any = None
    refusal: Refusal | None = None


class Procedures(Generic[ContextT]):
    """Procedures that wait for a data plane. Pull: after any call, `commands` and `outcomes`."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, tuple[Generator[Order, Resumed, Any], ContextT]] = {}
        self._patience: deque[tuple[Instant, int]] = deque()
        """When each of them has waited for too long: all wait for as long, so the first to begin is the first."""
        self._commands: list[Command] = []
        self.over: list[Outcome[ContextT]] = []
        """Those that have ended since `outcomes` was called."""

    def start(self, procedure: Generator[Order, Resumed, Any], context: ContextT, *, now: Instant) -> None:
        """Run a procedure up to its first command, or its end."""
        self._step(procedure, context, None, now=now)

    def order(self, order: Order) -> None:
        """Give a command that nobody waits for."""
        self._number += 1
        self._commands.append(order(number=self._number))

    def take(self, report: Done | Refused, *, now: Instant) -> bool:
        """Resume whom a report is for; False when nobody waits for it."""
        waiting = self._waiting.pop(report.number, None)
        if waiting is None:
            return False
        self._step(*waiting, (report, now), now=now)
        return True

    def tick(self, *, now: Instant) -> None:
        """Let those that waited too long go on as if the plane had refused."""
        while (due := self.next_timer()) is not None and due <= now:
            self.take(Refused(self._patience.popleft()[1], "the data plane did not answer"), now=now)

    def next_timer(self) -> Instant | None:
        patience, waiting = self._patience, self._waiting
        while patience:
            due, number = patience[0]
            if number in waiting:
                return due
            patience.popleft()
        return None

    def commands(self) -> list[Command]:
        drained, self._commands = self._commands, []
        return drained

    def outcomes(self) -> list[Outcome[ContextT]]:
        drained, self.over = self.over, []
        return drained

    def __len__(self) -> int:
        return len(self._waiting)

    def _step(
        self, procedure: Generator[Order, Resumed, Any], context: ContextT, resume: Resumed | None, *, now: Instant
    ) -> None:
        try:
            order = next(procedure) if resume is None else procedure.send(resume)
        except StopIteration as returned:
            self.over.append(Outcome(context, returned.value))
        except Refusal as refusal:
            self.over.append(Outcome(context, refusal=refusal))
        else:
            self._number += 1
            self._waiting[self._number] = procedure, context
            self._patience.append((Instant(now + PATIENCE), self._number))
            self._commands.append(order(number=self._number))
