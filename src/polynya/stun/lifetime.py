"""Mapping lifetime discovery: how long a NAT keeps an idle mapping (RFC 5780, section 4.6).

Flow X sends a request, which makes a mapping, and is then idle for a time. Flow Y then requests a response to X's
mapped port (RESPONSE-PORT): if it arrives on X, the mapping still exists. The idle time doubles from trial to trial
until the mapping is gone. Then a binary search narrows the range between the longest time that it survived and the
shortest that it did not.

    state   | Opened twice | X is answered | idle time over   | response on X | none on X      | refused, no socket
    --------+--------------+---------------+------------------+---------------+----------------+-------------------
    OPENING | RENEWING     |               |                  |               |                | ENDED
    RENEWING|              | RESTING       |                  |               | ENDED          | ENDED
    RESTING |              |               | TRYING           |               |                |
    TRYING  |              |               |                  | RENEWING (1)  | RENEWING (1)   | ENDED

    (1) or ENDED, if the range is small enough, or if the mapping survived the longest time to try

The first trial has no idle time: if its response does not arrive, the lifetime cannot be measured. Before each trial a
packet from inside renews the mapping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant, in_seconds
from polynya.core.machine import Close, Closed, Counters, Datagram, IcmpError, Input, Open, Opened, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import XOR_MAPPED_ADDRESS
from .questions import Answer, Question, Questions, Returned
from .transactions import Schedule

PATIENT: Final = Schedule(sends=5, last_wait=8)
FIRST: Final = 10 * SECOND
"""The first idle time that is tried, nanoseconds."""


class State(Enum):
    OPENING = "opening"
    RENEWING = "renewing"
    RESTING = "resting"
    TRYING = "trying"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeReport:
    """Result of lifetime discovery. Times are seconds; `str()` gives a summary for people."""

    server: Address
    survived: float | None = None
    """The longest idle time that the mapping survived; None if it cannot be measured."""
    gone_after: float | None = None
    """The shortest idle time that it did not survive; None if it survived all."""
    reason: str = ""

    def __str__(self) -> str:
        if self.survived is None:
            return f"mapping lifetime towards {self.server}: unknown ({self.reason})"
        gone = "" if self.gone_after is None else f", gone after {self.gone_after:g} s"
        return f"mapping lifetime towards {self.server}: idle for {self.survived:g} s{gone} ({self.reason})"


class MappingLifetime:
    """Machine of one lifetime discovery: opens two flows, tries, closes them and emits one `LifetimeReport`.

    It tries idle times up to `longest` until the range is at most `resolution`; both are nanoseconds. It takes two
    minutes if mappings live for 30 s, and eleven if they live for 120 s.
    """

    def __init__(
        self,
        *,
        server: Address,
        local: Address,
        flow_ids: FlowIds,
        random: Random,
        longest: int = 600 * SECOND,
        resolution: int = 10 * SECOND,
        schedule: Schedule = PATIENT,
        trace: Tracer = NO_TRACE,
    ) -> None:
        if longest <= 0 or resolution <= 0:
            raise ValueError(
                f"longest and resolution must be more than zero, not {longest} and {resolution} nanoseconds"
            )
        self.state = State.OPENING
        self.report = LifetimeReport(server=server)
        """The result so far."""
        self._server = server
        self._bind = local
        self._schedule = schedule
        self._longest = longest
        self._resolution = resolution
        self._outputs: Queue[Open | Close | Send] = Queue()
        self._questions: Questions[State] = Questions(random, trace, outbox=self._outputs)
        self._kept, self._asking = flow_ids.new(), flow_ids.new()
        self._open: list[Flow] = []
        self._idle = 0
        """The idle time of this trial, nanoseconds."""
        self._survived = 0
        self._gone: int | None = None
        self._port = 0
        """The mapped port of the idle flow."""
        self._due: Instant | None = None
        self._events: Queue[LifetimeReport] = Queue()

    def start(self, *, now: Instant) -> None:  # noqa: ARG002 - a driver passes the time
        """Open the flows; the trials follow."""
        for flow in (self._kept, self._asking):
            self._outputs.append(Open(flow=flow, transport=Transport.UDP, local=self._bind))

    def receive(self, input: Input, *, now: Instant) -> None:
        """Handle a response, an error, or the result of an `Open`."""
        if self.state is State.ENDED:
            return
        match input:
            case Opened():
                self._open.append(input.flow)
                if len(self._open) == 2:
                    self._renew(now=now)
            case Closed():
                self._end(f"no socket could be opened: {input.reason}")
            case Datagram() | IcmpError() | SendFailed():
                self._questions.receive(input, now=now)
            case _:
                pass
        self._go_on(now=now)

    def tick(self, *, now: Instant) -> None:
        self._questions.tick(now=now)
        self._go_on(now=now)
        if self._due is not None and now >= self._due:
            self._due = None
            self._try(now=now)
            self._go_on(now=now)

    def next_timer(self) -> Instant | None:
        waits = (self._questions.next_timer(), self._due)
        return min((due for due in waits if due is not None), default=None)

    def outputs(self) -> list[Open | Close | Send]:
        return self._outputs.drain()

    def events(self) -> list[LifetimeReport]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        """Received packets that were ignored, by reason."""
        return self._questions.counters

    # ----------------------------------------------------------------------------------------------------------- steps

    def _renew(self, *, now: Instant) -> None:
        self.state = State.RENEWING
        question = Question(test=State.RENEWING, flow=self._kept, to=self._server, schedule=self._schedule)
        self._questions.ask(question, now=now)

    def _try(self, *, now: Instant) -> None:
        self.state = State.TRYING
        question = Question(
            test=State.TRYING, flow=self._asking, to=self._server, schedule=self._schedule,
            response_port=self._port, heard_by=self._kept,
        )  # fmt: skip
        self._questions.ask(question, now=now)

    def _go_on(self, *, now: Instant) -> None:
        for event in self._questions.events():
            if self.state is State.ENDED or isinstance(event, Returned):
                continue
            if event.question.test is State.RENEWING:
                self._renewed(event, now=now)
            else:
                self._tried(event, now=now)

    def _renewed(self, answer: Answer[State], *, now: Instant) -> None:
        if answer.message is None:
            self._end(answer.reason)
            return
        self.state = State.RESTING
        self._port = answer.message[XOR_MAPPED_ADDRESS].port
        self._due = Instant(now + self._idle)

    def _tried(self, answer: Answer[State], *, now: Instant) -> None:
        if answer.message is not None:
            self._survived = self._idle
            self.report = replace(self.report, survived=in_seconds(self._idle))
        elif not answer.silent:
            self._end(answer.reason)
            return
        elif not self._idle:
            self._end(f"a response to another port of ours does not arrive: {answer.reason}")
            return
        else:
            self._gone = self._idle
            self.report = replace(self.report, gone_after=in_seconds(self._idle))
        survived, gone = self._survived, self._gone
        if gone is None and survived >= self._longest:
            self._end("the mapping survived the longest idle time that was tried")
        elif gone is not None and gone - survived <= self._resolution:
            self._end("the mapping expires between the two times")
        else:
            doubled = min(max(survived * 2, FIRST), self._longest)
            self._idle = doubled if gone is None else (survived + gone) // 2
            self._renew(now=now)

    def _end(self, reason: str) -> None:
        self.state = State.ENDED
        self._due = None
        self._questions.forget()
        self.report = replace(self.report, reason=reason)
        self._outputs.extend(Close(flow=flow) for flow in self._open)
        self._events.append(self.report)
