"""System calls on sockets: opening UDP sockets, the IP fields of datagrams, and the meaning of errors.

This file does not use an event loop. A feature that the system does not have is left out and is not an error.
"""

from __future__ import annotations

import array
import errno
import random
import select
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError
from polynya.core.machine import Ecn, IpFields, Open

from .features import LINUX

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Ancillary = tuple[tuple[int, int, bytes], ...]

RECEIVE_BUFFER: Final = 1 << 20
"""Bytes requested: a burst of 500 full packets while the process is busy."""

SOFT_ERRORS: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM, errno.EINTR})
"""Errors of a send that mean packet loss: the path itself works."""

# Numbers of Linux that Python 3.11 does not name.
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_UNICAST_IF: Final = 50
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVERR: Final = 25
PMTUDISC_DONT: Final = 0
PMTUDISC_WANT: Final = 1
PMTUDISC_PROBE: Final = 3
SO_MEMINFO: Final = 55
UDP_SEGMENT: Final = 103
_MEMINFO_DROPS: Final = 8
# A system whose Python does not name an option does not have it.
_IPV6_TCLASS: Final = getattr(socket, "IPV6_TCLASS", -1)
_IPV6_HOPLIMIT: Final = getattr(socket, "IPV6_HOPLIMIT", -1)
_TRAFFIC_CLASSES: Final = {(socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, _IPV6_TCLASS)}
_HOP_LIMITS: Final = {(socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)}

_ADVICE: Final = {
    errno.EADDRINUSE: "the port is in use: choose another, or 0 for any",
    errno.EADDRNOTAVAIL: "no interface of this host has the address: the network may have changed",
    errno.EACCES: "this user may not use the port: choose one above 1023",
    errno.EPERM: "the system's policy forbids it: look at the firewall and the sandbox",
    errno.EMFILE: "the process has too many open files: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files",
    errno.EAFNOSUPPORT: "this host has no such address family: leave IPv6 out",
    errno.ECONNREFUSED: "nothing listens there",
    errno.ETIMEDOUT: "no answer came",
    errno.EHOSTUNREACH: "no route leads to the host",
    errno.ENETUNREACH: "no route leads to the network",
}


def explain(error: OSError) -> str:
    """Return the text of a system's error, with advice if there is any."""
    text = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{text} ({advice})" if advice else text


def errno_name(number: int) -> str:
    """Return the name of an error number (`EPERM` for 1), or the number as text if it has none."""
    return errno.errorcode.get(number, str(number))


# -------------------------------------------------------------------------------------------------------- addresses


def interface_name(index: int) -> str:
    """Return the name of an interface, or its index as text if it no longer exists."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


def interface_index(name: str) -> int:
    """Return the index of an interface, 0 if it does not exist."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def to_sockaddr(address: Address, default_scope: int = 0) -> SockAddr:
    """Convert an address to a socket address. `default_scope` is the interface of link-local addresses without zone."""
    if ":" not in address.host:
        return (address.host, address.port)
    if address.zone:
        return (address.host, address.port, 0, interface_index(address.zone))
    link_local = default_scope and scope(address.host) in {"link-local", "multicast"}
    return (address.host, address.port, 0, default_scope if link_local else 0)


def from_sockaddr(name: tuple[object, ...], implied_scope: int = 0) -> Address:
    """Convert a socket address to an address, without zone if that is the scope the socket is bound to."""
    host, port = str(name[0]).partition("%")[0], int(str(name[1]))
    index = name[3] if len(name) > 3 else 0
    if isinstance(index, int) and index and index != implied_scope:
        return Address(host, port, interface_name(index))
    return Address(host, port)


def local_address(sock: socket.socket) -> Address:
    """Return the local address of a socket. The host's text is interned: many sockets share it."""
    local = from_sockaddr(sock.getsockname())
    return local._replace(host=sys.intern(local.host))


# ------------------------------------------------------------------------------------------------------------ making


def open_udp(request: Open) -> tuple[socket.socket, str]:
    """Open a bound, non-blocking UDP socket with its buffer size and error queue set.

    Returns it with a note, which is empty or says which part of the request the system could not fulfill. Raises
    OSError if the system refuses the socket or every port of the range, and ConfigurationError if the request is
    invalid.
    """
    local = request.local
    if local is None:
        raise ConfigurationError("a UDP flow is opened on a local address: give `local`, with port 0 for any port")
    family = socket.AF_INET6 if ":" in local.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        _prepare_udp(sock, family)
        note = pin(sock, family, request.interface) if request.interface else ""
        bind(sock, local, request.ports)
    except BaseException:
        sock.close()
        raise
    return sock, note


def bind(sock: socket.socket, local: Address, ports: tuple[int, int] | None) -> None:
    """Bind to `local`, or to a random free port of the range `ports`."""
    refused: OSError | None = None
    for port in _candidate_ports(local.port, ports):
        try:
            sock.bind(to_sockaddr(local.with_port(port)))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            refused = error
        else:
            return
    assert refused is not None
    raise refused


