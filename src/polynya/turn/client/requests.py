"""Requests of a TURN client: signs and paces them, repeats them after a challenge, and verifies their responses.

    asked --> (slot of the pacer) --> sent --> success, refusal         an Answer
                                       |  ^
                       401, 438, 441   |  |  signed with the new realm, nonce or credentials, at most MAX_TRIES times
                                       v  |
                                    waiting for credentials            CredentialsNeeded, until they are set

A response without matching integrity is ignored (RFC 8489, section 9.2.5): over UDP the request is resent by its
schedule. Over a stream no other response can follow, so the request fails. The failure's reason quotes the response.
"""

from __future__ import annotations

import random as random_module
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow
from polynya.core.instants import Instant, earliest
from polynya.core.machine import Closed, Counters, IcmpError, Send, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.attributes import ERROR_CODE, Attribute, StunError
from polynya.stun.message import Message
from polynya.stun.registry import TRANSACTION_ID_LENGTH, Class, ErrorCode, Method
from polynya.stun.transactions import RELIABLE, UNRELIABLE, ClientTransaction, Outbox, Schedule, Transactions

from .credentials import Authentication, Credentials, Signature, Verdict
from .events import CredentialsNeeded, ServerAddress
from .explain import refusal

MAX_TRIES: Final = 6
"""Transactions of one request in all: the first, a challenge, a new realm, and nonces that go stale meanwhile."""


@dataclass(slots=True)
class Ask:
    """One request to the server; each challenge makes another transaction of it."""

    method: Method
    attributes: dict[Attribute[Any], Any]
    subject: Any = None
    """The part's own key of the request: hosts, or a channel number."""
    tries: int = 0
    signature: Signature | None = None
    note: str = ""
    """Content of a response that failed verification."""
    last: bool = False
    """The client's last request. It bypasses the pacer, because the client may be closed before its slot."""


@dataclass(slots=True)
class Answer:
    """The result of an `Ask`: a success response, a refusal with its code, or a timeout without both."""

    ask: Ask
    message: Message | None
    code: int | None
    reason: str
    sent_at: Instant
    """Start of the answered transaction: lifetimes that the server grants begin no earlier."""

    @property
    def ok(self) -> bool:
        return self.message is not None and self.code is None


