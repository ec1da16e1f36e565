"""Transport addresses: an IP address with a port, parsed once, then compared and hashed as a tuple.

This is the only file in the machines' folders that may import `socket`, for `inet_pton` and `inet_ntop`. These parse
every spelling of an IPv6 address and take a tenth of the time of `ipaddress`.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from typing import Final, NamedTuple

from .arguments import number, shown
from .errors import DecodeError, UsageError

IPV4: Final = 4
IPV6: Final = 6

_ZONE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Address(NamedTuple):
    """An IP address and port in canonical text, so that equal addresses are equal tuples.

    Use `Address.parse` or `Address.of` for text from outside; the constructor does not check its arguments. `zone` is
    the scope of an IPv6 link-local address (RFC 4007, section 11), empty for other addresses.
    """

    host: str
    port: int
    zone: str = ""

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """Make an address from a literal host (`192.0.2.1`, `2001:db8::1`, `fe80::1%eth0`) and a port.

        Raises DecodeError if the host is not an IP address or the port is not within 0..65535.
        """
        if type(host) is not str or type(port) is not int:
            _refuse_others("an IP address", host)
            number("a port", port, 0, 65535, error=UsageError)
        if not 0 <= port <= 65535:
            raise DecodeError(f"port {port} is not within 0..65535")
        literal, percent, zone = host.partition("%")
        canonical = socket.inet_ntop(*_family_and_packed(literal))
        if percent and (":" not in canonical or not _ZONE.fullmatch(zone)):
            raise DecodeError(f"{host!r} has a zone that is not the name of an interface")
        return cls(canonical, port, zone)

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """Parse `192.0.2.1:3478` or `[2001:db8::1]:3478`; with `default_port`, the text may lack the port.

        Raises DecodeError for anything else.
        """
        if type(text) is not str:
            _refuse_others("an address", text)
        host, port = text, ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise DecodeError(f"{shown(text)} is not an address: write [HOST]:PORT for IPv6")
            port = rest[1:]
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        if not port:
            if default_port is None:
                raise DecodeError(f"{shown(text)} has no port: write HOST:PORT, or [HOST]:PORT for IPv6")
            return cls.of(host, default_port)
        if not (port.isascii() and port.isdigit()):
            raise DecodeError(f"{shown(text)} has a port that is not a number")
        return cls.of(host, int(port))

    @classmethod
    def from_packed(cls, packed: bytes, port: int) -> Address:
        """Make an address from 4 or 16 bytes in network order; raises DecodeError for any other length."""
        if len(packed) == 4:
            return cls(socket.inet_ntop(socket.AF_INET, packed), port)
        if len(packed) == 16:
            return cls(socket.inet_ntop(socket.AF_INET6, packed), port)
        raise DecodeError(f"an IP address has 4 or 16 bytes, not {len(packed)}")

    @property
    def family(self) -> int:
        """4 or 6."""
        return IPV6 if ":" in self.host else IPV4

    @property
    def packed(self) -> bytes:
        """The IP address as 4 or 16 bytes in network order."""
        return pack_host(self.host)

    def with_port(self, port: int) -> Address:
        """Return the same IP address with another port."""
        return Address(self.host, port, self.zone)

    def __str__(self) -> str:
        zone = f"%{self.zone}" if self.zone else ""
        return f"[{self.host}{zone}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=4096)
def pack_host(host: str) -> bytes:
    """Return a canonical host as 4 or 16 bytes; raises DecodeError if it is not an IP address."""
    return _family_and_packed(host)[1]


@lru_cache(maxsize=4096)
def scope(host: str) -> str:
    """Return the scope of a host: `loopback`, `link-local`, `private`, `multicast`, `unspecified` or `global`.

    An IPv4-mapped address has the scope of its IPv4 address.
    """
    packed = pack_host(host)
    if len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    if not any(packed):
        return "unspecified"
    if len(packed) == 4:
        return _scope4(packed)
    if packed == bytes(15) + b"\x01":
        return "loopback"
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:
        return "link-local"
    if packed[0] & 0xFE == 0xFC or (packed[0] == 0xFE and packed[1] & 0xC0 == 0xC0):
        return "private"
    return "multicast" if packed[0] == 0xFF else "global"


def _scope4(packed: bytes) -> str:
    first, second = packed[0], packed[1]
    if first == 127:
        return "loopback"
    if (first, second) == (169, 254):
        return "link-local"
    shared = first == 100 and second & 0xC0 == 64
    if first == 10 or (first == 172 and second & 0xF0 == 16) or (first, second) == (192, 168) or shared:
        return "private"
    return "multicast" if first >> 4 == 14 else "global"


def _refuse_others(name: str, value: object) -> None:
    """Refuses all but texts, of which subclasses are left."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is a text, not {shown(value)}")


def _family_and_packed(host: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return family, socket.inet_pton(family, host)
    except (OSError, ValueError):
        raise DecodeError(f"{host[:64]!r} is not an IP address") from None
