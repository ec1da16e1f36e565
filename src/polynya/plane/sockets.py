"""System calls of the portable plane: relay sockets, and addresses as the system writes them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.turn.server.commands import Relay

SockAddr = tuple[Any, ...]

RELAY_BUFFER: Final = 1 << 18
"""Bytes of receive buffer that are asked for, for each relay port."""
DONT_FRAGMENT: Final = 2
MAY_FRAGMENT: Final = 0
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_IP_RECVERR, _IPV6_RECVERR = 11, 25


def bind_relay(relay: Relay, *, errors: bool) -> socket.socket:
    """A relay's socket: bound, without DF, with an error queue if `errors` are wanted. OSError as the system says."""
    family = socket.AF_INET6 if ":" in relay.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RELAY_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(*fragmentation(sock), MAY_FRAGMENT)
        if errors:
            level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
            sock.setsockopt(level, _IPV6_RECVERR if family == socket.AF_INET6 else _IP_RECVERR, 1)
        sock.bind((relay.host, relay.port))
    except BaseException:
        sock.close()
        raise
    return sock


def fragmentation(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER
    return socket.IPPROTO_IP, _IP_MTU_DISCOVER


def name_of(address: Address, sock: socket.socket) -> SockAddr:
    if sock.family == socket.AF_INET6:
        scope = socket.if_nametoindex(address.zone) if address.zone else 0
        return (address.host, address.port, 0, scope)
    return (address.host, address.port)


def address_of(name: Sequence[object]) -> Address:
    scope = name[3] if len(name) > 3 else 0
    host, port = str(name[0]).partition("%")[0], int(str(name[1]))
    return Address(host, port, socket.if_indextoname(scope) if isinstance(scope, int) and scope else "")
