"""Writes IP packets as pcapng files for Wireshark (draft-ietf-opsawg-pcapng).

A file is one section of little-endian blocks. Each capture point (an interface of a host, a link) is an interface of
the file, declared before its first packet. It has a name, raw IP (LINKTYPE_RAW) and time stamps in nanoseconds. A
packet may have a comment, such as its id in the trace or the reason of its drop.
"""

from __future__ import annotations

from struct import Struct
from typing import IO, Final

from .addresses import Address
from .arguments import binary_file, number
from .instants import Instant
from .machine import IpFields
from .packets import IpPacket, Protocol, encode

LINKTYPE_RAW: Final = 101
_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_ENHANCED_PACKET = 6
_BLOCK = Struct("<II")
_OPTION = Struct("<HH")
_PACKET = Struct("<IIIII")
_COMMENT, _NAME, _RESOLUTION, _FLAGS, _APPLICATION = 1, 2, 9, 2, 4
_END = _OPTION.pack(0, 0)


class PcapngWriter:
    """Writes packets to a binary file, which the caller closes.

    `epoch` is added to each instant: the nanoseconds from 1970 to the zero of the clock. A live capture then shows the
    time of day. With 0, a simulated run starts in 1970.
    """

    def __init__(self, file: IO[bytes], *, epoch: int = 0) -> None:
        binary_file("the file of a PcapngWriter", file)
        number("epoch", epoch, 0, 2**63)
        self._file = file
        self._epoch = epoch
        self._interfaces: dict[str, int] = {}
        header = b"\x4d\x3c\x2b\x1a" + b"\x01\0\0\0" + b"\xff" * 8
        self._block(_SECTION, header + _option(_APPLICATION, b"polynya") + _END)

    def write(
        self, at: Instant, interface: str, packet: IpPacket | bytes, *, outbound: bool | None = None, comment: str = ""
    ) -> None:
        """Write one packet that was captured at `interface`; `outbound` is its direction, None if it is not known."""
        number = self._interfaces.get(interface)
        if number is None:
            number = self._declare(interface)
        data = packet if isinstance(packet, bytes) else encode(packet)
        stamp = at + self._epoch
        body = _PACKET.pack(number, stamp >> 32 & 0xFFFFFFFF, stamp & 0xFFFFFFFF, len(data), len(data)) + _padded(data)
        options = _option(_COMMENT, comment.encode()[:0xFFF0]) if comment else b""
        if outbound is not None:
            options += _option(_FLAGS, (2 if outbound else 1).to_bytes(4, "little"))
        self._block(_ENHANCED_PACKET, body + (options + _END if options else b""))

    def _declare(self, name: str) -> int:
        number = self._interfaces[name] = len(self._interfaces)
        options = _option(_NAME, name.encode()[:255]) + _option(_RESOLUTION, b"\x09") + _END
        self._block(_INTERFACE, LINKTYPE_RAW.to_bytes(2, "little") + bytes(6) + options)
        return number

    def _block(self, kind: int, body: bytes) -> None:
        size = 12 + len(body)
        self._file.write(_BLOCK.pack(kind, size) + body + size.to_bytes(4, "little"))


def datagram_packet(
    source: Address, destination: Address, data: bytes, *, id: int = 0, ip: IpFields | None = None
) -> IpPacket:
    """Build the IP packet of a UDP datagram, for captures of live runs, which see datagrams only.

    A wildcard source of the other address family is replaced by the wildcard of the destination's family.
    """
    if source.family != destination.family:
        source = Address("::" if destination.family == 6 else "0.0.0.0", source.port)  # noqa: S104
    packet = IpPacket(id, source, destination, Protocol.UDP, data)
    if ip is not None:
        packet.ttl = ip.ttl or 64
        packet.dscp = ip.dscp or 0
        packet.ecn = ip.ecn.value if ip.ecn else 0
        packet.dont_fragment = bool(ip.dont_fragment)
    return packet


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
