"""The error queue's entries (ip(7), ipv6(7)), byte by byte."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from polynya.aio.icmp import Report, parse_report
from polynya.core.machine import IcmpKind

DESTINATION = ("203.0.113.9", 4000)


def report(origin: int, kind: int, code: int, *, number: int = errno.EHOSTUNREACH, info: int = 0) -> Report:
    """Parse an entry that 192.0.2.254, 2001:db8::fe or (for origin 1) this host sent."""
    offenders = {
        1: bytes(16),
        2: struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_pton(socket.AF_INET, "192.0.2.254")),
        3: struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, "2001:db8::fe"), 0),
    }
    return parse_report(struct.pack("=IBBBxII", number, origin, kind, code, info, 0) + offenders[origin], DESTINATION)


@pytest.mark.parametrize(
    ("kind", "code", "meaning"),
    [
        (3, 0, IcmpKind.NET_UNREACHABLE),
        (3, 1, IcmpKind.HOST_UNREACHABLE),
        (3, 2, IcmpKind.PORT_UNREACHABLE),
        (3, 3, IcmpKind.PORT_UNREACHABLE),
        (3, 5, IcmpKind.OTHER),
        (3, 9, IcmpKind.PROHIBITED),
        (3, 10, IcmpKind.PROHIBITED),
        (3, 13, IcmpKind.PROHIBITED),
        (11, 0, IcmpKind.TTL_EXCEEDED),
        (12, 0, IcmpKind.OTHER),
    ],
)
def test_icmp_codes_have_the_meaning_of_rfc_792_and_1812(kind: int, code: int, meaning: IcmpKind) -> None:
    assert report(2, kind, code) == Report(DESTINATION, meaning, "192.0.2.254", None)


@pytest.mark.parametrize(
    ("kind", "code", "meaning"),
    [
        (1, 0, IcmpKind.NET_UNREACHABLE),
        (1, 1, IcmpKind.PROHIBITED),
        (1, 3, IcmpKind.HOST_UNREACHABLE),
        (1, 4, IcmpKind.PORT_UNREACHABLE),
        (1, 5, IcmpKind.PROHIBITED),
        (1, 6, IcmpKind.PROHIBITED),
        (3, 0, IcmpKind.TTL_EXCEEDED),
        (4, 1, IcmpKind.OTHER),
    ],
)
def test_icmpv6_codes_have_the_meaning_of_rfc_4443(kind: int, code: int, meaning: IcmpKind) -> None:
    assert report(3, kind, code) == Report(DESTINATION, meaning, "2001:db8::fe", None)


def test_too_big_has_the_mtu_that_the_router_sent() -> None:
    assert report(2, 3, 4, info=1280) == Report(DESTINATION, IcmpKind.TOO_BIG, "192.0.2.254", 1280)
    assert report(2, 3, 4, info=0) == Report(DESTINATION, IcmpKind.TOO_BIG, "192.0.2.254", None)
    assert report(3, 2, 0, info=1280) == Report(DESTINATION, IcmpKind.TOO_BIG, "2001:db8::fe", 1280)


def test_an_error_of_this_host_has_no_origin() -> None:
    assert report(1, 0, 0, number=errno.EMSGSIZE, info=1500) == Report(DESTINATION, IcmpKind.TOO_BIG, None, 1500)
    assert report(1, 0, 0) == Report(DESTINATION, IcmpKind.OTHER, None, None)


def test_only_too_big_has_an_mtu() -> None:
    assert report(2, 3, 3, info=99).mtu is None
