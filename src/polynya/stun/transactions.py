"""STUN client transactions (RFC 8489, sections 6.2.1 to 6.3.4).

Over UDP a request is sent, then resent with a doubling interval until a response or a hard error arrives, or until the
last wait runs out. With RTO = 500 ms, Rc = 7 and Rm = 16 it is sent at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, and the
transaction fails at 39.5 s. Over a stream it is sent once and fails after Ti = 39.5 s.

    state    | start  | timer, sends left | timer, none left | answer   | unreachable | cancel
    ---------+--------+-------------------+------------------+----------+-------------+--------
    IDLE     | SENT   |                   |                  |          |             |
    SENT     |        | SENT              | FAILED           | ANSWERED | FAILED      | QUIET
    QUIET    |        |                   | FORGOTTEN        | ANSWERED | FORGOTTEN   |
    ANSWERED |        |                   |                  |          |             |
    FAILED   |        |                   |                  |          |             |
    FORGOTTEN|        |                   |                  |          |             |

QUIET is a canceled request (RFC 8445, section 7.3.1.4). It is not resent and its timeout is no failure, but a response
that arrives before the timeout still counts.

The owner verifies a response (transaction id, source, integrity) before it calls `answer`: a response that fails this
check must not end the transaction (section 6.3.4). Requests are appended to the owner's outbox when they are due, so
that no packet waits here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from polynya.core.addresses import Address
from polynya.core.arguments import number
from polynya.core.compact import NO_COUNTS, Queue, Table, count
from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant, duration, earliest
from polynya.core.machine import Closed, Counters, IcmpError, IpFields, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

ContextT = TypeVar("ContextT")


class Outbox(Protocol):
    """The queue of an owner's outputs, as a transaction needs it."""

    def append(self, item: Send, /) -> None: ...


class State(Enum):
    IDLE = "idle"
    SENT = "sent"
    QUIET = "quiet"
    ANSWERED = "answered"
    FAILED = "failed"
    FORGOTTEN = "forgotten"


class _Event(Enum):
    START = "start"
    TIMEOUT = "timer, none left"
    ANSWER = "answer"
    UNREACHABLE = "unreachable"
    CANCEL = "cancel"


TRANSITIONS: Final[Mapping[State, Mapping[_Event, State]]] = {
    State.IDLE: {_Event.START: State.SENT},
    State.SENT: {
        _Event.TIMEOUT: State.FAILED,
        _Event.ANSWER: State.ANSWERED,
        _Event.UNREACHABLE: State.FAILED,
        _Event.CANCEL: State.QUIET,
    },
    State.QUIET: {
        _Event.TIMEOUT: State.FORGOTTEN,
        _Event.ANSWER: State.ANSWERED,
        _Event.UNREACHABLE: State.FORGOTTEN,
    },
    State.ANSWERED: {},
    State.FAILED: {},
    State.FORGOTTEN: {},
}
"""The next state, by state and event. An event that is not listed changes nothing."""


MAX_SENDS: Final = 32
MAX_LAST_WAIT: Final = 1 << 16
"""Bounds of a schedule, far above any use: the interval between two sends doubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Retransmission times of a request, and how long its response is awaited."""

    rto: float = 0.5
    """Initial retransmission timeout, seconds; less than 0.5 s deviates from RFC 8445, section 14.3."""
    sends: int = 7
    """Rc: the number of times that the request is sent."""
    last_wait: int = 16
    """Rm: the wait after the last send, in units of the *initial* RTO."""

    def __post_init__(self) -> None:
        duration("the rto of a schedule", self.rto, above_zero=True)
        number("the sends of a schedule", self.sends, 1, MAX_SENDS)
        number("the last_wait of a schedule", self.last_wait, 1, MAX_LAST_WAIT)
        duration("the whole time of a schedule", self.rto * ((1 << self.sends - 1) - 1 + self.last_wait))

    @property
    def first_wait(self) -> int:
        """The RTO in nanoseconds."""
        return round(self.rto * SECOND)

    def wait(self, sends: int) -> int:
        """Return the wait after a send, in nanoseconds; the first send has number 1."""
        return self.first_wait * self.last_wait if sends >= self.sends else self.first_wait << sends - 1

    @property
    def total(self) -> int:
        """Nanoseconds from the first send to the failure."""
        return self.first_wait * ((1 << self.sends - 1) - 1 + self.last_wait)


