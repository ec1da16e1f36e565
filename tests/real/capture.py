"""Captures by tshark, which checks our packets independently of our code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.netns import Namespace

FIELDS = {
    "number": "frame.number", "time": "frame.time_epoch", "ip4": "ip.src", "ip4_to": "ip.dst", "ip6": "ipv6.src",
    "ip6_to": "ipv6.dst", "port": "udp.srcport", "port_to": "udp.dstport", "type": "stun.type", "id": "stun.id",
    "attributes": "stun.att.type", "payload": "udp.payload",
}  # fmt: skip
TSHARK = ["tshark", "-n", "-o", "udp.try_heuristic_first:TRUE"]
"""tshark dissects by content before port: an ephemeral port may be registered for another protocol."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram of a capture, as tshark dissects it."""

    number: int
    time: float
    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes
    stun: int | None
    """The STUN message type; None if the datagram is not STUN."""
    transaction: str
    attributes: tuple[int, ...]

    @property
    def flow(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return self.source, self.destination


@contextmanager
def captured(where: Namespace, file: Path) -> Iterator[None]:
    """Capture all packets of the namespace's loopback during the block."""
    tshark = where.popen("tshark", "-n", "-q", "-i", "lo", "-w", file, stderr=subprocess.PIPE, text=True)
    try:
        assert tshark.stderr is not None
        output = ""
        while "Capturing on" not in output:
            line = tshark.stderr.readline()
            assert line, f"tshark ended: {output}"
            output += line
        # tshark prints this before it captures: a packet in the file proves that it captures.
        send_until_captured(where, file, b"knock knock", 9)
        yield
    finally:
        tshark.terminate()
        tshark.communicate(timeout=20)


def send_until_captured(where: Namespace, file: Path, payload: bytes, port: int) -> None:
    """Send a datagram to a loopback port repeatedly until it is in the file."""
    send = (
        "import socket, sys, time, pathlib\n"
        "payload = bytes.fromhex(sys.argv[2])\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(200):\n"
        "    s.sendto(payload, ('127.0.0.1', int(sys.argv[3])))\n"
        "    time.sleep(0.05)\n"
        "    if payload in pathlib.Path(sys.argv[1]).read_bytes(): sys.exit(0)\n"
        "sys.exit('tshark does not capture')\n"
    )
    where.run("python3", "-c", send, file, payload.hex(), str(port))


def read(file: Path, display_filter: str) -> list[dict[str, Any]]:
    """Return the packets that match a display filter of tshark, dissected."""
    done = subprocess.run(
        [*TSHARK, "-r", str(file), "-Y", display_filter, "-T", "json"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return [packet["_source"]["layers"] for packet in found]


def datagrams(file: Path) -> list[Datagram]:
    """Return every UDP datagram except those of `send_until_captured`."""
    options = [argument for field in FIELDS.values() for argument in ("-e", field)]
    done = subprocess.run(
        [*TSHARK, "-r", str(file), "-Y", "udp and not icmp and not udp.port == 9", "-T", "fields", *options],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]
    return [
        Datagram(
            number=int(row["number"]),
            time=float(row["time"]),
            source=(row["ip4"] or row["ip6"], int(row["port"])),
            destination=(row["ip4_to"] or row["ip6_to"], int(row["port_to"])),
            payload=bytes.fromhex(row["payload"]),
            stun=int(row["type"], 16) if row["type"] else None,
            transaction=row["id"],
            attributes=tuple(int(number, 16) for number in re.findall(r"0x[0-9a-f]+", row["attributes"])),
        )
        for row in rows
    ]


def tcp_payloads(file: Path) -> list[bytes]:
    """Return the payloads of TCP segments and of WebSocket frames, unmasked."""
    fields = ["tcp.payload", "websocket.payload.text", "data.data"]
    options = [argument for field in fields for argument in ("-e", field)]
    done = subprocess.run(
        [*TSHARK, "-r", str(file), "-Y", "tcp.len > 0", "-T", "fields", "-E", "separator=|", *options],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    parts = [part for line in done.stdout.splitlines() for part in line.split("|")]
    return [bytes.fromhex(part) if re.fullmatch(r"(?:[0-9a-f]{2})+", part) else part.encode() for part in parts if part]
