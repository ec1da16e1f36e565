"""The Binding server: tells whoever asks the address that it is seen under (RFC 8489, sections 6.3.1 and 12).

It keeps no state, answers requests of Binding only and is as short as the rules allow: without SOFTWARE, and without
reason phrases, so that a forged source gets little more than the forger sent. Requests without the magic cookie are
answered as RFC 3489 had it, with MAPPED-ADDRESS; libnice's discovery sends such. Everything that is not a request is
dropped and counted.

Over streams each flow has its own framer; a stream that loses step, or sends ChannelData, is closed.
"""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Counters, Datagram, Input, Opened, Send, StreamData
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    PADDING,
    RESPONSE_PORT,
    TRANSACTION_TRANSMIT_COUNTER,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    TransmitCounter,
)
from .framing import StreamFramer
from .message import Message, Received, decode
from .registry import Class, ErrorCode, Method

MAX_REQUEST = 1500
"""Bytes. A Binding request that is longer over a stream is no Binding request."""
MAX_STREAMS = 1024
"""Streams that are open at once; the next one is closed."""
MAX_UNKNOWN = 16
"""How many unknown attributes an answer lists: the answer must not outgrow the request's use."""
_STATELESS = 0xFF
"""What a server that does not count its responses says in TRANSACTION-TRANSMIT-COUNTER (RFC 7982)."""


class BindingServer:
    """A machine: datagrams and stream data in, answers out. It has no timers and no events."""

    def __init__(self, *, trace: Tracer = NO_TRACE, max_streams: int = MAX_STREAMS) -> None:
        self._trace = trace
        self._max_streams = max_streams
        self._streams: dict[Flow, tuple[Address, StreamFramer]] = {}
        self._outputs: list[Send | Close] = []
        self._counters: dict[str, int] = {}

    def receive(self, input: Input | Received, now: Instant) -> None:
        """Answer a request, take in a stream's bytes, or note that a stream came or went."""
        match input:
            case Datagram():
                self._take(input.flow, input.remote, input.data, now, input.packet)
            case Received():
                self._answer(input.flow, input.remote, input.message, now)
            case StreamData():
                self._take_stream(input.flow, input.data, now)
            case Opened() if input.remote is not None:
                self._accept(input.flow, input.remote)
            case Closed():
                self._streams.pop(input.flow, None)
            case _:
                self._count("not for a Binding server")

    def tick(self, now: Instant) -> None:
        """Nothing is ever due."""

    def next_timer(self) -> Instant | None:
        return None

    def outputs(self) -> list[Send | Close]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[object]:
        return []

    @property
    def counters(self) -> Counters:
        """Answers by kind, and what was dropped by why."""
        return self._counters

    # --------------------------------------------------------------------------------------------------------- streams

    def _accept(self, flow: Flow, remote: Address) -> None:
        if len(self._streams) >= self._max_streams:
            self._count("streams refused")
            self._outputs.append(Close(flow=flow))
        else:
            self._streams[flow] = remote, StreamFramer(channels=False, max_frame=MAX_REQUEST)

    def _take_stream(self, flow: Flow, data: bytes, now: Instant) -> None:
        stream = self._streams.get(flow)
        if stream is None:
            self._count("data of a stream that is not open")
            return
        remote, framer = stream
        for frame in framer.feed(data):
            self._take(flow, remote, frame, now)
        if framer.error is not None:
            self._drop(remote, f"stream closed: {framer.error}", now)
            del self._streams[flow]
            self._outputs.append(Close(flow=flow))

    # -------------------------------------------------------------------------------------------------------- messages

    def _take(self, flow: Flow, remote: Address, data: bytes, now: Instant, packet: int = 0) -> None:
        try:
            message = decode(data, legacy=True)
        except DecodeError as error:
            self._drop(remote, str(error), now, packet)
            return
        self._answer(flow, remote, message, now, packet)

    def _answer(self, flow: Flow, remote: Address, message: Message, now: Instant, packet: int = 0) -> None:
        if message.cls is not Class.REQUEST or message.method != Method.BINDING:
            self._drop(remote, f"not a Binding request: {message.method!r} {message.cls.name}", now, packet)
            return
        unknown = message.unknown_required + _unsupported(message)
        if unknown:
            listed = tuple(dict.fromkeys(unknown))[:MAX_UNKNOWN]
            answer = Message.error(message, ErrorCode.UNKNOWN_ATTRIBUTE, "", {UNKNOWN_ATTRIBUTES: listed})
            self._count("errors")
        else:
            answer = Message.success(message, {MAPPED_ADDRESS if message.legacy else XOR_MAPPED_ADDRESS: remote})
            counter = message.get(TRANSACTION_TRANSMIT_COUNTER)
            if counter is not None:
                answer.attributes[TRANSACTION_TRANSMIT_COUNTER] = TransmitCounter(counter.request, _STATELESS)
            self._count("answers")
        self._outputs.append(Send(flow, remote, answer.encode(fingerprint=message.has_fingerprint)))

    def _drop(self, remote: Address, reason: str, now: Instant, packet: int = 0) -> None:
        self._count("dropped")
        if self._trace.enabled:
            self._trace(now, "message-dropped", reason, remote=str(remote), packet=packet)

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1


def _unsupported(message: Message) -> tuple[int, ...]:
    """Attributes that ask for an answer from or to elsewhere: one from here would be taken for what it is not.

    A CHANGE-REQUEST that asks for nothing is what RFC 3489 clients send at first.
    """
    asked: list[int] = [attribute.number for attribute in (RESPONSE_PORT, PADDING) if attribute in message]
    change = message.get(CHANGE_REQUEST)
    if change is not None and (change.address or change.port):
        asked.append(CHANGE_REQUEST.number)
    return tuple(asked)
