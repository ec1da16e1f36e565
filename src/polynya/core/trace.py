"""The trace: a log of events as JSON lines, with one schema for real and simulated runs.

The first line names the schema and its version. Each other line is one event:

    {"t": 1500000000, "node": "alice", "machine": "ice", "kind": "pair", "reason": "its check was answered", ...}

`t` is in nanoseconds on the clock of the run, `node` is the host, router or process, and `machine` its part that emits
the event. `KINDS` lists each kind of event with its required fields; an event may have more. A packet keeps one id
(`packet`) across hops. Changes of NAT tables are written as differences. Fields that could hold a secret are refused.

A machine has a `Tracer`, which has one method for each kind and does nothing unless a sink is attached:

    trace.pair("its check was answered", now=now, pair=3, local=..., remote=..., old=..., new=...)

Fields are evaluated only if a sink is attached. Pass an `Address`, a `Flow` or an `Enum` as it is. For a value that is
expensive to compute, pass a callable without parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import IO, Final, cast

from .arguments import function, instance, text, text_file
from .instants import Instant

VERSION: Final = 1

KINDS: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        # hosts and links
        "node": "role addresses",
        "link": "ends",
        "interfaces": "addresses",
        "flow-opened": "flow transport local",
        "flow-closed": "flow",
        # packets, with the source and destination of this hop
        "packet-sent": "packet protocol source destination length",
        "packet-forwarded": "packet source destination",
        "packet-received": "packet source destination length",
        "packet-dropped": "packet source destination",
        "icmp": "packet about error",
        # NAT and firewall: changes of the table
        "nat": "added removed",
        "firewall": "added removed",
        # STUN and TURN
        "transaction": "transaction state",
        "message-dropped": "remote",
        "server": "server state",
        # ICE
        "description": "side ufrag generation",
        "candidate": "side candidate",
        "pair": "pair local remote old new",
        "pair-flags": "pair writable readable valid nominated",
        "checklist": "stream old new",
        "agent": "old new",
        "gathering": "old new",
        "role": "old new",
        "consent": "pair state",
        "selected": "pair local remote",
        "data": "flow remote length",
        # signaling, and remarks for people
        "signaling": "event",
        "note": "",
    }.items()
}
"""Each kind of event with its required fields. New kinds and fields keep the version; other changes raise it."""

SECRET_FIELDS: Final = frozenset({"password", "pwd", "key", "secret", "credential", "token", "integrity", "nonce"})

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

Field = object
"""A value of a field before it is written: anything that `_plain` can turn into JSON."""


@dataclass(slots=True)
class TraceEvent:
    """One line of the trace."""

    at: Instant
    node: str
    machine: str
    kind: str
    reason: str = ""
    fields: dict[str, Json] = field(default_factory=dict)

    def to_json(self) -> str:
        line: dict[str, Json] = {"t": self.at, "node": self.node, "machine": self.machine, "kind": self.kind}
        if self.reason:
            line["reason"] = self.reason
        line.update(self.fields)
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


Sink = Callable[[TraceEvent], None]


class Tracer:
    """Writes trace events; has a method for each kind, and does nothing without a sink.

    `node` and `machine` name the source of the events; `fields` are added to each of them.
    """

    __slots__ = ("_fields", "_machine", "_node", "_sink", "enabled")

    def __init__(
        self, sink: Sink | None = None, node: str = "", machine: str = "", fields: Mapping[str, Json] | None = None
    ) -> None:
        if sink is not None:
            function("the sink of a Tracer", sink, plain=True)
        text("the node of a Tracer", node)
        text("the machine of a Tracer", machine)
        if fields is not None:
            instance("the fields of a Tracer", fields, dict)
        self.enabled = sink is not None
        """Whether a sink is attached."""
        self._sink = sink
        self._node = node
        self._machine = machine
        self._fields = fields

    def of(self, machine: str) -> Tracer:
        """Return a tracer for another machine of the same node."""
        return self if self._sink is None else Tracer(self._sink, self._node, machine, self._fields)

    def at_node(self, node: str, machine: str = "") -> Tracer:
        """Return a tracer for another node."""
        return Tracer(self._sink, node, machine, self._fields)

    def bind(self, **fields: Json) -> Tracer:
        """Return a tracer that adds these fields to every event."""
        if self._sink is None:
            return self
        return Tracer(self._sink, self._node, self._machine, {**(self._fields or {}), **fields})

    def _write(self, kind: str, reason: str, now: Instant, fields: dict[str, Field]) -> None:
        assert self._sink is not None
        plain = cast("dict[str, Json]", fields)
        for name, value in fields.items():
            if type(value) not in _PLAIN:
                plain[name] = _plain(value)
        if self._fields is not None:
            plain.update(self._fields)
        check(kind, plain)
        self._sink(TraceEvent(now, self._node, self._machine, kind, reason, plain))

    def node(self, reason: str = "", *, now: Instant, role: Field, addresses: Field, **fields: Field) -> None:
        """A host, router or process of the run."""
        if self._sink is not None:
            self._write("node", reason, now, {"role": role, "addresses": addresses, **fields})

    def link(self, reason: str = "", *, now: Instant, ends: Field, **fields: Field) -> None:
        """A link between nodes."""
        if self._sink is not None:
            self._write("link", reason, now, {"ends": ends, **fields})

    def interfaces(self, reason: str = "", *, now: Instant, addresses: Field, **fields: Field) -> None:
        """The interfaces of a host, at the start or after a change."""
        if self._sink is not None:
            self._write("interfaces", reason, now, {"addresses": addresses, **fields})

    def flow_opened(
        self, reason: str = "", *, now: Instant, flow: Field, transport: Field, local: Field, **fields: Field
    ) -> None:
        """A socket, stream or relay was opened."""
        if self._sink is not None:
            self._write("flow-opened", reason, now, {"flow": flow, "transport": transport, "local": local, **fields})

    def flow_closed(self, reason: str = "", *, now: Instant, flow: Field, **fields: Field) -> None:
        """A socket, stream or relay was closed."""
        if self._sink is not None:
            self._write("flow-closed", reason, now, {"flow": flow, **fields})

    def packet_sent(
        self,
        reason: str = "",
        *,
        now: Instant,
        packet: Field,
        protocol: Field,
        source: Field,
        destination: Field,
        length: int,
        **fields: Field,
    ) -> None:
        """A host sent a packet."""
        if self._sink is not None:
            self._write(
                "packet-sent",
                reason,
                now,
                {
                    "packet": packet,
                    "protocol": protocol,
                    "source": source,
                    "destination": destination,
                    "length": length,
                    **fields,
                },
            )

    def packet_forwarded(
        self, reason: str = "", *, now: Instant, packet: Field, source: Field, destination: Field, **fields: Field
    ) -> None:
        """A router forwarded a packet; source and destination are those after the hop."""
        if self._sink is not None:
            self._write(
                "packet-forwarded",
                reason,
                now,
                {"packet": packet, "source": source, "destination": destination, **fields},
            )

    def packet_received(
        self,
        reason: str = "",
        *,
        now: Instant,
        packet: Field,
        source: Field,
        destination: Field,
        length: int,
        **fields: Field,
    ) -> None:
        """A host received a packet."""
        if self._sink is not None:
            self._write(
                "packet-received",
                reason,
                now,
                {"packet": packet, "source": source, "destination": destination, "length": length, **fields},
            )

    def packet_dropped(
        self, reason: str = "", *, now: Instant, packet: Field, source: Field, destination: Field, **fields: Field
    ) -> None:
        """A packet was dropped; `reason` says why."""
        if self._sink is not None:
            self._write(
                "packet-dropped",
                reason,
                now,
                {"packet": packet, "source": source, "destination": destination, **fields},
            )

    def icmp(
        self, reason: str = "", *, now: Instant, packet: Field, about: Field, error: Field, **fields: Field
    ) -> None:
        """A router or host answered a packet with an ICMP error."""
        if self._sink is not None:
            self._write("icmp", reason, now, {"packet": packet, "about": about, "error": error, **fields})

    def nat(self, reason: str = "", *, now: Instant, added: Field, removed: Field, **fields: Field) -> None:
        """Rows that a NAT added to its table or removed."""
        if self._sink is not None:
            self._write("nat", reason, now, {"added": added, "removed": removed, **fields})

    def firewall(self, reason: str = "", *, now: Instant, added: Field, removed: Field, **fields: Field) -> None:
        """Sessions that a firewall added to its table or removed."""
        if self._sink is not None:
            self._write("firewall", reason, now, {"added": added, "removed": removed, **fields})

    def transaction(self, reason: str = "", *, now: Instant, transaction: Field, state: Field, **fields: Field) -> None:
        """A STUN transaction changed its state."""
        if self._sink is not None:
            self._write("transaction", reason, now, {"transaction": transaction, "state": state, **fields})

    def message_dropped(self, reason: str = "", *, now: Instant, remote: Field, **fields: Field) -> None:
        """A STUN or TURN message was dropped; `reason` says why."""
        if self._sink is not None:
            self._write("message-dropped", reason, now, {"remote": remote, **fields})

    def server(self, reason: str = "", *, now: Instant, server: Field, state: Field, **fields: Field) -> None:
        """The state of a STUN or TURN server as a client sees it."""
        if self._sink is not None:
            self._write("server", reason, now, {"server": server, "state": state, **fields})

    def description(
        self, reason: str = "", *, now: Instant, side: Field, ufrag: Field, generation: int, **fields: Field
    ) -> None:
        """A description was signaled (`side`: local or remote)."""
        if self._sink is not None:
            self._write("description", reason, now, {"side": side, "ufrag": ufrag, "generation": generation, **fields})

    def candidate(self, reason: str = "", *, now: Instant, side: Field, candidate: Field, **fields: Field) -> None:
        """A candidate became known (`side`: local or remote)."""
        if self._sink is not None:
            self._write("candidate", reason, now, {"side": side, "candidate": candidate, **fields})

    def pair(
        self,
        reason: str = "",
        *,
        now: Instant,
        pair: Field,
        local: Field,
        remote: Field,
        old: Field,
        new: Field,
        **fields: Field,
    ) -> None:
        """A candidate pair was made or changed its state."""
        if self._sink is not None:
            self._write(
                "pair", reason, now, {"pair": pair, "local": local, "remote": remote, "old": old, "new": new, **fields}
            )

    def pair_flags(
        self,
        reason: str = "",
        *,
        now: Instant,
        pair: Field,
        writable: bool,
        readable: bool,
        valid: bool,
        nominated: bool,
        **fields: Field,
    ) -> None:
        """The flags of a candidate pair changed."""
        if self._sink is not None:
            self._write(
                "pair-flags",
                reason,
                now,
                {
                    "pair": pair,
                    "writable": writable,
                    "readable": readable,
                    "valid": valid,
                    "nominated": nominated,
                    **fields,
                },
            )

    def checklist(
        self, reason: str = "", *, now: Instant, stream: int, old: Field, new: Field, **fields: Field
    ) -> None:
        """A checklist changed its state."""
        if self._sink is not None:
            self._write("checklist", reason, now, {"stream": stream, "old": old, "new": new, **fields})

    def agent(self, reason: str = "", *, now: Instant, old: Field, new: Field, **fields: Field) -> None:
        """An ICE agent changed its state."""
        if self._sink is not None:
            self._write("agent", reason, now, {"old": old, "new": new, **fields})

    def gathering(self, reason: str = "", *, now: Instant, old: Field, new: Field, **fields: Field) -> None:
        """Gathering changed its state."""
        if self._sink is not None:
            self._write("gathering", reason, now, {"old": old, "new": new, **fields})

    def role(self, reason: str = "", *, now: Instant, old: Field, new: Field, **fields: Field) -> None:
        """An ICE agent changed its role."""
        if self._sink is not None:
            self._write("role", reason, now, {"old": old, "new": new, **fields})

    def consent(self, reason: str = "", *, now: Instant, pair: Field, state: Field, **fields: Field) -> None:
        """Consent to send on a pair was granted or lost (RFC 7675)."""
        if self._sink is not None:
            self._write("consent", reason, now, {"pair": pair, "state": state, **fields})

    def selected(
        self, reason: str = "", *, now: Instant, pair: Field, local: Field, remote: Field, **fields: Field
    ) -> None:
        """The pair that carries the data of a component changed."""
        if self._sink is not None:
            self._write("selected", reason, now, {"pair": pair, "local": local, "remote": remote, **fields})

    def data(self, reason: str = "", *, now: Instant, flow: Field, remote: Field, length: int, **fields: Field) -> None:
        """Application data was sent, received or relayed."""
        if self._sink is not None:
            self._write("data", reason, now, {"flow": flow, "remote": remote, "length": length, **fields})

    def signaling(self, reason: str = "", *, now: Instant, event: Field, **fields: Field) -> None:
        """An event of the signaling client or server."""
        if self._sink is not None:
            self._write("signaling", reason, now, {"event": event, **fields})

    def note(self, reason: str = "", *, now: Instant, **fields: Field) -> None:
        """A remark for people."""
        if self._sink is not None:
            self._write("note", reason, now, fields)


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""Types that are JSON as they are; a lookup is faster than a call for each field."""


