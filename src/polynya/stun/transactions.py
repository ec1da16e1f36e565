"""STUN client transactions (RFC 8489, sections 6.2.1 to 6.3.4).

Over UDP the request is sent, then resent with a doubling interval until an answer or a hard error comes, or until the
last wait runs out. With RTO = 500 ms, Rc = 7 and Rm = 16 the sends go out at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s,
and the transaction fails at 39.5 s. Over a stream it is sent once and fails after Ti = 39.5 s.

    state    | start  | timer, sends left | timer, none left | answer   | unreachable | cancel
    ---------+--------+-------------------+------------------+----------+-------------+--------
    IDLE     | SENT   |                   |                  |          |             |
    SENT     |        | SENT              | FAILED           | ANSWERED | FAILED      | QUIET
    QUIET    |        |                   | FORGOTTEN        | ANSWERED | FORGOTTEN   |
    ANSWERED |        |                   |                  |          |             |
    FAILED   |        |                   |                  |          |             |
    FORGOTTEN|        |                   |                  |          |             |

QUIET is a cancelled request (RFC 8445, section 7.3.1.4): it is not sent again and its silence fails nothing, but an
answer within the time it would have had still counts.

Whether an answer is genuine (transaction id, source, integrity) is the owner's to check before `answer` is called: what
fails that check must not end the transaction (section 6.3.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.empty import NOTHING
from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant, earliest
from polynya.core.machine import Closed, Counters, IcmpError, IpFields, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

ContextT = TypeVar("ContextT")


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
"""What an event does in a state. One that is not listed changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a request is sent again, and for how long an answer is awaited."""

    rto: int = 500 * MILLISECOND
    """Initial retransmission timeout, nanoseconds; not below 500 ms unless the deviation is chosen."""
    sends: int = 7
    """Rc: how often the request is sent in all."""
    last_wait: int = 16
    """Rm: the wait after the last send, in units of the *initial* RTO."""

    def __post_init__(self) -> None:
        if self.rto <= 0 or self.sends < 1 or self.last_wait < 1:
            raise ValueError(f"a schedule has a positive rto, sends and last_wait: {self}")

    def wait(self, sends: int) -> int:
        """How long to wait after the send of this number, the first being 1. Nanoseconds."""
        return self.rto * self.last_wait if sends >= self.sends else self.rto << sends - 1

    @property
    def total(self) -> int:
        """From the first send to failure, nanoseconds."""
        return self.rto * ((1 << self.sends - 1) - 1 + self.last_wait)


UNRELIABLE: Final = Schedule()
"""UDP and DTLS."""
RELIABLE: Final = Schedule(rto=39_500 * MILLISECOND, sends=1, last_wait=1)
"""TCP and TLS: sent once, Ti = 39.5 s (section 6.2.2)."""
ONCE: Final = Schedule(rto=30 * SECOND, sends=1, last_wait=1)
"""Sent once and never again, as consent checks are; an answer counts for 30 s (RFC 7675, section 5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Generic[ContextT]):
    """A transaction is over. `reason` is for people: it is shown by `why()` and kept in the trace."""

    transaction_id: bytes
    state: State
    reason: str
    sends: int
    rtt: int | None = None
    """Nanoseconds from the request to its answer, when it is certain which send was answered."""
    context: ContextT


