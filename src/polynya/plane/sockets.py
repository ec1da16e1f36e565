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
LISTENER_BUFFER: Final = 1 << 22
"""Bytes of receive buffer that are asked for, for each listener: what a busy server's lack loses is never told."""
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


def bind_listeners(address: Address, count: int, buffer: int = LISTENER_BUFFER) -> list[socket.socket]:
    """So many UDP sockets of one address, between which the system spreads clients, each always to the same one.

    The spread stays as it is while all of them are open, whoever reads them. OSError as the system says.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            made.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = address.port or (made[0].getsockname()[1] if len(made) > 1 else 0)
            sock.bind(name_of(address.with_port(port), sock))
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made
