"""ICMP errors of peers as clients are told them: a Data indication with ICMP (RFC 8656, sections 11.5 and 18.13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from polynya.core.machine import IcmpKind
from polynya.stun.attributes import ICMP, XOR_PEER_ADDRESS, IcmpValue
from polynya.stun.message import Message
from polynya.stun.registry import Method

from .commands import PeerError

# Type and code over IPv4, then over IPv6 (RFC 792, 1812, 4443).
_NUMBERS: Final[Mapping[IcmpKind, tuple[tuple[int, int], tuple[int, int]]]] = {
    IcmpKind.NET_UNREACHABLE: ((3, 0), (1, 0)),
    IcmpKind.HOST_UNREACHABLE: ((3, 1), (1, 3)),
    IcmpKind.PORT_UNREACHABLE: ((3, 3), (1, 4)),
    IcmpKind.PROHIBITED: ((3, 13), (1, 1)),
    IcmpKind.TOO_BIG: ((3, 4), (2, 0)),
    IcmpKind.TTL_EXCEEDED: ((11, 0), (3, 0)),
}


def indication(transaction_id: bytes, report: PeerError) -> bytes | None:
    """The Data indication, or None for an error that has no place in it."""
    numbers = _NUMBERS.get(report.kind)
    if numbers is None:
        return None
    kind, code = numbers[report.peer.family == 6]
    value = IcmpValue(kind, code, min(report.mtu or 0, 0xFFFFFFFF).to_bytes(4, "big"))
    return Message.indication(Method.DATA, transaction_id, {XOR_PEER_ADDRESS: (report.peer,), ICMP: value}).encode()
