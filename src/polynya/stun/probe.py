"""Binding probe: asks one STUN server, by one flow, for its mapped address (RFC 8489; RFC 8445, section 5.1.1.2).

    state   | start          | success     | 300, hops left         | error, timeout, hard ICMP
    --------+----------------+-------------+------------------------+--------------------------
    IDLE    | ASKING         |             |                        |
    ASKING  |                | ENDED       | ASKING, another server | ENDED
    ENDED   |                |             |                        |

A server that is overloaded or draining redirects the client. The probe follows at most three redirections, never twice
to one server and never to another address family. A response of RFC 3489 has MAPPED-ADDRESS only; it counts, although a
NAT may have rewritten the address in the payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow
from polynya.core.machine import Closed, Counters, Datagram, IcmpError, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import ALTERNATE_SERVER, ERROR_CODE, MAPPED_ADDRESS, XOR_MAPPED_ADDRESS
from .message import Message, Received, decode
from .registry import TRANSACTION_ID_LENGTH, Class, ErrorCode, Method
from .reported import first_possible, why_impossible
from .transactions import UNRELIABLE, ClientTransaction, Ended, Outbox, Schedule, Transactions

if TYPE_CHECKING:
    import random as random_module

    from polynya.core.instants import Instant

MAX_HOPS: Final = 3
"""Limit of redirections by ALTERNATE-SERVER."""


class State(Enum):
    IDLE = "idle"
    ASKING = "asking"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEnded:
    """A probe ended. `mapped` is the flow's address as seen by the server, or None; `reason` explains either."""

    flow: Flow
    server: Address
    """The server that answered last; after a redirection (300) it is not the first one."""
    mapped: Address | None
    reason: str
    rtt: int | None
    """Nanoseconds, if one request got one response."""


