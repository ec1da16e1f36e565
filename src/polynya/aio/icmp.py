"""ICMP errors from Linux' error queue of a UDP socket (ip(7), IP_RECVERR).

The kernel also fails the *next* call on the socket with the pending error, whatever its destination. The caller of the
failed call therefore reads the queue first, which clears the error, and then tries again.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from polynya.core.machine import IcmpKind

from .features import LINUX
from .sockets import IP_RECVERR, IPV6_RECVERR

_HEAD: Final = struct.Struct("=IBBBxII")  # sock_extended_err: errno, origin, type, code, info, data
_LOCAL, _ICMP, _ICMP6 = 1, 2, 3
_MSG_ERRQUEUE: Final[int] = getattr(socket, "MSG_ERRQUEUE", 0x2000)

_UNREACHABLE4: Final = {
    0: IcmpKind.NET_UNREACHABLE,
    1: IcmpKind.HOST_UNREACHABLE,
    2: IcmpKind.PORT_UNREACHABLE,  # protocol unreachable: no port can work
    3: IcmpKind.PORT_UNREACHABLE,
    4: IcmpKind.TOO_BIG,
    6: IcmpKind.NET_UNREACHABLE,
    7: IcmpKind.HOST_UNREACHABLE,
    8: IcmpKind.HOST_UNREACHABLE,
    9: IcmpKind.PROHIBITED,
    10: IcmpKind.PROHIBITED,
    11: IcmpKind.NET_UNREACHABLE,
    12: IcmpKind.HOST_UNREACHABLE,
    13: IcmpKind.PROHIBITED,
}
_UNREACHABLE6: Final = {
    0: IcmpKind.NET_UNREACHABLE,
    1: IcmpKind.PROHIBITED,
    2: IcmpKind.NET_UNREACHABLE,
    3: IcmpKind.HOST_UNREACHABLE,
    4: IcmpKind.PORT_UNREACHABLE,
    5: IcmpKind.PROHIBITED,
    6: IcmpKind.PROHIBITED,
}


class Report(NamedTuple):
    """One entry of the error queue."""

    destination: tuple[object, ...]
    """The destination of the datagram, as a socket address."""
    kind: IcmpKind
    origin: str | None
    mtu: int | None


def read_errors(sock: socket.socket, limit: int = 64) -> list[Report]:
    """Read up to `limit` reports from a socket's error queue; systems without a queue have none."""
    reports: list[Report] = []
    if not LINUX:
        return reports
    for _ in range(limit):
        try:
            _, messages, _, destination = sock.recvmsg(0, 512, _MSG_ERRQUEUE)
        except OSError:
            break  # nothing left, or the socket is closed
        for level, kind, data in messages:
            of_ip = level == socket.IPPROTO_IP and kind == IP_RECVERR
            if of_ip or (level == socket.IPPROTO_IPV6 and kind == IPV6_RECVERR):
                reports.append(parse_report(data, destination))
    return reports


def parse_report(data: bytes, destination: tuple[object, ...]) -> Report:
    """Decode a `sock_extended_err` and the address of the error's sender, which follows it."""
    number, origin, icmp_type, code, info, _ = _HEAD.unpack_from(data)
    kind = IcmpKind.OTHER
    if origin == _ICMP:
        if icmp_type == 3:
            kind = _UNREACHABLE4.get(code, IcmpKind.OTHER)
        elif icmp_type == 11:
            kind = IcmpKind.TTL_EXCEEDED
    elif origin == _ICMP6:
        if icmp_type == 1:
            kind = _UNREACHABLE6.get(code, IcmpKind.OTHER)
        elif icmp_type == 2:
            kind = IcmpKind.TOO_BIG
        elif icmp_type == 3:
            kind = IcmpKind.TTL_EXCEEDED
    elif origin == _LOCAL and number == errno.EMSGSIZE:
        kind = IcmpKind.TOO_BIG
    mtu = info if kind is IcmpKind.TOO_BIG and info else None
    return Report(destination, kind, _offender(data[_HEAD.size :]), mtu)


def _offender(sockaddr: bytes) -> str | None:
    if len(sockaddr) < 8:
        return None
    (family,) = struct.unpack_from("=H", sockaddr)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return None
