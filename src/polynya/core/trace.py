"""The trace: what happened, where, when and why, in one schema for all worlds.

A trace is JSON lines. The first line names the schema and its version; every other line is one event:

    {"t": 1500000000, "node": "alice", "machine": "ice", "kind": "pair", "reason": "its check was answered", ...}

`t` is nanoseconds on the clock of the run, `node` the host, router or process, `machine` the part of it that speaks.
The kinds and the fields each must have are the table below; an event may carry more. A packet keeps one id (`packet`)
across hops. NAT tables are given as differences. Fields that could hold a secret are refused.

Machines get a `Tracer`, which does nothing unless a sink is attached:

    if trace.enabled:
        trace(now, "pair", reason, pair=..., old=..., new=...)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Final

from .instants import Instant

VERSION: Final = 1

KINDS: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        # the world
        "node": "role addresses",
        "link": "ends",
        "interfaces": "addresses",
        "flow-opened": "flow transport local",
        "flow-closed": "flow",
        # packets: source and destination as they are on this hop
        "packet-sent": "packet protocol source destination length",
        "packet-forwarded": "packet source destination",
        "packet-received": "packet source destination length",
        "packet-dropped": "packet source destination",
        "icmp": "packet about error",
        # NAT and firewall: what changed in the table
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
        # signaling and people
        "signaling": "event",
        "note": "",
    }.items()
}
"""Every kind of event with the fields that it must carry. A new field or kind raises no version; a change does."""

SECRET_FIELDS: Final = frozenset({"password", "pwd", "key", "secret", "credential", "token", "integrity", "nonce"})

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


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
    """Where a machine writes its events: bound to a node and a machine's name, silent without a sink."""

    __slots__ = ("_sink", "enabled", "machine", "node")

    def __init__(self, sink: Sink | None = None, node: str = "", machine: str = "") -> None:
        self._sink = sink
        self.enabled = sink is not None
        self.node = node
        self.machine = machine

    def of(self, machine: str) -> Tracer:
        """The same sink and node for another machine; without a sink there is nothing to tell apart."""
        return self if self._sink is None else Tracer(self._sink, self.node, machine)

    def at_node(self, node: str, machine: str = "") -> Tracer:
        """The same sink for another node."""
        return Tracer(self._sink, node, machine)

    def __call__(self, now: Instant, kind: str, reason: str = "", **fields: Json) -> None:
        """Write one event. Raises ValueError for a kind or a set of fields that the schema does not allow."""
        if self._sink is None:
            return
        check(kind, fields)
        self._sink(TraceEvent(now, self.node, self.machine, kind, reason, fields))


NO_TRACE: Final = Tracer()


def check(kind: str, fields: Mapping[str, Json]) -> None:
    """Raise ValueError unless `fields` are all that `kind` must have, and none may hold a secret."""
    required = KINDS.get(kind)
    if required is None:
        raise ValueError(f"the trace has no kind {kind!r}")
    if not required <= fields.keys():
        raise ValueError(f"a trace event of kind {kind!r} lacks {', '.join(sorted(required - fields.keys()))}")
    if not SECRET_FIELDS.isdisjoint(fields):
        raise ValueError(f"a trace event must not carry {', '.join(sorted(SECRET_FIELDS & fields.keys()))}")


class TraceWriter:
    """A sink that writes JSON lines to a text file: the header at once, then an event a line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        file.write(json.dumps({"trace": "polynya", "version": VERSION}, separators=(",", ":")) + "\n")

    def __call__(self, event: TraceEvent) -> None:
        self._file.write(event.to_json() + "\n")


def read_trace(file: IO[str]) -> list[TraceEvent]:
    """Read a trace back. Raises ValueError, with the line's number, for a file that is not a trace of this version."""
    events: list[TraceEvent] = []
    header = _parse_line(file.readline(), 1)
    if header.get("trace") != "polynya" or header.get("version") != VERSION:
        raise ValueError(f"line 1: not a polynya trace of version {VERSION}")
    for number, text in enumerate(file, start=2):
        line = _parse_line(text, number)
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


def _parse_line(text: str, number: int) -> dict[str, Json]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"line {number}: not JSON") from None
    if not isinstance(line, dict):
        raise ValueError(f"line {number}: not a JSON object")
    return line