class ClientTransaction(Generic[ContextT]):
    """One request and its answer. `context` is whatever the owner wants back with the end."""

    __slots__ = (
        "_due", "_events", "_outputs", "_request", "_schedule", "context", "errno", "rtt", "sends", "started", "state",
        "transaction_id",
    )  # fmt: skip

    def __init__(
        self, *, transaction_id: bytes, request: Send, context: ContextT, schedule: Schedule = UNRELIABLE
    ) -> None:  # fmt: skip
        self.transaction_id = transaction_id
        self.context = context
        self.state = State.IDLE
        self.sends = 0
        self.started = Instant(0)
        self.rtt: int | None = None
        self.errno: int | None = None
        """Of the last send that the system refused."""
        self._request = request
        self._schedule = schedule
        self._due: Instant | None = None
        self._outputs: list[Send] = []
        self._events: list[Ended[ContextT]] = []

    @property
    def flow(self) -> Flow:
        return self._request.flow

    @property
    def remote(self) -> Address:
        """Where the request goes and its answer must come from."""
        return self._request.remote

    @property
    def summary(self) -> str:
        """For people: how it stands."""
        return f"{self.state.value} after {_times(self.sends)}"

    def start(self, *, now: Instant) -> None:
        """Send the request for the first time."""
        if self.state is not State.IDLE:
            raise UsageError(f"transaction {self.transaction_id.hex()} has been started")
        self.state = TRANSITIONS[self.state][_Event.START]
        self.started = now
        self._send(now=now)

    def answer(self, *, now: Instant, answered_send: int = 0) -> None:
        """A genuine answer arrived. A second one, to a retransmission, changes nothing.

        The round-trip time is taken when the request was sent once (Karn's rule), or when the answer says that it is
        to the first send (`answered_send` = 1, from TRANSACTION-TRANSMIT-COUNTER, RFC 7982).
        """
        if self.sends == 1 or answered_send == 1:
            self.rtt = now - self.started
        self._end(_Event.ANSWER, f"{self.remote} answered after {_times(self.sends)}")

    def unreachable(self, why: str) -> None:
        """A hard ICMP error came back, or the flow is gone: no answer will come (section 6.2.1)."""
        self._end(_Event.UNREACHABLE, f"{self.remote} is unreachable: {why}")

    def refused(self, errno: int) -> None:
        """The system refused a send. It counts as a lost packet, and is named if nothing else comes."""
        self.errno = errno

    def cancel(self) -> None:
        """Send no more; an answer to what was sent still counts."""
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
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[Ended[ContextT]]:
        drained, self._events = self._events, []
        return drained

    def _send(self, *, now: Instant) -> None:
        self.sends += 1
        self._due = Instant(now + self._schedule.wait(self.sends))
        request = self._request
        self._outputs.append(Send(request.flow, request.remote, request.data, request.ip))

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
    """The transactions of one owner, by id. Pull: `tick`, then `outputs` and `events`.

    Only endings that the owner did not cause become events: a timeout, a hard error, a flow that closed. A cancelled
    transaction that nobody answered is dropped silently.
    """

    __slots__ = ("_counters", "_events", "_next", "_outputs", "_trace", "by_id")

    def __init__(self, trace: Tracer = NO_TRACE) -> None:
        self.by_id: dict[bytes, ClientTransaction[ContextT]] = {}
        """Read it, to find the owner of an answer; change it by the methods only."""
        self._next: Instant | None = None
        """When the first of them is due."""
        self._outputs: tuple[Send, ...] = ()
        self._events: tuple[Ended[ContextT], ...] = ()
        self._counters: Counters = NOTHING
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
        """Send `request` (encoded, with this id) now, and again by the schedule until it is answered."""
        if transaction_id in self.by_id:
            raise UsageError(f"transaction {transaction_id.hex()} has been started")
        transaction = ClientTransaction(
            transaction_id=transaction_id, request=Send(flow, remote, request, ip), context=context, schedule=schedule
        )
        self.by_id[transaction_id] = transaction
        transaction.start(now=now)
        self._drain(transaction, now=now, what=f"request to {remote}")
        return transaction

    def match(self, transaction_id: bytes, flow: Flow, remote: Address) -> ClientTransaction[ContextT] | None:
        """The transaction that an answer from `remote` by `flow` is for, or None: then it is to be dropped.

        Its integrity is still to be verified; then `answer` ends the transaction.
        """
        transaction = self.by_id.get(transaction_id)
        if transaction is None or transaction.remote != remote or transaction.flow != flow:
            self._count("unmatched answers")
            return None
        return transaction

    def answer(
        self, transaction: ClientTransaction[ContextT], *, now: Instant, answered_send: int = 0
    ) -> ClientTransaction[ContextT]:
        """A genuine answer arrived: the transaction is over and has its `rtt`. No event: the caller knows."""
        transaction.answer(now=now, answered_send=answered_send)
        transaction.events()
        self._forget(transaction)
        self._note(transaction, now=now, reason="answered")
        return transaction

    def cancel(self, transaction_id: bytes, *, now: Instant) -> None:
        """Send it no more, but take an answer that still comes. Nothing happens when it is over."""
        transaction = self.by_id.get(transaction_id)
        if transaction is not None and transaction.state is State.SENT:
            transaction.cancel()
            self._drain(transaction, now=now, what="cancelled")

    def drop(self, transaction_id: bytes) -> None:
        """Forget it at once, without an event."""
        transaction = self.by_id.get(transaction_id)
        if transaction is not None:
            self._forget(transaction)

    def clear(self) -> None:
        """Forget all."""
        self.by_id.clear()
        self._next = None
        self._outputs, self._events = (), ()

    def receive(self, input: IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        """A hard ICMP error ends every transaction with that remote, a closed flow every one of its own.

        A refused send or a soft error counts as a lost packet: the schedule goes on.
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
            self._drain(transaction, now=now)

    def tick(self, *, now: Instant) -> None:
        """Send again what is due, and end what was waited for long enough."""
        first = self.next_timer()
        if first is None or now < first:
            return
        due = [(at, each) for each in self.by_id.values() if (at := each.next_timer()) is not None and at <= now]
        for _, transaction in sorted(due, key=_when):
            transaction.tick(now=now)
            self._drain(transaction, now=now, what=f"send {transaction.sends}")

    def next_timer(self) -> Instant | None:
        return self._next

    def outputs(self) -> list[Send]:
        drained, self._outputs = self._outputs, ()
        return list(drained)

    def events(self) -> list[Ended[ContextT]]:
        drained, self._events = self._events, ()
        return list(drained)

    @property
    def counters(self) -> Counters:
        return self._counters

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self.by_id

    def __len__(self) -> int:
        return len(self.by_id)

    def _drain(self, transaction: ClientTransaction[ContextT], *, now: Instant, what: str = "") -> None:
        self._outputs += tuple(transaction.outputs())
        ended = transaction.events()
        due = transaction.next_timer()
        if due is None:
            self._forget(transaction)
        else:
            self._find_next()
        for event in ended:
            what = event.reason
            if event.state is State.FAILED:
                self._events += (event,)
        self._note(transaction, now=now, reason=what)

    def _forget(self, transaction: ClientTransaction[ContextT]) -> None:
        self.by_id.pop(transaction.transaction_id, None)
        if not self.by_id:
            self.by_id.clear()  # a dict that was emptied entry by entry keeps its table
        self._find_next()

    def _find_next(self) -> None:
        self._next = earliest(*[transaction.next_timer() for transaction in self.by_id.values()])

    def _note(self, transaction: ClientTransaction[Any], *, now: Instant, reason: str) -> None:
        if self._trace.enabled:
            self._trace.transaction(
                reason,
                now=now,
                transaction=transaction.transaction_id.hex(),
                state=transaction.state.value,
                remote=str(transaction.remote),
                sends=transaction.sends,
            )

    def _count(self, what: str) -> None:
        self._counters = {**self._counters, what: self._counters.get(what, 0) + 1}


def _when(due: tuple[Instant, ClientTransaction[Any]]) -> Instant:
    return due[0]


def _times(sends: int) -> str:
    return "1 send" if sends == 1 else f"{sends} sends"
