"""Merges the traces and packets of several processes by time.

All processes of one host read the same clock. Each process numbers its packets separately; the merged trace gives a
packet one id at its sender and its receiver. Sent and received packets are matched in order: loopback keeps the order
of datagrams between two sockets, and datagrams that the system refused are left out.
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

PacketKey = tuple[Json, Json, Json]
"""Source, destination and length of a datagram."""


class Recording:
    """The events and packets of all processes. Add them in any order, then write."""

    def __init__(self) -> None:
        self._events: list[TraceEvent] = []
        self._packets: list[tuple[Instant, str, IpPacket]] = []

    def event(self, event: TraceEvent) -> None:
        self._events.append(event)

    def packet(self, at: Instant, node: str, packet: IpPacket) -> None:
        """Add a packet that `node` sent or received, with the id that it has in the trace of `node`."""
        self._packets.append((at, node, packet))

    def events(self) -> list[TraceEvent]:
        """Return all events by time, each packet under its common id. Events of one instant keep their order."""
        ordered = sorted(self._events, key=_when)
        names = _common_ids(ordered)
        return [_renamed(event, names) for event in ordered]

    def packets(self) -> list[tuple[Instant, str, IpPacket]]:
        """Return all packets by time, with the ids that they have in the trace of their node."""
        return sorted(self._packets, key=lambda seen: seen[0])

    def sent_by(self, node: str) -> Callable[[IpPacket], bool]:
        """Return a predicate: whether the node sent a packet, by the addresses of its flows."""
        local = {event.fields["local"] for event in self._events if event.kind == "flow-opened" and event.node == node}
        return lambda packet: str(packet.source) in local

    def write_trace(self, file: IO[str]) -> None:
        """Write one trace of all nodes."""
        write = TraceWriter(file)
        for event in self.events():
            write(event)

    def write_pcapng(self, file: IO[bytes], *, epoch: int) -> None:
        """Write one capture. Each node is an interface; the comment of a packet is its id in the trace."""
        writer = PcapngWriter(file, epoch=epoch)
        names = _common_ids(sorted(self._events, key=_when))
        outbound = {node: self.sent_by(node) for _, node, _ in self._packets}
        for at, node, packet in self.packets():
            comment = f"packet {names.get((node, packet.id), packet.id)}"
            writer.write(at, node, packet, outbound=outbound[node](packet), comment=comment)


def payloads_at(packets: Iterable[tuple[Instant, str, IpPacket]], addresses: Iterable[Address]) -> list[bytes]:
    """Return the payloads of packets to or from any of these addresses."""
    chosen = frozenset(addresses)
    return [packet.payload for _, _, packet in packets if packet.source in chosen or packet.destination in chosen]


def _when(event: TraceEvent) -> Instant:
    return event.at


def _common_ids(ordered: Iterable[TraceEvent]) -> dict[tuple[str, Json], int]:
    """Return the common id of each packet by node and the id in the trace of that node."""
    names: dict[tuple[str, Json], int] = {}
    in_flight: dict[PacketKey, deque[int]] = {}
    last = 0
    for event in ordered:
        fields = event.fields
        if event.kind not in ("packet-sent", "packet-received", "packet-dropped"):
            continue
        here = (event.node, fields["packet"])
        if event.kind == "packet-dropped":
            for queue in in_flight.values():
                if names.get(here) in queue:
                    queue.remove(names[here])
            continue
        queue = in_flight.setdefault((fields["source"], fields["destination"], fields["length"]), deque())
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
