"""Traces and packets of several processes, put together by time.

All processes of one host read one clock, so that their instants compare. Each numbers its packets on its own; here a
packet gets one id that is the same where it was sent and where it arrived. The two are matched by order: loopback
keeps the order of what one socket sends to another, and what the system refused to send is taken out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import IO

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import Json, TraceEvent, TraceWriter

Way = tuple[Json, Json, Json]
"""Source, destination and length."""


class Recording:
    """What all processes told. Add in any order, then write."""

    def __init__(self) -> None:
        self._events: list[TraceEvent] = []
        self._packets: list[tuple[Instant, str, IpPacket]] = []

    def event(self, event: TraceEvent) -> None:
        self._events.append(event)

    def packet(self, at: Instant, node: str, packet: IpPacket) -> None:
        """A packet that `node` sent or received; its id is the one in the node's own trace."""
        self._packets.append((at, node, packet))

    def events(self) -> list[TraceEvent]:
        """All events by time, equal instants as they were told, each packet under one id."""
        ordered = sorted(self._events, key=_when)
        names = _packet_names(ordered)
        return [_renamed(event, names) for event in ordered]

    def packets(self) -> list[tuple[Instant, str, IpPacket]]:
        """All packets by time, with the ids of their node's own trace."""
        return sorted(self._packets, key=lambda seen: seen[0])

    def sent_by(self, node: str) -> Callable[[IpPacket], bool]:
        """Tells whether a packet was sent by the node, from the addresses of its flows."""
        local = {event.fields["local"] for event in self._events if event.kind == "flow-opened" and event.node == node}
        return lambda packet: str(packet.source) in local

    def write_trace(self, file: IO[str]) -> None:
        """One trace of all nodes."""
        write = TraceWriter(file)
        for event in self.events():
            write(event)

    def write_pcapng(self, file: IO[bytes], *, epoch: int) -> None:
        """One capture; each node is an interface of it, each packet says its id in the trace as a comment."""
        writer = PcapngWriter(file, epoch=epoch)
        names = _packet_names(sorted(self._events, key=_when))
        outbound = {node: self.sent_by(node) for _, node, _ in self._packets}
        for at, node, packet in self.packets():
            comment = f"packet {names.get((node, packet.id), packet.id)}"
            writer.write(at, node, packet, outbound=outbound[node](packet), comment=comment)


def payloads_at(packets: Iterable[tuple[Instant, str, IpPacket]], addresses: Iterable[Address]) -> list[bytes]:
    """What went to or came from any of these addresses."""
    places = frozenset(addresses)
    return [packet.payload for _, _, packet in packets if packet.source in places or packet.destination in places]


def _when(event: TraceEvent) -> Instant:
    return event.at


def _packet_names(ordered: Iterable[TraceEvent]) -> dict[tuple[str, Json], int]:
    """The common id of each packet by its node and the id that it has there."""
    names: dict[tuple[str, Json], int] = {}
    under_way: dict[Way, deque[int]] = {}
    last = 0
    for event in ordered:
        fields = event.fields
        if event.kind not in ("packet-sent", "packet-received", "packet-dropped"):
            continue
        here = (event.node, fields["packet"])
        if event.kind == "packet-dropped":
            for queue in under_way.values():
                if names.get(here) in queue:
                    queue.remove(names[here])
            continue
        queue = under_way.setdefault((fields["source"], fields["destination"], fields["length"]), deque())
        if event.kind == "packet-received" and queue:
            names[here] = queue.popleft()
            continue
        last += 1
        names[here] = last
        if event.kind == "packet-sent":
            queue.append(last)
    return names


def _renamed(event: TraceEvent, names: dict[tuple[str, Json], int]) -> TraceEvent:
    name = names.get((event.node, event.fields.get("packet")))
    if name is None:
        return event
    return TraceEvent(event.at, event.node, event.machine, event.kind, event.reason, {**event.fields, "packet": name})