class Requests:
    """The requests of one client, to one server by one flow at a time."""

    def __init__(
        self,
        credentials: Credentials | None,
        *,
        random: random_module.Random,
        schedule: Schedule = UNRELIABLE,
        pacer: Pacer | None = None,
        trace: Tracer = NO_TRACE,
        outbox: Outbox | None = None,
    ) -> None:
        self._authentication = Authentication(credentials)
        self._random = random
        self._udp_schedule = schedule
        self._schedule = schedule
        self._pacer = pacer
        self._transactions: Transactions[Ask] = Transactions(trace, outbox=outbox)
        self._flow = Flow(0)
        self._server: ServerAddress | None = None
        self._paced: deque[tuple[Instant, Ask]] = deque()
        self._parked: list[Ask] = []
        self.heard = False
        """Whether the server in use has answered any request."""
        self.rtt: int | None = None
        """The shortest round trip to the server in use, nanoseconds."""
        self._counters: Counter[str] = Counter()
        self._events: Queue[Answer | CredentialsNeeded] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def aim(self, flow: Flow, server: ServerAddress) -> None:
        """Send to this server by this flow from now on; pending requests are dropped."""
        self.clear()
        if self._server is None or server.address != self._server.address:
            self._authentication.forget()
        self._flow, self._server = flow, server
        self.heard, self.rtt = False, None
        self._schedule = RELIABLE if server.transport.reliable else self._udp_schedule

    def ask(self, ask: Ask, *, now: Instant) -> None:
        """Send the request in the pacer's next slot."""
        if ask.last:
            self._send(ask, now=now)
            return
        slot = self._pacer.reserve(now=now) if self._pacer is not None else now
        self._paced.append((slot, ask))
        self._send_due(now=now)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction for each pending request if the server is silent; the first response counts."""
        if not self.heard and self._schedule is not RELIABLE:
            pending = {id(each.context): each.context for each in self._transactions.by_id.values()}
            for ask in pending.values():
                ask.tries -= 1  # it replaces a try that may be lost
                self.ask(ask, now=now)

    def set_credentials(self, credentials: Credentials, *, now: Instant) -> None:
        """Sign with these credentials and send the requests that wait for some, also if they are the same as before."""
        if credentials != self._authentication.credentials:
            self._authentication.set_credentials(credentials)
        parked, self._parked = self._parked, []
        for ask in parked:
            ask.tries = 1
            self.ask(ask, now=now)

    def clear(self) -> None:
        """Drop all pending requests."""
        self._transactions.clear()
        self._paced.clear()
        self._parked.clear()

    @property
    def credentials(self) -> Credentials | None:
        return self._authentication.credentials

    @property
    def waiting(self) -> bool:
        """Whether a request waits for credentials."""
        return bool(self._parked)

    @property
    def signed_under_way(self) -> bool:
        """Whether a signed request is unanswered."""
        return any(transaction.context.signature for transaction in self._transactions.by_id.values())

    def owns_transaction(self, transaction_id: bytes) -> bool:
        return transaction_id in self._transactions

    # -------------------------------------------------------------------------------------------------------- machine

    def receive(self, message: Message, flow: Flow, remote: Address, *, now: Instant) -> None:
        """Handle a response; one that matches no request is dropped and counted."""
        transaction = self._transactions.match(message.transaction_id, flow, remote)
        if transaction is None:
            return
        self.heard = True
        ask = transaction.context
        if message.method != ask.method:
            self._counters["responses to another method"] += 1
            return
        error = message.get(ERROR_CODE) if message.cls is Class.ERROR else None
        if error is not None and error.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.STALE_NONCE):
            self._challenged(transaction, message, error, now=now)
        elif ask.signature is not None and not ask.signature.verifies(message):
            self._unverified(transaction, error, now=now)
        elif (
            error is not None
            and error.code == ErrorCode.WRONG_CREDENTIALS
            and ask.tries < MAX_TRIES
            and self._authentication.revert(ask.signature)
        ):
            self._answered(transaction, now=now)
            self.ask(ask, now=now)
        else:
            self._answered(transaction, now=now)
            self._end(transaction, message, error)

    def failed(self, input: IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        """Handle a refused send, an ICMP error or a closed flow."""
        self._transactions.receive(input, now=now)
        self._collect()

    def tick(self, *, now: Instant) -> None:
        self._send_due(now=now)
        self._transactions.tick(now=now)
        self._collect()

    def next_timer(self) -> Instant | None:
        due = self._transactions.next_timer()
        slot = self._slot()
        return earliest(due, slot)

    def outputs(self) -> list[Send]:
        """Return and remove the requests to send; empty with an outbox."""
        return self._transactions.outputs()

    def events(self) -> list[Answer | CredentialsNeeded]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        return {**self._transactions.counters, **self._counters}

    # --------------------------------------------------------------------------------------------------------- inside

    def _slot(self) -> Instant | None:
        """Return when the next request may be sent: in its slot, or later if an earlier slot was used late."""
        if not self._paced:
            return None
        slot = self._paced[0][0]
        return slot if self._pacer is None else max(slot, self._pacer.free_at)

    def _send_due(self, *, now: Instant) -> None:
        while (slot := self._slot()) is not None and slot <= now:
            if self._pacer is not None:
                self._pacer.used(now=now)
            self._send(self._paced.popleft()[1], now=now)

    def _answered(self, transaction: ClientTransaction[Ask], *, now: Instant) -> None:
        """End a transaction that was answered, and the others of its request."""
        self._transactions.answer(transaction, now=now)
        for other in self._of(transaction.context):
            self._transactions.drop(other.transaction_id)
        if transaction.rtt is not None:
            self.rtt = transaction.rtt if self.rtt is None else min(self.rtt, transaction.rtt)

    def _of(self, ask: Ask) -> list[ClientTransaction[Ask]]:
        return [each for each in self._transactions.by_id.values() if each.context is ask]

    def _send(self, ask: Ask, *, now: Instant) -> None:
        assert self._server is not None, "call `aim` first"
        transaction_id = self._random.randbytes(TRANSACTION_ID_LENGTH)
        message = Message.request(ask.method, transaction_id, ask.attributes)
        data, ask.signature = self._authentication.sign(message)
        ask.tries += 1
        self._transactions.start(
            transaction_id, data, self._flow, self._server.address, now=now, context=ask, schedule=self._schedule
        )

    def _challenged(
        self, transaction: ClientTransaction[Ask], message: Message, error: StunError, *, now: Instant
    ) -> None:  # fmt: skip
        self._answered(transaction, now=now)
        ask = transaction.context
        self._counters[f"challenges {error.code}"] += 1
        verdict = self._authentication.challenged(message, error.code, ask.signature)
        if verdict is Verdict.WAIT:
            if not self._parked:
                reason = f"{self._server}: {self._authentication.reason}"
                self._events.append(CredentialsNeeded(realm=self._authentication.realm or "", reason=reason))
            self._parked.append(ask)
        elif verdict is Verdict.FAIL:
            reason = f"{self._server}: {self._authentication.reason}"
            self._events.append(Answer(ask, None, error.code, reason, transaction.started))
        elif ask.tries >= MAX_TRIES:
            self._end(transaction, message, error)
        else:
            self.ask(ask, now=now)

    def _unverified(self, transaction: ClientTransaction[Ask], error: StunError | None, *, now: Instant) -> None:
        ask = transaction.context
        self._counters["responses without matching integrity"] += 1
        ask.note = f"a response without matching integrity said {error or 'success'}"
        if self._schedule is RELIABLE:
            self._answered(transaction, now=now)
            self._events.append(Answer(ask, None, None, f"{self._server}: {ask.note}", transaction.started))

    def _end(self, transaction: ClientTransaction[Ask], message: Message, error: StunError | None) -> None:
        ask = transaction.context
        if message.cls is Class.ERROR:
            if error is None:
                error = StunError(ErrorCode.BAD_REQUEST, "no reason given")
            answer = Answer(ask, message, error.code, refusal(self._server, ask.method, error), transaction.started)
        elif message.unknown_required:
            numbers = ", ".join(f"{number:#06x}" for number in message.unknown_required)
            reason = f"{self._server} answered with unknown attributes that must be understood: {numbers}"
            answer = Answer(ask, None, None, reason, transaction.started)
        else:
            answer = Answer(ask, message, None, "", transaction.started)
        self._events.append(answer)

    def _collect(self) -> None:
        for ended in self._transactions.events():
            if self._of(ended.context):
                continue  # another transaction of the same request continues
            note = f"; {ended.context.note}" if ended.context.note else ""
            self._events.append(Answer(ended.context, None, None, ended.reason + note, Instant(0)))