UNRELIABLE: Final = Schedule()
"""For UDP and DTLS."""
RELIABLE: Final = Schedule(rto=39.5, sends=1, last_wait=1)
"""For TCP and TLS: sent once, Ti = 39.5 s (section 6.2.2)."""
ONCE: Final = Schedule(rto=30.0, sends=1, last_wait=1)
"""For consent checks, which are sent once; a response counts for 30 s (RFC 7675, section 5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Generic[ContextT]):
    """A transaction ended. `why()` and the trace show `reason`."""

    transaction_id: bytes
    state: State
    reason: str
    sends: int
    rtt: int | None = None
    """Nanoseconds from the request to its response, if it is certain which send was answered."""
    context: ContextT


class ClientTransaction(Generic[ContextT]):
    """One request and its response. `Ended` returns `context` to the owner.

    Requests are appended to `outbox`; without one they wait in `outputs`.
    """

    __slots__ = (
        "_due", "_events", "_outbox", "_outputs", "_request", "_schedule", "context", "errno", "rtt", "sends",
        "started", "state", "transaction_id",
    )  # fmt: skip

    def __init__(
        self,
        *,
        transaction_id: bytes,
        request: Send,
        context: ContextT,
        schedule: Schedule = UNRELIABLE,
        outbox: Outbox | None = None,
    ) -> None:
        self.transaction_id = transaction_id
        self.context = context
        self.state = State.IDLE
        self.sends = 0
        self.started = Instant(0)
        self.rtt: int | None = None
        self.errno: int | None = None
        """The error of the last send that the system refused."""
        self._request = request
        self._schedule = schedule
        self._due: Instant | None = None
        self._outputs: Queue[Send] = Queue()
        self._outbox: Outbox = self._outputs if outbox is None else outbox
        self._events: Queue[Ended[ContextT]] = Queue()

    @property
    def flow(self) -> Flow:
        return self._request.flow

    @property
    def remote(self) -> Address:
        """Destination of the request and source of its response."""
        return self._request.remote

    @property
    def summary(self) -> str:
        """State and number of sends, for people."""
        return f"{self.state.value} after {_times(self.sends)}"

    def start(self, *, now: Instant) -> None:
        """Send the request for the first time."""
        if self.state is not State.IDLE:
            raise UsageError(f"transaction {self.transaction_id.hex()} has been started")
        self.state = TRANSITIONS[self.state][_Event.START]
        self.started = now
        self._send(now=now)

    def answer(self, *, now: Instant, answered_send: int = 0) -> None:
        """End the transaction: a verified response arrived. A second response changes nothing.

        The round-trip time is measured if the request was sent once (Karn's rule), or if the response names the first
        send (`answered_send` = 1, from TRANSACTION-TRANSMIT-COUNTER, RFC 7982).
        """
        if self.sends == 1 or answered_send == 1:
            self.rtt = now - self.started
        self._end(_Event.ANSWER, f"{self.remote} answered after {_times(self.sends)}")

    def unreachable(self, why: str) -> None:
        """Fail the transaction: a hard ICMP error arrived, or the flow closed (section 6.2.1)."""
        self._end(_Event.UNREACHABLE, f"{self.remote} is unreachable: {why}")

    def refused(self, errno: int) -> None:
        """Count a send that the system refused as lost; the timeout's reason names the error."""
        self.errno = errno

    def cancel(self) -> None:
        """Stop resending; a response to an earlier send still counts."""
        if self.state is State.SENT:
            self.state = TRANSITIONS[self.state][_Event.CANCEL]
            self._due = Instant(self.started + self._schedule.total)

    def tick(self, *, now: Instant) -> None:
        if self._due is None or now < self._due:
            return
        if self.state is State.SENT and self.sends < self._schedule.sends:
            self._send(now=now)
        else:
            refused = f" (the system refused with errno {self.errno})" if self.errno is not None else ""
            self._end(_Event.TIMEOUT, f"{self.remote} did not answer {_times(self.sends)}{refused}")

    def next_timer(self) -> Instant | None:
        return self._due

    def outputs(self) -> list[Send]:
        """Return and remove the requests to send; empty with an outbox."""
        return self._outputs.drain()

    def events(self) -> list[Ended[ContextT]]:
        return self._events.drain()

    def _send(self, *, now: Instant) -> None:
        self.sends += 1
        self._due = Instant(now + self._schedule.wait(self.sends))
        request = self._request
        self._outbox.append(Send(request.flow, request.remote, request.data, request.ip))

    def _end(self, event: _Event, reason: str) -> None:
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            return
        self.state = state
        self._due = None
        self._events.append(
            Ended(
                transaction_id=self.transaction_id,
                state=state,
                reason=reason,
                sends=self.sends,
                rtt=self.rtt,
                context=self.context,
            )
        )


class Transactions(Generic[ContextT]):
    """The transactions of one owner, by id.

    Only endings that the owner did not cause become events: a timeout, a hard error, a closed flow. A canceled
    transaction without a response ends silently. Requests are appended to `outbox`; without one they wait in `outputs`.
    """

    __slots__ = ("_counters", "_events", "_next", "_outbox", "_outputs", "_trace", "by_id")

    def __init__(self, trace: Tracer = NO_TRACE, *, outbox: Outbox | None = None) -> None:
        self.by_id: Table[bytes, ClientTransaction[ContextT]] = Table()
        """Read-only for the owner, to find the transaction of a response."""
        self._next: Instant | None = None
        """When the first of them is due."""
        self._outputs: Queue[Send] | None = None
        if outbox is None:
            outbox = self._outputs = Queue()
        self._outbox = outbox
        self._events: Queue[Ended[ContextT]] = Queue()
        self._counters: Counters = NO_COUNTS
        self._trace = trace

    def start(
        self,
        transaction_id: bytes,
        request: bytes,
        flow: Flow,
        remote: Address,
        *,
        now: Instant,
        context: ContextT,
        schedule: Schedule = UNRELIABLE,
        ip: IpFields | None = None,
    ) -> ClientTransaction[ContextT]:
        """Send an encoded request now, and resend it by the schedule until it is answered."""
        if transaction_id in self.by_id:
            raise UsageError(f"transaction {transaction_id.hex()} has been started")
        transaction = ClientTransaction(
            transaction_id=transaction_id,
            request=Send(flow, remote, request, ip),
            context=context,
            schedule=schedule,
            outbox=self._outbox,
        )
        self.by_id[transaction_id] = transaction
        transaction.start(now=now)
        self._collect(transaction, now=now, what=f"request to {remote}")
        return transaction

    def match(self, transaction_id: bytes, flow: Flow, remote: Address) -> ClientTransaction[ContextT] | None:
        """Return the transaction of a response that came from `remote` by `flow`, or None.

        The caller verifies the integrity of the response and then calls `answer`. None is counted: drop the response.
        """
        transaction = self.by_id.get(transaction_id)
        if transaction is None or transaction.remote != remote or transaction.flow != flow:
            self._count("unmatched answers")
            return None
        return transaction

    def answer(
        self, transaction: ClientTransaction[ContextT], *, now: Instant, answered_send: int = 0
    ) -> ClientTransaction[ContextT]:
        """End a transaction whose response was verified, without an event, and return it."""
        transaction.answer(now=now, answered_send=answered_send)
        transaction.events()
        self._forget(transaction)
        self._note(transaction, now=now, reason="answered")
        return transaction

    def cancel(self, transaction_id: bytes, *, now: Instant) -> None:
        """Stop resending a request; a response still counts. An ended transaction is not changed."""
        transaction = self.by_id.get(transaction_id)
        if transaction is not None and transaction.state is State.SENT:
            transaction.cancel()
            self._collect(transaction, now=now, what="canceled")

    def drop(self, transaction_id: bytes) -> None:
        """Remove a transaction without an event."""
        transaction = self.by_id.get(transaction_id)
        if transaction is not None:
            self._forget(transaction)

    def clear(self) -> None:
        """Remove all transactions, with requests and events that wait here."""
        self.by_id.clear()
        self._next = None
        if self._outputs is not None:
            self._outputs.clear()
        self._events.clear()

    def receive(self, input: IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        """End the transactions with a remote on a hard ICMP error, and those of a flow that closed.

        A refused send or a soft error counts as a lost packet; the schedule continues.
        """
        if isinstance(input, IcmpError) and not input.kind.hard:
            self._count(f"icmp: {input.kind.value}")
            return
        for transaction in list(self.by_id.values()):
            if transaction.flow != input.flow:
                continue
            if isinstance(input, Closed):
                transaction.unreachable(input.reason)
            elif transaction.remote != input.remote:
                continue
            elif isinstance(input, SendFailed):
                transaction.refused(input.errno)
                continue
            else:
                transaction.unreachable(input.kind.value)
            self._collect(transaction, now=now)

    def tick(self, *, now: Instant) -> None:
        """Resend requests that are due and end transactions that timed out."""
        first = self.next_timer()
        if first is None or now < first:
            return
        due = [(at, each) for each in self.by_id.values() if (at := each.next_timer()) is not None and at <= now]
        for _, transaction in sorted(due, key=_when):
            transaction.tick(now=now)
            self._collect(transaction, now=now, what=f"send {transaction.sends}")

    def next_timer(self) -> Instant | None:
        return self._next

    def outputs(self) -> list[Send]:
        """Return and remove the requests to send; empty with an outbox."""
        return [] if self._outputs is None else self._outputs.drain()

    def events(self) -> list[Ended[ContextT]]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        return self._counters

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self.by_id

    def __len__(self) -> int:
        return len(self.by_id)

    def _collect(self, transaction: ClientTransaction[ContextT], *, now: Instant, what: str = "") -> None:
        if transaction.next_timer() is None:
            self._forget(transaction)
        else:
            self._find_next()
        for event in transaction.events():
            what = event.reason
            if event.state is State.FAILED:
                self._events.append(event)
        self._note(transaction, now=now, reason=what)

    def _forget(self, transaction: ClientTransaction[ContextT]) -> None:
        self.by_id.pop(transaction.transaction_id, None)
        self._find_next()

    def _find_next(self) -> None:
        self._next = earliest(*[transaction.next_timer() for transaction in self.by_id.values()])

    def _note(self, transaction: ClientTransaction[Any], *, now: Instant, reason: str) -> None:
        self._trace.transaction(
            reason,
            now=now,
            transaction=transaction.transaction_id.hex,
            state=transaction.state,
            remote=transaction.remote,
            sends=transaction.sends,
        )

    def _count(self, what: str) -> None:
        self._counters = count(self._counters, what)


def _when(due: tuple[Instant, ClientTransaction[Any]]) -> Instant:
    return due[0]


def _times(sends: int) -> str:
    return "1 send" if sends == 1 else f"{sends} sends"