def _plain(value: Field) -> Json:
    """Turn a field into JSON: enums into their values, containers item by item, all else into text."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return [_plain(each) for each in value]
    if callable(value):
        return _plain(value())
    return str(value)


NO_TRACE: Final = Tracer()


def check(kind: str, fields: Mapping[str, Json]) -> None:
    """Raise ValueError if the kind is unknown, a required field is missing, or a field could hold a secret."""
    required = KINDS.get(kind)
    if required is None:
        raise ValueError(f"the trace has no kind {kind!r}")
    if not required <= fields.keys():
        raise ValueError(f"a trace event of kind {kind!r} lacks {', '.join(sorted(required - fields.keys()))}")
    if not SECRET_FIELDS.isdisjoint(fields):
        raise ValueError(f"a trace event must not carry {', '.join(sorted(SECRET_FIELDS & fields.keys()))}")


class TraceWriter:
    """A sink that writes JSON lines to a text file: the header at once, then one event per line."""

    def __init__(self, file: IO[str]) -> None:
        text_file("the file of a TraceWriter", file)
        self._file = file
        file.write(json.dumps({"trace": "polynya", "version": VERSION}, separators=(",", ":")) + "\n")

    def __call__(self, event: TraceEvent) -> None:
        self._file.write(event.to_json() + "\n")


def read_trace(file: IO[str]) -> list[TraceEvent]:
    """Read a trace. Raises ValueError, with the line number, if the file is not a trace of this version."""
    events: list[TraceEvent] = []
    header = _parse_line(file.readline(), 1)
    if header.get("trace") != "polynya" or header.get("version") != VERSION:
        raise ValueError(f"line 1: not a polynya trace of version {VERSION}")
    for number, written in enumerate(file, start=2):
        line = _parse_line(written, number)
        try:
            event = TraceEvent(
                Instant(int(line.pop("t"))),  # type: ignore[arg-type]
                str(line.pop("node")),
                str(line.pop("machine")),
                str(line.pop("kind")),
                str(line.pop("reason", "")),
                line,
            )
            check(event.kind, event.fields)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"line {number}: {error}") from None
        events.append(event)
    return events


def _parse_line(written: str, number: int) -> dict[str, Json]:
    try:
        line = json.loads(written)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number}: not JSON") from None
    if not isinstance(line, dict):
        raise ValueError(f"line {number}: not a JSON object")
    return line
