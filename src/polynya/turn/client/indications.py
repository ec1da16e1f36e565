"""Send and Data indications (RFC 8656, section 11), and the ICMP errors that servers forward in them (11.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.machine import IcmpKind
from polynya.stun.attributes import DATA, DONT_FRAGMENT, ICMP, XOR_PEER_ADDRESS, Attribute, IcmpValue
from polynya.stun.message import MAX_ATTRIBUTES, Message
from polynya.stun.registry import Method
from polynya.stun.reported import why_impossible

from .events import PeerUnreachable, RelayedData

MAX_DATA: Final = MAX_ATTRIBUTES - 40
"""Bytes of data that fit an indication, with the peer's address and DONT-FRAGMENT."""

SEND_HEADER: Final[Mapping[int, int]] = {IPV4: 20 + 12 + 4, IPV6: 20 + 24 + 4}
"""Bytes of a Send indication besides its data, by the family of the peer: STUN header, XOR-PEER-ADDRESS, DATA.

Up to three bytes of padding follow the data; DONT-FRAGMENT adds 4 bytes.
"""

_KINDS4: Final[Mapping[tuple[int, int], IcmpKind]] = {
    (3, 0): IcmpKind.NET_UNREACHABLE,
    (3, 1): IcmpKind.HOST_UNREACHABLE,
    (3, 3): IcmpKind.PORT_UNREACHABLE,
    (3, 4): IcmpKind.TOO_BIG,
    (3, 9): IcmpKind.PROHIBITED,
    (3, 10): IcmpKind.PROHIBITED,
    (3, 13): IcmpKind.PROHIBITED,
    (11, 0): IcmpKind.TTL_EXCEEDED,
}
_KINDS6: Final[Mapping[tuple[int, int], IcmpKind]] = {
    (1, 0): IcmpKind.NET_UNREACHABLE,
    (1, 1): IcmpKind.PROHIBITED,
    (1, 3): IcmpKind.HOST_UNREACHABLE,
    (1, 4): IcmpKind.PORT_UNREACHABLE,
    (2, 0): IcmpKind.TOO_BIG,
    (3, 0): IcmpKind.TTL_EXCEEDED,
}


def send_indication(transaction_id: bytes, peer: Address, data: bytes, *, dont_fragment: bool) -> bytes:
    """Return a Send indication with `data` for a peer. `dont_fragment` requests the DF bit."""
    values: dict[Attribute[Any], Any] = {XOR_PEER_ADDRESS: (peer,), DATA: data}
    if dont_fragment:
        values[DONT_FRAGMENT] = True
    return Message.indication(Method.SEND, transaction_id, values).encode()


def read_data_indication(message: Message, packet: int) -> RelayedData | PeerUnreachable | None:
    """Return the datagram or ICMP error in a Data indication; None if it holds neither, or an impossible peer."""
    peers, data, icmp = message.get(XOR_PEER_ADDRESS), message.get(DATA), message.get(ICMP)
    if not peers or message.unknown_required or why_impossible(peers[0]):
        return None
    if data is not None:
        return RelayedData(peers[0], data, packet)
    return None if icmp is None else unreachable(peers[0], icmp)


def unreachable(peer: Address, icmp: IcmpValue) -> PeerUnreachable:
    """Return the event for an ICMP error, whose type and code are of the peer's IP version."""
    kinds = _KINDS6 if peer.family == IPV6 else _KINDS4
    kind = kinds.get((icmp.type, icmp.code), IcmpKind.OTHER)
    mtu = int.from_bytes(icmp.data, "big") if kind is IcmpKind.TOO_BIG else None
    return PeerUnreachable(peer=peer, kind=kind, type=icmp.type, code=icmp.code, mtu=mtu or None)
