"""How long a NAT keeps a mapping that nobody uses, asked of a STUN server (RFC 5780, section 4.6).

Flow X asks, so that it has a mapping, and is silent for a time. Then flow Y asks for an answer to X's mapped port
(RESPONSE-PORT): if it comes by X, the mapping was still there. The times double from trial to trial until the mapping
has gone, and then halve what is left between the longest that it survived and the shortest that it did not.

    state   | Opened twice | X is answered | its time is over | answer by X   | no answer by X | refused, no socket
    --------+--------------+---------------+------------------+---------------+----------------+-------------------
    OPENING | RENEWING     |               |                  |               |                | ENDED
    RENEWING|              | RESTING       |                  |               | ENDED          | ENDED
    RESTING |              |               | TRYING           |               |                |
    TRYING  |              |               |                  | RENEWING (1)  | RENEWING (1)   | ENDED

    (1) or ENDED, when the rest is fine enough, or the mapping survived the longest time that was to be tried

The first trial rests for no time: where its answer does not come, nothing can be said. The mapping is renewed before
each trial by a packet from inside, which renews every mapping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Counters, Datagram, IcmpError, Input, Open, Opened, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import XOR_MAPPED_ADDRESS
from .questions import Answer, Question, Questions, Returned
from .transactions import Schedule

PATIENT: Final = Schedule(sends=5, last_wait=8)
FIRST: Final = 10 * SECOND
"""The first time that a mapping is let rest."""


class State(Enum):
    OPENING = "opening"
    RENEWING = "renewing"
    RESTING = "resting"
    TRYING = "trying"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeReport:
    """What was found out. Times are nanoseconds."""

    server: Address
    survived: int | None = None
    """The longest rest that the mapping survived; None where nothing can be said."""
    gone_after: int | None = None
    """The shortest that it did not; None where it survived all."""
    reason: str = ""


class MappingLifetime:
    """A machine: opens two flows, tries, closes them, and ends with one event, a `LifetimeReport`.

    Times up to `longest` are tried, until they are known to `resolution`; both are nanoseconds. It takes two minutes
    where mappings live for 30 s, and eleven where they live for 120 s.
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
            raise ValueError("the longest time and the resolution are positive numbers of nanoseconds")
        self.state = State.OPENING
        self.report = LifetimeReport(server=server)
        """What is known so far."""
        self._server = server
        self._bind = local
        self._schedule = schedule
        self._longest = longest
        self._resolution = resolution
        self._questions: Questions[State] = Questions(random, trace)
        self._kept, self._asking = flow_ids.new(), flow_ids.new()
        self._open: list[Flow] = []
        self._rest = 0
        self._port = 0
        """Of the mapping that is let rest."""
        self._due: Instant | None = None
        self._outputs: list[Open | Close | Send] = []
        self._events: list[LifetimeReport] = []

    def start(self, *, now: Instant) -> None:  # noqa: ARG002 - what a driver calls is given the time
        """Open the flows; what follows comes of itself."""
        self._outputs += [
            Open(flow=flow, transport=Transport.UDP, local=self._bind) for flow in (self._kept, self._asking)
        ]

    def receive(self, input: Input, *, now: Instant) -> None:
        """Take in an answer, an error, or what became of a flow."""
        if self.state is State.ENDED:
            return
        match input:
            case Opened():
                self._open.append(input.flow)
                if len(self._open) == 2:
                    self._renew(now=now)
            case Closed():
                self._end(f"no socket: {input.reason}")
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
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[LifetimeReport]:
        drained, self._events = self._events, []
        return drained

    @property
    def counters(self) -> Counters:
        """What was received and not used, by why."""
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
        self._outputs += self._questions.outputs()

    def _renewed(self, answer: Answer[State], *, now: Instant) -> None:
        if answer.message is None:
            self._end(answer.reason)
            return
        self.state = State.RESTING
        self._port = answer.message[XOR_MAPPED_ADDRESS].port
        self._due = Instant(now + self._rest)

    def _tried(self, answer: Answer[State], *, now: Instant) -> None:
        if answer.message is not None:
            self.report = replace(self.report, survived=self._rest)
        elif not answer.silent:
            self._end(answer.reason)
            return
        elif not self._rest:
            self._end(f"an answer to another port of ours does not come in: {answer.reason}")
            return
        else:
            self.report = replace(self.report, gone_after=self._rest)
        survived, gone = self.report.survived or 0, self.report.gone_after
        if gone is None and survived >= self._longest:
            self._end("the mapping survived the longest rest that was tried")
        elif gone is not None and gone - survived <= self._resolution:
            self._end("between these two the mapping goes")
        else:
            doubled = min(max(survived * 2, FIRST), self._longest)
            self._rest = doubled if gone is None else (survived + gone) // 2
            self._renew(now=now)

    def _end(self, reason: str) -> None:
        self.state = State.ENDED
        self._due = None
        self._questions.forget()
        self.report = replace(self.report, reason=reason)
        self._outputs += [Close(flow=flow) for flow in self._open]
        self._events.append(self.report)
