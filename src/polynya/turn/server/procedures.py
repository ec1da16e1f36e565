"""Runs the procedures that answer requests: numbers their commands and resumes each with the plane's acknowledgement.

    start --a command--> WAITING --Done, Refused or timeout--> resumed --a command--> WAITING ...
                                                                       --returns or raises--> Completed

A procedure is a generator. It yields a command without its number, is resumed with the acknowledgement and the time,
and returns the attributes of the success response or raises an `ErrorResponse`. So each procedure reads from top to
bottom as the RFC does, although other packets are handled while it waits.

    report, now = yield partial(Permit, relay=..., hosts=..., until=...)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from polynya.core.compact import Queue
from polynya.core.instants import SECOND, Instant
from polynya.stun.attributes import Attribute
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode

from .authentication import Authenticated
from .commands import Client, Command, Done, Refused

ContextT = TypeVar("ContextT")

ACKNOWLEDGE_TIMEOUT: Final = 10 * SECOND
"""A command without an acknowledgement counts as refused after this time."""

UnnumberedCommand = Callable[..., Command]
"""Makes a command from its number: a `partial` of a command class."""
Acknowledged = tuple[Done | Refused, Instant]
"""An acknowledgement with the time at which it came."""
Attributes = dict[Attribute[Any], Any]
Procedure = Generator[UnnumberedCommand, Acknowledged, Attributes]
"""Returns the attributes of the success response, or raises ErrorResponse."""


@dataclass(slots=True)
class Request:
    """An authenticated request."""

    message: Message
    client: Client
    authenticated: Authenticated
    stream: bool
    abandoned: bool = field(default=False)
    """Whether the client's stream has closed since: an allocation that is made for it is freed at once."""


class ErrorResponse(Exception):
    """Ends a procedure with an error response."""

    def __init__(self, code: ErrorCode, reason: str, attributes: Attributes | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        """For the log; the client gets the standard phrase of the code."""
        self.attributes = attributes or {}


@dataclass(slots=True)
class Completed(Generic[ContextT]):
    """The result of a procedure: the `value` that it returned, or the `error` that it raised."""

    context: ContextT
    value: Any = None
    error: ErrorResponse | None = None


class Procedures(Generic[ContextT]):
    """Procedures that wait for the data plane. Drain `commands` and `completed` after any call."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[int, tuple[Generator[UnnumberedCommand, Acknowledged, Any], ContextT]] = {}
        self._timeouts: deque[tuple[Instant, int]] = deque()
        """Deadlines of commands, oldest first; the first one is always that of a command that waits."""
        self._commands: Queue[Command] = Queue()
        self._completed: Queue[Completed[ContextT]] = Queue()

    def start(
        self, procedure: Generator[UnnumberedCommand, Acknowledged, Any], context: ContextT, *, now: Instant
    ) -> None:
        """Run a procedure up to its first command or its end."""
        self._step(procedure, context, None, now=now)

    def issue(self, command: UnnumberedCommand) -> None:
        """Issue a command whose acknowledgement is ignored."""
        self._number += 1
        self._commands.append(command(number=self._number))

    def acknowledge(self, report: Done | Refused, *, now: Instant) -> bool:
        """Resume the procedure that waits for an acknowledgement; False if none does."""
        waiting = self._waiting.pop(report.number, None)
        if waiting is None:
            return False
        while self._timeouts and self._timeouts[0][1] not in self._waiting:
            self._timeouts.popleft()
        self._step(*waiting, (report, now), now=now)
        return True

    def tick(self, *, now: Instant) -> None:
        """Resume procedures after their timeout, as if the data plane had refused the command."""
        while self._timeouts and self._timeouts[0][0] <= now:
            self.acknowledge(Refused(self._timeouts[0][1], "the data plane did not answer"), now=now)

    def next_timer(self) -> Instant | None:
        return self._timeouts[0][0] if self._timeouts else None

    def commands(self) -> list[Command]:
        """Return the commands for the data plane, oldest first; drained by the call."""
        return self._commands.drain()

    def completed(self) -> list[Completed[ContextT]]:
        """Return the results of procedures that have ended, oldest first; drained by the call."""
        return self._completed.drain()

    def __len__(self) -> int:
        return len(self._waiting)

    def _step(
        self,
        procedure: Generator[UnnumberedCommand, Acknowledged, Any],
        context: ContextT,
        resume: Acknowledged | None,
        *,
        now: Instant,
    ) -> None:
        try:
            command = next(procedure) if resume is None else procedure.send(resume)
        except StopIteration as returned:
            self._completed.append(Completed(context, returned.value))
        except ErrorResponse as error:
            self._completed.append(Completed(context, error=error))
        else:
            self._number += 1
            self._waiting[self._number] = procedure, context
            self._timeouts.append((Instant(now + ACKNOWLEDGE_TIMEOUT), self._number))
            self._commands.append(command(number=self._number))
