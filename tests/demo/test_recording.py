"""Traces and packets of several processes are merged into one of each."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from polynya.core.addresses import Address
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import TraceEvent, read_trace
from polynya.demo.recording import Recording, payloads_at
from tests.demo.conftest import Run
from tests.real.capture import TSHARK

A, B = "127.0.0.1:1", "127.0.0.1:2"


def sent(at: int, node: str, packet: int, ends: tuple[str, str] = (A, B), length: int = 5) -> TraceEvent:
    fields = {"packet": packet, "protocol": "udp", "source": ends[0], "destination": ends[1], "length": length}
    return TraceEvent(at, node, "", "packet-sent", fields=fields)


def received(at: int, node: str, packet: int, ends: tuple[str, str] = (A, B), length: int = 5) -> TraceEvent:
    fields = {"packet": packet, "source": ends[0], "destination": ends[1], "length": length}
    return TraceEvent(at, node, "", "packet-received", fields=fields)


def recording(*events: TraceEvent) -> Recording:
    made = Recording()
    for event in events:
        made.event(event)
    return made


def ids(made: Recording) -> list[tuple[str, str, object]]:
    return [(event.node, event.kind.removeprefix("packet-"), event.fields.get("packet")) for event in made.events()]


def test_events_of_all_processes_are_sorted_by_time() -> None:
    note = TraceEvent(2, "bob", "", "note")
    made = recording(sent(3, "alice", 1), note, TraceEvent(2, "alice", "", "note"), received(4, "bob", 1))
    assert [(event.at, event.node) for event in made.events()] == [(2, "bob"), (2, "alice"), (3, "alice"), (4, "bob")]


def test_a_packet_gets_one_id_from_the_ids_of_both_processes() -> None:
    made = recording(
        sent(1, "alice", 1),
        sent(2, "alice", 2),
        sent(3, "bob", 1, (B, A)),
        received(4, "bob", 2),
        received(5, "bob", 3),
        received(6, "alice", 3, (B, A)),
    )
    assert ids(made) == [
        ("alice", "sent", 1),
        ("alice", "sent", 2),
        ("bob", "sent", 3),
        ("bob", "received", 1),
        ("bob", "received", 2),
        ("alice", "received", 3),
    ]


def test_a_refused_packet_is_not_matched() -> None:
    refused = TraceEvent(2, "alice", "", "packet-dropped", "refused", {"packet": 1, "source": A, "destination": B})
    made = recording(sent(1, "alice", 1), refused, sent(3, "alice", 2), received(4, "bob", 1))
    assert ids(made)[-1] == ("bob", "received", 2)
    assert ids(made)[1] == ("alice", "dropped", 1)


def test_a_packet_from_elsewhere_gets_a_new_id() -> None:
    made = recording(sent(1, "alice", 1, length=6), received(2, "bob", 1))
    assert ids(made) == [("alice", "sent", 1), ("bob", "received", 2)]


def test_packet_ids_in_other_events_are_replaced_too() -> None:
    pair = TraceEvent(
        3, "bob", "ice", "pair", "answered", {"pair": 1, "local": "", "remote": "", "old": "", "new": "", "packet": 7}
    )
    nothing = TraceEvent(4, "bob", "ice", "note", "without a packet", {"packet": 0})
    made = recording(sent(1, "alice", 4), received(2, "bob", 7), pair, nothing)
    assert ids(made) == [("alice", "sent", 1), ("bob", "received", 1), ("bob", "pair", 1), ("bob", "note", 0)]


def test_the_written_trace_can_be_read() -> None:
    file = io.StringIO()
    made = recording(sent(1, "alice", 1), received(2, "bob", 9))
    made.write_trace(file)
    file.seek(0)
    assert read_trace(file) == made.events()


def packet(id: int, source: str, destination: str, data: bytes = b"hello") -> IpPacket:
    return IpPacket(id, Address.parse(source), Address.parse(destination), Protocol.UDP, data)


def test_payloads_are_found_by_source_and_by_destination() -> None:
    made = Recording()
    made.packet(2, "bob", packet(1, A, B, b"second"))
    made.packet(1, "alice", packet(1, B, A, b"first"))
    assert payloads_at(made.packets(), [Address.parse(A)]) == [b"first", b"second"]
    assert payloads_at(made.packets(), [Address.parse("127.0.0.1:3")]) == []


def test_the_direction_of_a_packet_follows_from_the_flows() -> None:
    made = recording(
        TraceEvent(0, "alice", "", "flow-opened", fields={"flow": "flow 1", "transport": "udp", "local": A})
    )
    assert made.sent_by("alice")(packet(1, A, B))
    assert not made.sent_by("alice")(packet(1, B, A))
    assert not made.sent_by("bob")(packet(1, A, B))


@pytest.mark.peer("tshark")
def test_wireshark_reads_the_capture_of_the_demo(run: Run) -> None:
    def fields(display: str, *names: str) -> list[list[str]]:
        command = [*TSHARK, "-r", str(run.pcap), "-Y", display, "-T", "fields"]
        done = subprocess.run(
            [*command, *(part for name in names for part in ("-e", name))], capture_output=True, timeout=60, check=True
        )
        return [line.split("\t") for line in done.stdout.decode().splitlines()]

    assert shutil.which("tshark")
    assert fields("_ws.malformed || stun.att.crc32.bad || udp.length.bad", "frame.number") == []
    rows = fields("udp", "frame.interface_name", "frame.comment", "frame.time_epoch")
    assert len(rows) == _written(run.pcap)
    assert {row[0] for row in rows} == {"alice", "bob"}
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)
    in_trace = {f"packet {event.fields['packet']}" for event in run.events() if event.kind.startswith("packet-")}
    assert {row[1] for row in rows} <= in_trace, "the comment is the packet's id in the trace"
    assert all(int(each[0]) for each in fields("stun", "stun.att.crc32.status")), "every FINGERPRINT is right"


def _written(pcap: Path) -> int:
    """Count the enhanced packet blocks of a pcapng file."""
    data, at, count = pcap.read_bytes(), 0, 0
    while at < len(data):
        kind, size = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (0, 4))
        count += kind == 6
        at += size
    return count
