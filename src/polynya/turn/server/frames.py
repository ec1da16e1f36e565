"""The two messages that carry data without a channel, as data planes read and write them (RFC 8656, section 11)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from polynya.core.addresses import Address, pack_host
from polynya.core.errors import DecodeError
from polynya.stun.attributes import DATA, DONT_FRAGMENT, XOR_PEER_ADDRESS
from polynya.stun.message import decode
from polynya.stun.registry import MAGIC_COOKIE_BYTES, AttributeType, Class, Method, message_type

SEND_TYPE: Final = message_type(Method.SEND, Class.INDICATION).to_bytes(2, "big")
DATA_TYPE: Final = message_type(Method.DATA, Class.INDICATION)
MAX_DATAGRAM: Final = 65_507
"""Payload bytes of the largest UDP datagram over IPv4."""
HEADERS: Final = 28
"""Bytes of the IPv4 and UDP headers: a rate counts them, for a flood of empty datagrams is a flood, too."""

_HEAD: Final = struct.Struct("!HH4s12s").pack
_ATTRIBUTE: Final = struct.Struct("!HH").pack
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_XOR_PEER: Final = int(AttributeType.XOR_PEER_ADDRESS)
_DATA: Final = int(AttributeType.DATA)
_COOKIE: Final = int.from_bytes(MAGIC_COOKIE_BYTES, "big")


class Sending(NamedTuple):
    """What a Send indication asks for."""

    peer: Address
    data: bytes
    dont_fragment: bool


def parse_send(data: bytes) -> Sending | None:
    """A Send indication's peer and data, or None when it is not one that can be carried out."""
    try:
        message = decode(data)
    except DecodeError:
        return None
    if message.method != Method.SEND or message.cls is not Class.INDICATION or message.unknown_required:
        return None
    peers, payload = message.get(XOR_PEER_ADDRESS), message.get(DATA)
    if peers is None or payload is None:
        return None
    return Sending(peers[0], payload, message.get(DONT_FRAGMENT) is True)


def data_indication(transaction_id: bytes, peer: Address, data: bytes) -> bytes:
    """A Data indication. ValueError when it would not fit a message."""
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
