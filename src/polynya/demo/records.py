"""What parent and peers tell each other: a task down, records up, one JSON document a line.

The task is the first line of a peer's standard input; that input's end is the order to leave. The records go to its
standard output, oldest first. Every instant is on the clock that all processes of a host share.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import TraceEvent, check


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer is to do."""

    name: str
    other: str
    """What the other peer is called."""
    url: str
    """The signaling server."""
    room: str
    messages: int
    """How many to send, and to expect."""
    timeout: float
    """Seconds for all of it."""
    families: list[int]


class Happened(msgspec.Struct, frozen=True, tag_field="record", tag="trace"):
    """One event of the peer's trace, in the schema of `core/trace`."""

    line: dict[str, Any]

    @classmethod
    def of(cls, event: TraceEvent) -> Happened:
        return cls(msgspec.json.decode(event.to_json()))

    def event(self) -> TraceEvent:
        """The event; DecodeError when it is none."""
        fields = dict(self.line)
        try:
            event = TraceEvent(
                Instant(int(fields.pop("t"))),
                str(fields.pop("node")),
                str(fields.pop("machine")),
                str(fields.pop("kind")),
                str(fields.pop("reason", "")),
                fields,
            )
            check(event.kind, event.fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"not an event of a trace: {error}") from None
        return event


class Captured(msgspec.Struct, frozen=True, tag_field="record", tag="packet"):
    """A UDP datagram that the peer sent or received; `id` is that of its own trace."""

    at: int
    id: int
    source: str
    destination: str
    data: bytes

    @classmethod
    def of(cls, at: Instant, packet: IpPacket) -> Captured:
        return cls(at, packet.id, str(packet.source), str(packet.destination), packet.payload)

    def packet(self) -> IpPacket:
        """The packet; DecodeError when its addresses are none."""
        source, destination = Address.parse(self.source), Address.parse(self.destination)
        return IpPacket(self.id, source, destination, Protocol.UDP, self.data)


class Progress(msgspec.Struct, frozen=True, tag_field="record", tag="progress"):
    """How far the conversation is."""

    sent: int
    received: int


class Messages(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation as one side saw it. Each message is counted once, whatever its number of copies."""

    sent: int
    received: int
    """Distinct messages of the other side that came whole and unchanged."""
    duplicates: int = 0
    wrong: int = 0
    """What came and was no message of this conversation."""
    bytes_received: int = 0
    latency_ms: float | None = None
    """One way, the median."""
    seconds: float | None = None
    """From the first one that was sent to the last one that was received."""


class PairRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate pair at the end."""

    id: int
    local: str
    remote: str
    local_address: str
    remote_address: str
    state: str
    writable: bool
    readable: bool
    valid: bool
    nominated: bool
    selected: bool
    priority: int
    rtt_ms: float | None
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="outcome"):
    """What came of the task; the last record but for what closing brings."""

    error: str = ""
    """Empty when everything was done."""
    peer_id: str = ""
    controlling: bool | None = None
    messages: Messages
    candidates: list[str] = []
    """Of this side, as SDP."""
    remote_candidates: list[str] = []
    pairs: list[PairRecord] = []
    servers: list[dict[str, Any]] = []
    """What each STUN server answered, by base."""
    counters: dict[str, int] = {}
    why: str = ""


Record = Happened | Captured | Progress | Outcome

_ENCODER: Final = msgspec.json.Encoder()
_RECORDS: Final = msgspec.json.Decoder(Record)
_TASKS: Final = msgspec.json.Decoder(Task)


def encode(record: Record | Task) -> bytes:
    """One line, with its end."""
    return _ENCODER.encode(record) + b"\n"


def decode_record(line: bytes) -> Record:
    """Raises DecodeError for anything else than a record."""
    try:
        record: Record = _RECORDS.decode(line)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"not a record of a peer: {error}: {line[:100]!r}") from None
    return record


def decode_task(line: bytes) -> Task:
    """Raises DecodeError for anything else than a task."""
    try:
        return _TASKS.decode(line)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"not a task of a peer: {error}") from None
