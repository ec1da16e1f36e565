"""Binding requests of behavior discovery, paced, and which answer is to which (RFC 5780, section 5).

An answer may come from elsewhere than where the request went, if it was asked to: what counts is the transaction id,
the flow, and the source that the request asked for. Silence and refusals are answers, too: of the NAT, of the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.machine import Closed, Counters, Datagram, IcmpError, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import CHANGE_REQUEST, ERROR_CODE, RESPONSE_PORT, XOR_MAPPED_ADDRESS, Attribute, ChangeRequest
from .message import Message, decode
from .registry import TRANSACTION_ID_LENGTH, Class, Method
from .transactions import Schedule, Transactions

PAUSE: Final = 100 * MILLISECOND
"""Between the beginnings of two requests: no more than ten a second."""

TestT = TypeVar("TestT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Generic[TestT]):
    """One Binding request. `test` is whatever the owner wants back with the answer."""

    test: TestT
    flow: Flow
    to: Address
    schedule: Schedule
    change: ChangeRequest | None = None
    response_port: int | None = None
    """To which port of the host that asks the answer is to go."""
    heard_by: Flow | None = None
    """By which flow it will come then; None for the one that asks."""

    def fits(self, source: Address) -> bool:
        """Whether an answer comes from where it was asked to come from."""
        moved = ChangeRequest(address=source.host != self.to.host, port=source.port != self.to.port)
        return moved == (self.change or ChangeRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[TestT]):
    """What came of a question: a success response, or none and why."""

    question: Question[TestT]
    message: Message | None = None
    source: Address | None = None
    reason: str = ""
    silent: bool = False
    """Nobody answered, whatever was sent; otherwise the server did and would not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Generic[TestT]):
    """A request came back to us by another flow of ours."""

    question: Question[TestT]
    flow: Flow
    source: Address


class Questions(Generic[TestT]):
    """A machine for the requests of one discovery, whose flows its owner opens."""

    def __init__(self, random: Random, trace: Tracer = NO_TRACE) -> None:
        self._random = random
        self._waiting: deque[Question[TestT]] = deque()
        self._not_before = Instant(0)
        self._asked: dict[bytes, Question[TestT]] = {}
        self._transactions: Transactions[Question[TestT]] = Transactions(trace)
        self._events: list[Answer[TestT] | Returned[TestT]] = []
        self._counters: dict[str, int] = {}

    def ask(self, question: Question[TestT], *, now: Instant) -> None:
        """Send this as soon as it may be sent."""
        self._waiting.append(question)
        self._begin(now=now)

    def receive(self, input: Datagram | IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        if isinstance(input, Datagram):
            self._take(input, now=now)
        else:
            self._transactions.receive(input, now=now)
        self._hear_silence()

    def tick(self, *, now: Instant) -> None:
        self._transactions.tick(now=now)
        self._hear_silence()
        self._begin(now=now)

    def next_timer(self) -> Instant | None:
        waits = (self._transactions.next_timer(), self._not_before if self._waiting else None)
        return min((due for due in waits if due is not None), default=None)

    def outputs(self) -> list[Send]:
        return self._transactions.outputs()

    def events(self) -> list[Answer[TestT] | Returned[TestT]]:
        drained, self._events = self._events, []
        return drained

    def forget(self) -> None:
        """Ask nothing more, and hear nothing more."""
        self._waiting.clear()
        self._asked.clear()
        self._transactions.clear()

    @property
    def counters(self) -> Counters:
        """What was received and not used, by why."""
        return {**self._transactions.counters, **self._counters}

    # ---------------------------------------------------------------------------------------------------------- steps

    def _begin(self, *, now: Instant) -> None:
        while self._waiting and now >= self._not_before:
            question = self._waiting.popleft()
            attributes: dict[Attribute[Any], Any] = {}
            if question.change is not None:
                attributes[CHANGE_REQUEST] = question.change
            if question.response_port is not None:
                attributes[RESPONSE_PORT] = question.response_port
            transaction_id = self._random.randbytes(TRANSACTION_ID_LENGTH)
            request = Message.request(Method.BINDING, transaction_id, attributes).encode(fingerprint=True)
            self._asked[transaction_id] = question
            self._transactions.start(
                transaction_id,
                request,
                question.flow,
                question.to,
                now=now,
                context=question,
                schedule=question.schedule,
            )
            self._not_before = Instant(now + PAUSE)

    def _take(self, datagram: Datagram, *, now: Instant) -> None:
        try:
            message = decode(datagram.data)
        except DecodeError:
            self._count("not STUN")
            return
        question = self._asked.get(message.transaction_id)
        if question is None or message.method != Method.BINDING:
            self._count("not ours")
        elif message.cls is Class.REQUEST:
            if question.flow != datagram.flow:
                self._events.append(Returned(question=question, flow=datagram.flow, source=datagram.remote))
        else:
            self._answered(question, message, datagram, now=now)

    def _answered(self, question: Question[TestT], message: Message, datagram: Datagram, *, now: Instant) -> None:
        source = datagram.remote
        transaction = self._transactions.by_id.get(message.transaction_id)
        if transaction is None:
            self._count("answers to what has been answered")
            return
        if message.cls is Class.SUCCESS and datagram.flow != (question.heard_by or question.flow):
            self._count("answers by another flow")
            return
        reason = ""
        if message.cls is Class.ERROR:
            error = message.get(ERROR_CODE)
            reason = f"{source} refused: {error}"
        elif message.cls is not Class.SUCCESS or XOR_MAPPED_ADDRESS not in message:
            self._count("answers without a mapped address")
            return
        elif not question.fits(source):
            reason = f"{source} answered what {question.to} was asked, where another was to answer"
        self._transactions.answer(transaction, now=now)
        told = None if reason else message
        self._events.append(Answer(question=question, message=told, source=source, reason=reason))

    def _hear_silence(self) -> None:
        for ended in self._transactions.events():
            question = ended.context
            # what ends sooner was ended by an ICMP error, or its flow is gone
            silent = ended.sends == question.schedule.sends
            self._events.append(Answer(question=question, reason=ended.reason, silent=silent))

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1