def _candidate_ports(port: int, ports: tuple[int, int] | None) -> Iterator[int]:
    if port or ports is None:
        yield port
        return
    low, high = ports
    if not 1 <= low <= high <= 65535:
        raise ConfigurationError(f"ports {low}-{high} are not a range within 1-65535")
    span = list(range(low, high + 1))
    random.SystemRandom().shuffle(span)
    yield from span


def _prepare_udp(sock: socket.socket, family: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if LINUX:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    elif LINUX:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def pin(sock: socket.socket, family: int, interface: str) -> str:
    """Make the packets of a socket leave by this interface; return a note if the system refuses or cannot do that.

    A bound source address does not select the route. Without this option, packets of all interfaces leave by the best
    route, and a second uplink is never tried. Linux has two options, and each address family uses the one without side
    effects:

    IPv4 uses IP_UNICAST_IF. It limits the route look-up to this interface and accepts packets that arrive on any (a
    host answers for its addresses on all interfaces). SO_BINDTODEVICE would drop packets from other programs of this
    host, because these arrive on the loopback interface.

    IPv6 uses SO_BINDTODEVICE, because IPV6_UNICAST_IF is only a hint that loses against a route with a better metric.
    Packets from this host count as arriving on the interface that has the address, so they are not dropped.

    Both options separate networks that use the same addresses. If the interface has no route to the destination, the
    send fails at once or after neighbor discovery: one pair fails.
    """
    if not LINUX:
        return f"may leave by other interfaces than {interface}: choosing one needs socket options of Linux"
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_UNICAST_IF, socket.htonl(socket.if_nametoindex(interface)))
    except OSError as error:
        return f"may leave by other interfaces than {interface}: {error.strerror}"  # the route selects the interface
    return ""


def writable(sock: socket.socket) -> bool:
    """Return whether the send buffer of a socket has room."""
    if sys.platform == "win32":  # select() takes any socket there, and there is no poll()
        return bool(select.select([], [sock], [], 0)[1])
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def kernel_drops(sock: socket.socket) -> int | None:
    """Return the number of datagrams dropped because the receive buffer was full; None if the system does not count.

    SO_MEMINFO reads the counter that SO_RXQ_OVFL attaches to packets, at no cost for each packet.
    """
    if not LINUX:
        return None
    try:
        information = array.array("I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64))
    except OSError:
        return None
    return information[_MEMINFO_DROPS] if len(information) > _MEMINFO_DROPS else None


def receive_buffer(sock: socket.socket) -> int:
    """Return the bytes of receive buffer that the system granted. On Linux, about half of it is overhead."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


# ---------------------------------------------------------------------------------------------- what a datagram carries


@lru_cache(maxsize=256)
def ancillary(ip: IpFields, family: int) -> Ancillary:
    """Return the control messages that set the ECN, DSCP, TTL and segment size of one datagram."""
    six = family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    messages: list[tuple[int, int, bytes]] = []
    if ip.ecn is not None or ip.dscp is not None:
        traffic_class = (ip.dscp or 0) << 2 | (ip.ecn.value if ip.ecn else 0)
        option = _IPV6_TCLASS if six else socket.IP_TOS
        messages.append((level, option, struct.pack("i", traffic_class)))
    if ip.ttl is not None:
        messages.append((level, _IPV6_HOPLIMIT if six else socket.IP_TTL, struct.pack("i", ip.ttl)))
    if ip.segment_size is not None:
        messages.append((socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", ip.segment_size)))
    return tuple(messages)


def request_fields(sock: socket.socket) -> None:
    """Request the ECN, DSCP and TTL of every datagram; fields that the system refuses stay None."""
    six = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    names = ("IPV6_RECVTCLASS", "IPV6_RECVHOPLIMIT") if six else ("IP_RECVTOS",)
    options: list[int] = [getattr(socket, name) for name in names if hasattr(socket, name)]
    if LINUX and not six:
        options.append(IP_RECVTTL)
    for option in options:
        with suppress(OSError):
            sock.setsockopt(level, option, 1)


def received_fields(messages: Sequence[tuple[int, int, bytes]]) -> IpFields | None:
    """Read the IP fields of a received datagram from its control messages; None if there are none."""
    traffic_class = ttl = None
    for level, kind, data in messages:
        value = int.from_bytes(data[:4], sys.byteorder)  # one byte for IPv4's TOS, an int for the others
        if (level, kind) in _TRAFFIC_CLASSES:
            traffic_class = value
        elif (level, kind) in _HOP_LIMITS:
            ttl = value
    if traffic_class is None and ttl is None:
        return None
    if traffic_class is None:
        return IpFields(ttl=ttl or None)
    return IpFields(ecn=Ecn(traffic_class & 3), dscp=traffic_class >> 2 & 63, ttl=ttl or None)


def set_dont_fragment(sock: socket.socket, family: int, dont_fragment: bool | None) -> None:
    """Set or clear DF for later datagrams; None leaves it to the system's path MTU discovery."""
    if not LINUX:
        return
    mode = {None: PMTUDISC_WANT, True: PMTUDISC_PROBE, False: PMTUDISC_DONT}[dont_fragment]
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)
