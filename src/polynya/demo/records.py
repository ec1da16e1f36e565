"""Messages between the parent and the peers: a task to the peer, records to the parent, one JSON document a line.

The task is the first line of a peer's standard input; the end of that input makes the peer exit. The peer writes its
records to standard output, oldest first. All times are of the clock that the processes of a host share.
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
    """The task of a peer."""

    name: str
    other: str
    """The name of the other peer."""
    url: str
    """The URL of the signaling server."""
    room: str
    messages: int
    """The number of messages to send and to receive."""
    timeout: float
    """Seconds for the whole task."""
    families: list[int]


class TraceRecord(msgspec.Struct, frozen=True, tag_field="record", tag="trace"):
    """One event of the peer's trace, in the schema of `core/trace`."""

    line: dict[str, Any]

    @classmethod
    def of(cls, event: TraceEvent) -> TraceRecord:
        return cls(msgspec.json.decode(event.to_json()))

    def event(self) -> TraceEvent:
        """Return the event. Raises DecodeError if the record holds none."""
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
            raise DecodeError(f"not a trace event: {error}") from None
        return event


class PacketRecord(msgspec.Struct, frozen=True, tag_field="record", tag="packet"):
    """A UDP datagram that the peer sent or received; `id` is its packet id in the peer's trace."""

    at: int
    id: int
    source: str
    destination: str
    data: bytes

    @classmethod
    def of(cls, at: Instant, packet: IpPacket) -> PacketRecord:
        return cls(at, packet.id, str(packet.source), str(packet.destination), packet.payload)

    def packet(self) -> IpPacket:
        """Return the packet. Raises DecodeError if an address is invalid."""
        source, destination = Address.parse(self.source), Address.parse(self.destination)
        return IpPacket(self.id, source, destination, Protocol.UDP, self.data)


class Progress(msgspec.Struct, frozen=True, tag_field="record", tag="progress"):
    """Progress of the conversation: messages sent and received."""

    sent: int
    received: int


class Messages(msgspec.Struct, frozen=True, kw_only=True):
    """Message counts of one peer. Copies of a message count once."""

    sent: int
    received: int
    """Distinct messages of the other side that arrived unchanged."""
    duplicates: int = 0
    wrong: int = 0
    """Datagrams that were no message of this conversation."""
    bytes_received: int = 0
    latency_ms: float | None = None
    """The median one-way latency."""
    seconds: float | None = None
    """From the first message sent to the last message received."""


class PairRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The final state of a candidate pair."""

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
    """The outcome of the task. Only records of closing follow."""

    error: str = ""
    """Why the task failed; empty if it succeeded."""
    peer_id: str = ""
    controlling: bool | None = None
    messages: Messages
    candidates: list[str] = []
    """The local candidates, as SDP."""
    remote_candidates: list[str] = []
    pairs: list[PairRecord] = []
    servers: list[dict[str, Any]] = []
    """The answers of each STUN server, by base."""
    counters: dict[str, int] = {}
    why: str = ""


Record = TraceRecord | PacketRecord | Progress | Outcome

_ENCODER: Final = msgspec.json.Encoder()
_RECORDS: Final = msgspec.json.Decoder(Record)
_TASKS: Final = msgspec.json.Decoder(Task)


def encode(record: Record | Task) -> bytes:
    """Encode a record or task as one line."""
    return _ENCODER.encode(record) + b"\n"


def decode_record(line: bytes) -> Record:
    """Decode a record. Raises DecodeError if the line is not a record."""
    try:
        record: Record = _RECORDS.decode(line)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"not a record of a peer: {error}: {line[:100]!r}") from None
    return record


def decode_task(line: bytes) -> Task:
    """Decode a task. Raises DecodeError if the line is not a task."""
    try:
        return _TASKS.decode(line)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"not a task of a peer: {error}") from None
