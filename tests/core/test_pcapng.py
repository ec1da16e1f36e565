"""Capture files for Wireshark."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.machine import Ecn, IpFields
from polynya.core.packets import IpPacket, Protocol
from polynya.core.pcapng import PcapngWriter, datagram_packet

A4, B4 = Address("192.0.2.1", 5000), Address("203.0.113.9", 9)
A6, B6 = Address("2001:db8::1", 5000), Address("2001:db8:1::9", 9)


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        kind, size = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4))
        assert int.from_bytes(data[size - 4 : size], "little") == size
        assert size % 4 == 0
        found.append((kind, data[8 : size - 4]))
        data = data[size:]
    return found


def test_an_interface_is_declared_once_before_its_first_packet() -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    for name in ("alice/eth0", "bob/eth0", "alice/eth0"):
        writer.write(Instant(0), name, datagram_packet(A4, B4, b"x"))
    kinds = [kind for kind, _ in blocks(file.getvalue())]
    assert kinds == [0x0A0D0D0A, 1, 6, 1, 6, 6]
    numbers = [int.from_bytes(body[:4], "little") for kind, body in blocks(file.getvalue()) if kind == 6]
    assert numbers == [0, 1, 0]


def test_the_time_stamp_is_in_nanoseconds_from_the_epoch_given() -> None:
    file = io.BytesIO()
    PcapngWriter(file, epoch=1_700_000_000_000_000_000).write(Instant(123_456_789), "x", datagram_packet(A4, B4, b"x"))
    body = blocks(file.getvalue())[-1][1]
    high, low = int.from_bytes(body[4:8], "little"), int.from_bytes(body[8:12], "little")
    assert high << 32 | low == 1_700_000_000_123_456_789


def test_a_datagram_is_converted_to_its_ip_packet() -> None:
    packet = datagram_packet(A6, B6, b"data", id=5, ip=IpFields(ecn=Ecn.CE, dscp=46, ttl=3, dont_fragment=True))
    assert packet == IpPacket(5, A6, B6, Protocol.UDP, b"data", ttl=3, ecn=3, dscp=46, dont_fragment=True)
    assert datagram_packet(Address("0.0.0.0", 9), B6, b"").source == Address("::", 9)
    assert datagram_packet(Address("::", 9), B4, b"").source == Address("0.0.0.0", 9)


@pytest.mark.peer("tshark")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.write(Instant(1_500_000_001), "alice/eth0", datagram_packet(A4, B4, b"one"), outbound=True)
        writer.write(Instant(2), "bob/wlan0", datagram_packet(A6, B6, b"two"), comment="dropped: no route")
    run = subprocess.run(
        ["tshark", "-r", str(path), "-T", "json", "-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"],
        capture_output=True,
        check=True,
    )
    first, second = (packet["_source"]["layers"] for packet in json.loads(run.stdout))
    assert first["frame"]["frame.interface_id_tree"]["frame.interface_name"] == "alice/eth0"
    assert first["frame"]["frame.time_epoch"].endswith("1.500000001") or "00:00:01.500000001" in json.dumps(first)
    assert first["ip"]["ip.checksum.status"] == "1"
    assert first["udp"]["udp.checksum.status"] == second["udp"]["udp.checksum.status"] == "1"
    assert second["ipv6"]["ipv6.src"] == A6.host
    assert "dropped: no route" in json.dumps(second)
