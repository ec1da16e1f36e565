"""Binding requests of behavior discovery: paces them and matches their responses (RFC 5780, section 5).

A response may come from another address than the request went to, if the request asks for it. It is matched by
transaction id, flow and the requested source. Timeouts and refusals are results, too: of the NAT and of the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.machine import Closed, Counters, Datagram, IcmpError, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import CHANGE_REQUEST, ERROR_CODE, RESPONSE_PORT, XOR_MAPPED_ADDRESS, Attribute, ChangeRequest
from .message import Message, decode
from .registry import TRANSACTION_ID_LENGTH, Class, Method
from .reported import first_possible
from .transactions import Outbox, Schedule, Transactions

PAUSE: Final = 100 * MILLISECOND
"""Time between the starts of two requests: at most ten a second."""

TestT = TypeVar("TestT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Generic[TestT]):
    """One Binding request. The answer returns `test` to the owner."""

    test: TestT
    flow: Flow
    to: Address
    schedule: Schedule
    change: ChangeRequest | None = None
    response_port: int | None = None
    """The port of the requesting host that the response is sent to; None for the source port."""
    heard_by: Flow | None = None
    """The flow that the response arrives on; None for the requesting one."""

    def fits(self, source: Address) -> bool:
        """Whether a response comes from the requested source."""
        moved = ChangeRequest(address=source.host != self.to.host, port=source.port != self.to.port)
        return moved == (self.change or ChangeRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[TestT]):
    """Result of a question: a success response, or None and the reason."""

    question: Question[TestT]
    message: Message | None = None
    source: Address | None = None
    reason: str = ""
    silent: bool = False
    """Whether all sends timed out; otherwise the server refused, or an error ended the request early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Generic[TestT]):
    """A request arrived on another flow of this host."""

    question: Question[TestT]
    flow: Flow
    source: Address


class Questions(Generic[TestT]):
    """The requests of one discovery, on flows of the owner; they are appended to `outbox`."""

    def __init__(self, random: Random, trace: Tracer = NO_TRACE, *, outbox: Outbox) -> None:
        self._random = random
        self._waiting: deque[Question[TestT]] = deque()
        self._not_before = Instant(0)
        self._asked: dict[bytes, Question[TestT]] = {}
        self._transactions: Transactions[Question[TestT]] = Transactions(trace, outbox=outbox)
        self._events: Queue[Answer[TestT] | Returned[TestT]] = Queue()
        self._counters: dict[str, int] = {}

    def ask(self, question: Question[TestT], *, now: Instant) -> None:
        """Send the request as soon as the pace allows."""
        self._waiting.append(question)
        self._begin(now=now)

    def receive(self, input: Datagram | IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        if isinstance(input, Datagram):
            self._take(input, now=now)
        else:
            self._transactions.receive(input, now=now)
        self._collect_timeouts()

    def tick(self, *, now: Instant) -> None:
        self._transactions.tick(now=now)
        self._collect_timeouts()
        self._begin(now=now)

    def next_timer(self) -> Instant | None:
        waits = (self._transactions.next_timer(), self._not_before if self._waiting else None)
        return min((due for due in waits if due is not None), default=None)

    def events(self) -> list[Answer[TestT] | Returned[TestT]]:
        return self._events.drain()

    def forget(self) -> None:
        """Drop all requests."""
        self._waiting.clear()
        self._asked.clear()
        self._transactions.clear()

    @property
    def counters(self) -> Counters:
        """Received packets that were ignored, by reason."""
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
            self._count("no matching request")
        elif message.cls is Class.REQUEST:
            if question.flow != datagram.flow:
                self._events.append(Returned(question=question, flow=datagram.flow, source=datagram.remote))
        else:
            self._answered(question, message, datagram, now=now)

    def _answered(self, question: Question[TestT], message: Message, datagram: Datagram, *, now: Instant) -> None:
        source = datagram.remote
        transaction = self._transactions.by_id.get(message.transaction_id)
        if transaction is None:
            self._count("repeated responses")
            return
        if message.cls is Class.SUCCESS and datagram.flow != (question.heard_by or question.flow):
            self._count("responses on another flow")
            return
        reason = ""
        if message.cls is Class.ERROR:
            error = message.get(ERROR_CODE)
            reason = f"{source} refused: {error}"
        elif message.cls is not Class.SUCCESS or XOR_MAPPED_ADDRESS not in message:
            self._count("responses without a mapped address")
            return
        elif (mapped := first_possible((message[XOR_MAPPED_ADDRESS],), by=question.to, mapped=True))[0] is None:
            reason = f"{source} reports an impossible mapped address: {mapped[1]}"
        elif not question.fits(source):
            reason = f"{source} answered the request to {question.to} instead of the requested source"
        self._transactions.answer(transaction, now=now)
        accepted = None if reason else message
        self._events.append(Answer(question=question, message=accepted, source=source, reason=reason))

    def _collect_timeouts(self) -> None:
        for ended in self._transactions.events():
            question = ended.context
            # a request that ends earlier met an ICMP error, or its flow closed
            silent = ended.sends == question.schedule.sends
            self._events.append(Answer(question=question, reason=ended.reason, silent=silent))

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1