class BindingProbe:
    """Machine of one Binding request to one server, and its response.

    Requests are appended to `outbox`; without one they wait in `outputs`.
    """

    __slots__ = ("_asked", "_counters", "_events", "_flow", "_random", "_schedule", "_server", "_transactions", "state")

    def __init__(
        self,
        *,
        flow: Flow,
        server: Address,
        random: random_module.Random,
        schedule: Schedule = UNRELIABLE,
        trace: Tracer = NO_TRACE,
        outbox: Outbox | None = None,
    ) -> None:
        """`schedule` is `transactions.RELIABLE` if the flow is a stream, which is connected to `server`."""
        self.state = State.IDLE
        self._flow = flow
        self._server = server
        self._random = random
        self._schedule = schedule
        self._asked: list[Address] = []
        self._transactions: Transactions[None] = Transactions(trace, outbox=outbox)
        self._events: Queue[ProbeEnded] = Queue()
        self._counters: dict[str, int] = {}

    @property
    def server(self) -> Address:
        """The server that is asked now."""
        return self._server

    def start(self, *, now: Instant) -> None:
        """Send the request. A second call changes nothing."""
        if self.state is State.IDLE:
            self.state = State.ASKING
            self._ask(self._server, now=now)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction with the same server; the earlier ones continue, and the first response counts."""
        if self.state is State.ASKING:
            self._request(self._server, now=now)

    def owns_transaction(self, transaction_id: bytes) -> bool:
        """Whether a response with this id is for this probe."""
        return transaction_id in self._transactions

    def receive(self, input: Datagram | Received | IcmpError | SendFailed | Closed, *, now: Instant) -> None:
        """Handle a response or an error; a packet that is not for this probe is dropped and counted."""
        if self.state is not State.ASKING:
            return
        if isinstance(input, Received):
            self._answered(input.message, input.flow, input.remote, now=now)
        elif isinstance(input, Datagram):
            try:
                message = decode(input.data)
            except DecodeError:
                self._count("not STUN")
                return
            self._answered(message, input.flow, input.remote, now=now)
        else:
            self._transactions.receive(input, now=now)
            self._end_if_failed()

    def tick(self, *, now: Instant) -> None:
        self._transactions.tick(now=now)
        self._end_if_failed()

    def next_timer(self) -> Instant | None:
        return self._transactions.next_timer()

    def outputs(self) -> list[Send]:
        """Return and remove the requests to send; empty with an outbox."""
        return self._transactions.outputs()

    def events(self) -> list[ProbeEnded]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        return {**self._transactions.counters, **self._counters}

    def _ask(self, server: Address, *, now: Instant) -> None:
        self._server = server
        self._asked.append(server)
        self._transactions.clear()
        self._request(server, now=now)

    def _request(self, server: Address, *, now: Instant) -> None:
        transaction_id = self._random.randbytes(TRANSACTION_ID_LENGTH)
        request = Message.request(Method.BINDING, transaction_id).encode(fingerprint=True)
        self._transactions.start(
            transaction_id, request, self._flow, server, now=now, context=None, schedule=self._schedule
        )  # fmt: skip

    def _answered(self, message: Message, flow: Flow, remote: Address, *, now: Instant) -> None:
        transaction = self._transactions.match(message.transaction_id, flow, remote)
        if transaction is None:
            return
        if message.method != Method.BINDING or message.cls not in (Class.SUCCESS, Class.ERROR):
            self._count("not a Binding response")
            return
        self._transactions.answer(transaction, now=now)
        if message.unknown_required:
            numbers = ", ".join(f"{number:#06x}" for number in message.unknown_required)
            self._end(
                None, f"{remote} answered with unknown attributes that must be understood: {numbers}", transaction
            )
        elif message.cls is Class.SUCCESS:
            self._succeeded(message, transaction)
        else:
            self._refused(message, transaction, now=now)

    def _succeeded(self, message: Message, transaction: ClientTransaction[None]) -> None:
        masked, plain = message.get(XOR_MAPPED_ADDRESS), message.get(MAPPED_ADDRESS)
        mapped, impossible = first_possible((masked, plain), by=self._server, mapped=True)
        if impossible:
            self._count("impossible mapped addresses")
        if mapped is None:
            reason = (
                f"the mapped address is impossible: {impossible}"
                if impossible
                else "the response has no mapped address"
            )
        elif impossible:
            reason = f"{transaction.summary}, with an impossible mapped address besides: {impossible}"
        else:
            reason = transaction.summary if masked else f"{transaction.summary}, with MAPPED-ADDRESS only"
        self._end(mapped, reason, transaction)

    def _refused(self, message: Message, transaction: ClientTransaction[None], *, now: Instant) -> None:
        error = message.get(ERROR_CODE)
        if error is None:
            self._end(None, f"{self._server} refused without an error code", transaction)
        elif error.code == ErrorCode.TRY_ALTERNATE:
            self._try_alternate(message.get(ALTERNATE_SERVER) or (), transaction, now=now)
        else:
            self._end(None, f"{self._server} refused: {error}", transaction)

    def _try_alternate(
        self, servers: tuple[Address, ...], transaction: ClientTransaction[None], *, now: Instant
    ) -> None:
        """Follow a redirection (RFC 8489, section 10), which a stream cannot."""
        impossible = [why for server in servers if (why := why_impossible(server, by=self._server))]
        usable = [server for server in servers if not why_impossible(server, by=self._server)]
        usable = [server for server in usable if server.family == self._server.family]
        fresh = [server for server in usable if server not in self._asked]
        if self._schedule.sends == 1:
            self._end(None, f"{self._server} redirects to another server, which needs another stream", transaction)
        elif len(self._asked) > MAX_HOPS:
            self._end(
                None, f"{self._server} redirects to another server, after {MAX_HOPS} other redirections", transaction
            )
        elif not fresh:
            what = "a server that was asked before" if usable else "no server of this address family"
            if impossible and not usable:
                what = f"an impossible one: {'; '.join(impossible)}"
            self._end(None, f"{self._server} redirects and names {what}", transaction)
        else:
            self._ask(fresh[0], now=now)

    def _end_if_failed(self) -> None:
        for ended in self._transactions.events():
            if not self._transactions.by_id and self.state is State.ASKING:
                self._end(None, ended.reason, ended)

    def _end(self, mapped: Address | None, reason: str, by: ClientTransaction[None] | Ended[None]) -> None:
        self.state = State.ENDED
        self._transactions.clear()
        self._events.append(
            ProbeEnded(flow=self._flow, server=self._server, mapped=mapped, reason=reason, rtt=by.rtt)
        )  # fmt: skip

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1
