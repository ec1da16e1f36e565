"""Lists the interfaces of this host, with the address flags that RFC 8445 (5.1.1) and RFC 6724 use.

On Linux, `netlink` reports everything. On other systems, and in sandboxes without netlink, ifaddr lists the addresses;
on Linux, /proc/net/if_inet6 and two ioctls then add the flags. An address whose flags are not known counts as permanent
and preferred. A listing takes 0.1 ms on a typical host.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import ifaddr

from polynya.core.addresses import scope
from polynya.core.machine import Interface, InterfaceAddress

from . import netlink
from .features import LINUX
from .netlink import IFF_LOOPBACK, IFF_POINTOPOINT, IFF_UP
from .sockets import interface_index

_IF_INET6: Final = Path("/proc/net/if_inet6")

# linux/sockios.h and net/if.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_NAME_SIZE: Final = 16  # with the terminating zero
_DEFAULT_MTU: Final = 1500


def list_interfaces() -> tuple[Interface, ...]:
    """Return every interface that is up and has an address, sorted by index; addresses in the system's order."""
    try:
        found = netlink.list_interfaces() if LINUX else list_without_netlink()
    except OSError:
        found = list_without_netlink()
    return _shared(tuple(sorted(found, key=lambda interface: (interface.index, interface.name))))


def list_without_netlink() -> list[Interface]:
    """List the interfaces with ifaddr, as every system can."""
    found: list[Interface] = []
    flags = _ipv6_flags()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, addresses in _addresses(flags).items():
            state = _state(probe, name)
            if state is not None and not state & IFF_UP:
                continue
            found.append(
                Interface(
                    name=name,
                    index=interface_index(name),
                    addresses=addresses,
                    mtu=_mtu(probe, name),
                    loopback=bool(state & IFF_LOOPBACK) if state is not None else _all_loopback(addresses),
                    point_to_point=bool(state is not None and state & IFF_POINTOPOINT),
                    dead_end=state is not None and netlink.is_dead_end(state),
                )
            )
    return found


@lru_cache(maxsize=4)
def _shared(interfaces: tuple[Interface, ...]) -> tuple[Interface, ...]:
    """Return the same objects while nothing changes, so that all agents share them."""
    return interfaces


def _addresses(flags: Mapping[tuple[str, str], int]) -> dict[str, tuple[InterfaceAddress, ...]]:
    """Return the addresses of each interface by its name. Linux' labels (`eth0:1`) name addresses, not interfaces."""
    found: dict[str, tuple[InterfaceAddress, ...]] = {}
    for adapter in ifaddr.get_adapters():
        name = adapter.name.partition(":")[0] if sys.platform == "linux" else adapter.name
        addresses = tuple(_address(name, ip, flags) for ip in adapter.ips)
        if addresses:
            found[name] = found.get(name, ()) + addresses
    return found


def _address(name: str, ip: ifaddr.IP, flags: Mapping[tuple[str, str], int]) -> InterfaceAddress:
    host = (ip.ip if isinstance(ip.ip, str) else ip.ip[0]).partition("%")[0]
    if ":" in host:
        host = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host))
        return netlink.ipv6_address(host, ip.network_prefix, flags.get((name, host), 0))
    return InterfaceAddress(host=host, prefix_length=ip.network_prefix)


def _all_loopback(addresses: tuple[InterfaceAddress, ...]) -> bool:
    return all(scope(address.host) == "loopback" for address in addresses)


def _ipv6_flags() -> dict[tuple[str, str], int]:
    if not LINUX:
        return {}
    try:
        return parse_if_inet6(_IF_INET6.read_text())
    except OSError:
        return {}


def parse_if_inet6(text: str) -> dict[tuple[str, str], int]:
    """Parse /proc/net/if_inet6 into the flags of each interface's IPv6 addresses.

    The columns are: address, index, prefix length, scope, flags (all hexadecimal) and the interface's name.
    """
    flags: dict[tuple[str, str], int] = {}
    for line in text.splitlines():
        columns = line.split()
        if len(columns) >= 6:
            host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(columns[0]))
            flags[columns[5], host] = int(columns[4], 16)
    return flags


def _state(probe: socket.socket, name: str) -> int | None:
    """Return the IFF flags of an interface, or None if the system does not report them."""
    value = _ioctl(probe, _SIOCGIFFLAGS, name, "H")
    return value if value is not None else (0 if LINUX else None)


def _mtu(probe: socket.socket, name: str) -> int:
    return _ioctl(probe, _SIOCGIFMTU, name, "i") or _DEFAULT_MTU


def _ioctl(probe: socket.socket, request: int, name: str, kind: str) -> int | None:
    if sys.platform != "linux" or not LINUX:
        return None
    import fcntl  # noqa: PLC0415  # does not exist on Windows

    try:
        answer = fcntl.ioctl(probe, request, struct.pack(f"={_NAME_SIZE}s24x", name.encode()))
    except OSError:
        return None
    return int(struct.unpack_from(f"={kind}", answer, _NAME_SIZE)[0])
