"""Reads Send indications and writes Data indications (RFC 8656, section 11).

Data planes relay a packet without a channel by these two messages. The third message here reports an ICMP error of a
peer to the client: a Data indication with ICMP (RFC 8656, sections 11.5 and 18.13).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from polynya.core.addresses import Address, pack_host
from polynya.core.errors import DecodeError
from polynya.core.machine import IcmpKind
from polynya.stun.attributes import DATA, DONT_FRAGMENT, ICMP, XOR_PEER_ADDRESS, IcmpValue
from polynya.stun.message import Message, decode
from polynya.stun.registry import MAGIC_COOKIE_BYTES, AttributeType, Class, Method, message_type

from .commands import PeerError

SEND_TYPE: Final = message_type(Method.SEND, Class.INDICATION).to_bytes(2, "big")
DATA_TYPE: Final = message_type(Method.DATA, Class.INDICATION)
MAX_DATAGRAM: Final = 65_507
"""Payload bytes of the largest UDP datagram over IPv4."""
HEADERS: Final = 28
"""Bytes of the IPv4 and UDP headers. Rate limits count them, since empty datagrams can flood a link, too."""

_HEAD: Final = struct.Struct("!HH4s12s").pack
_ATTRIBUTE: Final = struct.Struct("!HH").pack
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_XOR_PEER: Final = int(AttributeType.XOR_PEER_ADDRESS)
_DATA: Final = int(AttributeType.DATA)
_COOKIE: Final = int.from_bytes(MAGIC_COOKIE_BYTES, "big")

# ICMP type and code over IPv4, then over IPv6 (RFC 792, 1812, 4443).
_ICMP: Final[Mapping[IcmpKind, tuple[tuple[int, int], tuple[int, int]]]] = {
    IcmpKind.NET_UNREACHABLE: ((3, 0), (1, 0)),
    IcmpKind.HOST_UNREACHABLE: ((3, 1), (1, 3)),
    IcmpKind.PORT_UNREACHABLE: ((3, 3), (1, 4)),
    IcmpKind.PROHIBITED: ((3, 13), (1, 1)),
    IcmpKind.TOO_BIG: ((3, 4), (2, 0)),
    IcmpKind.TTL_EXCEEDED: ((11, 0), (3, 0)),
}


class SendIndication(NamedTuple):
    """The attributes of a Send indication."""

    peer: Address
    data: bytes
    dont_fragment: bool


def parse_send(data: bytes) -> SendIndication | None:
    """Parse a Send indication; None if it is malformed, incomplete, or has an unknown required attribute."""
    try:
        message = decode(data)
    except DecodeError:
        return None
    if message.method != Method.SEND or message.cls is not Class.INDICATION or message.unknown_required:
        return None
    peers, payload = message.get(XOR_PEER_ADDRESS), message.get(DATA)
    if peers is None or payload is None:
        return None
    return SendIndication(peers[0], payload, message.get(DONT_FRAGMENT) is True)


def data_indication(transaction_id: bytes, peer: Address, data: bytes) -> bytes:
    """Encode a Data indication. Raises ValueError if the data doesn't fit into a message."""
    packed = pack_host(peer.host)
    size = len(packed)
    mask = MAGIC_COOKIE_BYTES + transaction_id
    host = int.from_bytes(packed, "big") ^ int.from_bytes(mask[:size], "big")
    address = bytes((0, 1 if size == 4 else 2)) + (peer.port ^ _COOKIE >> 16).to_bytes(2, "big")
    length = 12 + size + len(data) + (-len(data) & 3)
    if length > 0xFFFC:
        raise ValueError(f"a Data indication cannot hold {len(data)} bytes")
    return b"".join(
        (
            _HEAD(DATA_TYPE, length, MAGIC_COOKIE_BYTES, transaction_id),
            _ATTRIBUTE(_XOR_PEER, 4 + size),
            address,
            host.to_bytes(size, "big"),
            _ATTRIBUTE(_DATA, len(data)),
            data,
            _PADDING[len(data) & 3],
        )
    )


def icmp_indication(transaction_id: bytes, report: PeerError) -> bytes | None:
    """Encode a Data indication with ICMP; None for a kind of error that has no ICMP type and code."""
    numbers = _ICMP.get(report.kind)
    if numbers is None:
        return None
    kind, code = numbers[report.peer.family == 6]
    value = IcmpValue(kind, code, min(report.mtu or 0, 0xFFFFFFFF).to_bytes(4, "big"))
    return Message.indication(Method.DATA, transaction_id, {XOR_PEER_ADDRESS: (report.peer,), ICMP: value}).encode()
