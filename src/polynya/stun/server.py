"""Binding server: answers each Binding request with its source address (RFC 8489, sections 6.3.1 and 12).

It keeps no state and answers Binding requests only. Its responses have neither SOFTWARE nor reason phrases, so that a
forged source gets few more bytes than the attacker sent. Requests without the magic cookie are answered as in RFC 3489,
with MAPPED-ADDRESS, because libnice's discovery sends them. All other messages are dropped and counted.

A listener with an `Origin` serves behavior discovery, too (RFC 5780):

    | the request has         | the response                                                                          |
    |-------------------------|---------------------------------------------------------------------------------------|
    | none of the following   | has MAPPED-ADDRESS beside XOR-MAPPED-ADDRESS, RESPONSE-ORIGIN and OTHER-ADDRESS        |
    | CHANGE-REQUEST          | comes from the requested address and port; 420 if there is no such listener            |
    | RESPONSE-PORT           | goes to that port of the requesting host                                              |
    | PADDING                 | has PADDING of the request's length, limited to one large packet                      |
    | PADDING, RESPONSE-PORT  | is 400: a small packet must not send large ones to another port                       |

A response to one of the last four, and every error, uses the budget of the request's source. Each stream has a framer;
a stream with invalid framing, or with ChannelData, is closed. Behavior discovery works with datagrams only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Counters, Datagram, Input, Opened, Send, StreamData
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOURCE_ADDRESS,
    TRANSACTION_TRANSMIT_COUNTER,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    TransmitCounter,
)
from .budget import Budget, source_of
from .framing import StreamFramer
from .message import Message, Received, decode
from .origins import Origin
from .registry import Class, ErrorCode, Method

MAX_REQUEST = 1500
"""The longest frame on a stream, bytes."""
MAX_STREAMS = 1024
"""Limit of open streams; further ones are closed."""
MAX_UNKNOWN = 16
"""Limit of unknown attributes in a response, to keep it short."""
MAX_PADDING: Final = 1500
"""Bytes of PADDING in a response, which make it two packets on any usual link."""
BUDGET: Final = (100, 200)
"""Responses per second and burst for one source, besides plain ones."""
_DISCOVERY: Final[tuple[Attribute[Any], ...]] = (CHANGE_REQUEST, RESPONSE_PORT, PADDING)
_STATELESS: Final = 0xFF
"""The value of TRANSACTION-TRANSMIT-COUNTER from a server that does not count its responses (RFC 7982)."""


class BindingServer:
    """Machine of a Binding server: datagrams and stream data in, responses out. It has no timers and no events."""

    def __init__(
        self, *, trace: Tracer = NO_TRACE, max_streams: int = MAX_STREAMS, budget: Budget | None = None
    ) -> None:  # fmt: skip
        self.budget = Budget(*BUDGET) if budget is None else budget
        """Limits errors and responses of behavior discovery."""
        self.origins: Mapping[Flow, Origin] = {}
        """The listeners that serve behavior discovery."""
        self._trace = trace
        self._max_streams = max_streams
        self._streams: dict[Flow, tuple[Address, StreamFramer]] = {}
        self._outputs: Queue[Send | Close] = Queue()
        self._counters: dict[str, int] = {}

    def receive(self, input: Input | Received, *, now: Instant) -> None:
        """Handle a request, bytes of a stream, or a stream that was opened or closed."""
        match input:
            case Datagram():
                self._take(input.flow, input.remote, input.data, now=now, packet=input.packet)
            case Received():
                self._answer(input.flow, input.remote, input.message, now=now)
            case StreamData():
                self._take_stream(input.flow, input.data, now=now)
            case Opened() if input.remote is not None:
                self._accept(input.flow, input.remote)
            case Closed():
                self._streams.pop(input.flow, None)
            case _:
                self._count("not for a Binding server")

    def tick(self, *, now: Instant) -> None:
        """There are no timers."""

    def next_timer(self) -> Instant | None:
        return None

    def outputs(self) -> list[Send | Close]:
        return self._outputs.drain()

    def events(self) -> list[object]:
        return []

    @property
    def counters(self) -> Counters:
        """Responses by kind, and dropped packets by reason."""
        return self._counters

    # --------------------------------------------------------------------------------------------------------- streams

    def _accept(self, flow: Flow, remote: Address) -> None:
        if len(self._streams) >= self._max_streams:
            self._count("streams refused")
            self._outputs.append(Close(flow=flow))
        else:
            self._streams[flow] = remote, StreamFramer(channels=False, max_frame=MAX_REQUEST)

    def _take_stream(self, flow: Flow, data: bytes, *, now: Instant) -> None:
        stream = self._streams.get(flow)
        if stream is None:
            self._count("data of a stream that is not open")
            return
        remote, framer = stream
        for frame in framer.feed(data):
            self._take(flow, remote, frame, now=now)
        if framer.error is not None:
            self._drop(remote, f"stream closed: {framer.error}", now=now)
            del self._streams[flow]
            self._outputs.append(Close(flow=flow))

    # -------------------------------------------------------------------------------------------------------- messages

    def _take(self, flow: Flow, remote: Address, data: bytes, *, now: Instant, packet: int = 0) -> None:
        try:
            message = decode(data, legacy=True)
        except DecodeError as error:
            self._drop(remote, str(error), now=now, packet=packet)
            return
        self._answer(flow, remote, message, now=now, packet=packet)

    def _answer(self, flow: Flow, remote: Address, message: Message, *, now: Instant, packet: int = 0) -> None:
        if message.cls is not Class.REQUEST or message.method != Method.BINDING:
            self._drop(remote, f"not a Binding request: {message.method!r} {message.cls.name}", now=now, packet=packet)
            return
        origin = self.origins.get(flow)
        asked = _asked(message) if message.attributes else ()
        unknown = message.unknown_required
        by: Flow | None = flow
        if asked:
            if CHANGE_REQUEST in asked:
                by = origin.elsewhere.get(message[CHANGE_REQUEST]) if origin is not None else None
            refused = asked if origin is None else (CHANGE_REQUEST,) if by is None else ()
            unknown += tuple(each.number for each in refused)
        if (asked or unknown) and not self.budget.take(source_of(remote.host), now=now):
            self._drop(remote, "too many responses to one source", now=now, packet=packet)
        elif unknown or by is None:
            listed = tuple(dict.fromkeys(unknown))[:MAX_UNKNOWN]
            self._refuse(flow, remote, message, ErrorCode.UNKNOWN_ATTRIBUTE, {UNKNOWN_ATTRIBUTES: listed})
        elif RESPONSE_PORT in asked and (message[RESPONSE_PORT] == 0 or PADDING in asked):
            self._refuse(flow, remote, message, ErrorCode.BAD_REQUEST, {})
        else:
            answer = Message.success(message, _attributes(message, remote, origin, self.origins.get(by)))
            to = remote.with_port(message[RESPONSE_PORT]) if RESPONSE_PORT in asked else remote
            self._outputs.append(Send(by, to, answer.encode(fingerprint=message.has_fingerprint)))
            self._count("answers")

    def _refuse(
        self, flow: Flow, remote: Address, message: Message, code: ErrorCode, attributes: dict[Attribute[Any], Any]
    ) -> None:
        answer = Message.error(message, code, "", attributes)
        self._outputs.append(Send(flow, remote, answer.encode(fingerprint=message.has_fingerprint)))
        self._count("errors")

    def _drop(self, remote: Address, reason: str, *, now: Instant, packet: int = 0) -> None:
        self._count("dropped")
        self._trace.message_dropped(reason, now=now, remote=remote, packet=packet)

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1


def _asked(message: Message) -> tuple[Attribute[Any], ...]:
    """Return the discovery attributes of a request. An empty CHANGE-REQUEST is none: clients of RFC 3489 send it."""
    return tuple(each for each in _DISCOVERY if each in message and message[each] != ChangeRequest())


def _attributes(
    message: Message, remote: Address, asked: Origin | None, by: Origin | None
) -> dict[Attribute[Any], Any]:
    """Return the attributes of a success response that leaves by one listener to a request on another or the same."""
    values: dict[Attribute[Any], Any] = {MAPPED_ADDRESS if message.legacy else XOR_MAPPED_ADDRESS: remote}
    if asked is not None and by is not None:
        values[MAPPED_ADDRESS] = remote
        values[SOURCE_ADDRESS if message.legacy else RESPONSE_ORIGIN] = by.address
        if asked.other is not None:
            values[CHANGED_ADDRESS if message.legacy else OTHER_ADDRESS] = asked.other
        padding = message.get(PADDING)
        if padding is not None:
            values[PADDING] = bytes(min(len(padding), MAX_PADDING))
    counter = message.get(TRANSACTION_TRANSMIT_COUNTER) if message.attributes else None
    if counter is not None:
        values[TRANSACTION_TRANSMIT_COUNTER] = TransmitCounter(counter.request, _STATELESS)
    return values
