"""Sockets of the portable plane: relay ports, listeners, and conversion of socket addresses."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final

from polynya.core.addresses import IPV6, Address
from polynya.turn.server.commands import Relay

SockAddr = tuple[Any, ...]

RELAY_BUFFER: Final = 1 << 18
"""Receive buffer that is requested for each relay port, in bytes."""
LISTENER_BUFFER: Final = 1 << 22
"""Receive buffer that is requested for each listener, in bytes. A full buffer loses packets without a report."""
DONT_FRAGMENT: Final = 2
MAY_FRAGMENT: Final = 0
_IP_RECVERR, _IPV6_RECVERR = 11, 25
# Integers, since relay sockets are made often and each use of an enum of `socket` costs a conversion.
_AF_INET, _AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_SOL_SOCKET, _SO_RCVBUF = int(socket.SOL_SOCKET), int(socket.SO_RCVBUF)
_IPPROTO_IP, _IPPROTO_IPV6 = int(socket.IPPROTO_IP), int(socket.IPPROTO_IPV6)
_BLOCKING = not hasattr(socket, "SOCK_NONBLOCK")
_DATAGRAMS = int(socket.SOCK_DGRAM) | getattr(socket, "SOCK_NONBLOCK", 0)
_FRAGMENTATION4 = _IPPROTO_IP, 10  # IP_MTU_DISCOVER
_FRAGMENTATION6 = _IPPROTO_IPV6, 23  # IPV6_MTU_DISCOVER


def bind_relay(relay: Relay, *, errors: bool) -> socket.socket:
    """Bind a relay port without DF; `errors` turns on its error queue. Raises OSError as the system does."""
    sock = socket.socket(_AF_INET6 if ":" in relay.host else _AF_INET, _DATAGRAMS)
    try:
        if _BLOCKING:
            sock.setblocking(False)
        sock.setsockopt(_SOL_SOCKET, _SO_RCVBUF, RELAY_BUFFER)
        if ":" in relay.host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(*_FRAGMENTATION6, MAY_FRAGMENT)
            if errors:
                sock.setsockopt(_IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(*_FRAGMENTATION4, MAY_FRAGMENT)
            if errors:
                sock.setsockopt(_IPPROTO_IP, _IP_RECVERR, 1)
        sock.bind((relay.host, relay.port))
    except BaseException:
        sock.close()
        raise
    return sock


def fragmentation(family: int) -> tuple[int, int]:
    """Return the socket option that sets DF, for IPv4 or IPv6."""
    return _FRAGMENTATION6 if family == IPV6 else _FRAGMENTATION4


def name_of(address: Address) -> SockAddr:
    """Convert an address to a socket address."""
    host, port, zone = address
    if ":" not in host:
        return (host, port)
    return (host, port, 0, socket.if_nametoindex(zone) if zone else 0)


def address_of(name: Sequence[Any]) -> Address:
    """Convert a socket address to an address."""
    if len(name) == 2:
        return Address(name[0], name[1])
    scope = name[3]
    return Address(name[0].partition("%")[0], name[1], socket.if_indextoname(scope) if scope else "")


def bind_listeners(address: Address, count: int, buffer: int = LISTENER_BUFFER) -> list[socket.socket]:
    """Bind `count` UDP sockets to one address; the system sends all packets of a client to the same socket.

    That holds while all of them are open, whichever process reads them. Raises OSError as the system does.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made: list[socket.socket] = []
    shared = count > 1
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            made.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if shared and (made[1:] or address.port):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = address.port or (made[0].getsockname()[1] if len(made) > 1 else 0)
            sock.bind(name_of(address.with_port(port)))
            if shared:  # only after bind, so that the system chooses no port that another server shares
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made
