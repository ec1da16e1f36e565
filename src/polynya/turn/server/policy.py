"""The peer policy: which peers clients may reach through the server (security.md, lines 1 to 3).

An IPv6 address that wraps an IPv4 address (mapped, compatible, translated, NAT64, 6to4, Teredo) is judged as that IPv4
address; 0.0.0.0 and :: are judged as loopback. Then the longest matching prefix decides:

    | matches                                            | verdict                                           |
    |----------------------------------------------------|---------------------------------------------------|
    | port 0                                             | denied                                            |
    | one of the server's own endpoints                  | denied, unless `allow` names that very host:port  |
    | an address of this server, any port                | denied, unless `allow` names the host or host:port|
    | a rule of `deny` or `allow`, the longest           | by that rule; at equal length `deny` wins         |
    | an IANA special-purpose range, longer than any rule| denied                                            |
    | IPv6 outside 2000::/3, which is not routed         | denied                                            |
    | nothing                                            | permitted                                         |

So `allow 10.1.0.0/16` opens a part of 10.0.0.0/8, but no address of the server in it, and `allow 0.0.0.0/0` opens no
special-purpose range. A prefix names a host only if it has its full length, or if it is a loopback prefix, which can
mean this host only. Live relayed addresses of the server are not judged here: the client of such a relay protects it by
its permissions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from polynya.core.addresses import Address, pack_host
from polynya.core.errors import ConfigurationError, DecodeError

SPECIAL: Final = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared address space of carriers"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local, cloud metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "IETF protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, broadcast"),
    ("::/8", "reserved, loopback"),
    ("100::/64", "discard only"),
    ("100:0:0:1::/64", "dummy prefix"),
    ("2001::/23", "IETF protocol assignments"),
    ("2001:db8::/32", "documentation"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "unique local"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
    ("::/3", "not publicly routed"),
    ("4000::/2", "not publicly routed"),
    ("8000::/1", "not publicly routed"),
)
"""IANA's special-purpose ranges that are not globally reachable, multicast (RFC 6890 and its registries), and the rest
of IPv6 outside 2000::/3, the only global unicast space that IANA allocates from."""

_LOOPBACK4: Final = b"\x7f\0\0\1"
_WRAPPERS: Final = (
    (bytes(12), 96),
    (bytes(10) + b"\xff\xff", 96),
    (bytes(8) + b"\xff\xff\0\0", 96),
    (b"\0\x64\xff\x9b" + bytes(8), 96),
    (b"\0\x64\xff\x9b\0\x01", 48),
    (b"\x20\x02", 16),
    (b"\x20\x01\0\0", 32),
)
"""IPv6 prefixes whose addresses wrap IPv4 addresses."""
_CACHED: Final = 4096


class _Rule(NamedTuple):
    bits: int
    """Bits of an address: 32 or 128."""
    length: int
    network: int
    permitted: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPolicy:
    """The rules about peers. Raises ConfigurationError for a rule that does not parse, so no server starts with one.

    `allow` and `deny` hold prefixes (`192.0.2.0/24`), hosts, or endpoints (`192.0.2.1:53`, `[2001:db8::1]:53`).
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    listeners: tuple[Address, ...] = ()
    """Endpoints of the server, its database and its admin interface; 0.0.0.0 and :: mean each of `own_hosts`."""
    own_hosts: tuple[str, ...] = ()
    """Addresses of this server, external ones included: denied on every port. Loopback is implied."""
    _rules: tuple[_Rule, ...] = field(init=False, repr=False, compare=False)
    _own: frozenset[tuple[bytes, int]] = field(init=False, repr=False, compare=False)
    _own_packed: frozenset[bytes] = field(init=False, repr=False, compare=False)
    _named: dict[tuple[bytes, int], bool] = field(init=False, repr=False, compare=False)
    _verdicts: dict[tuple[str, int], str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        rules: list[_Rule] = [_prefix(text, f"{text} ({why})", permitted=False) for text, why in SPECIAL]
        named: dict[tuple[bytes, int], bool] = {}
        for texts, permitted in ((self.allow, True), (self.deny, False)):
            for text in texts:
                endpoint = _endpoint(text)
                if endpoint is not None:
                    named[endpoint] = permitted
                else:
                    rules.append(_prefix(text, text, permitted=permitted))
        # Longest first; at equal length `deny`, then `allow`, then special-purpose ranges: the sort is stable.
        rules.reverse()
        rules.sort(key=lambda rule: -rule.length)
        object.__setattr__(self, "_rules", tuple(rules))
        object.__setattr__(self, "_named", named)
        object.__setattr__(self, "_own", frozenset(_own_endpoints(self.listeners, self.own_hosts)))
        own = (packed for host in (*self.own_hosts, "127.0.0.1") for packed in reduce(host))
        object.__setattr__(self, "_own_packed", frozenset(own))

    def judge(self, peer: Address) -> str:
        """Return why a peer is denied, or "" if it is permitted."""
        if not peer.port:
            return "port 0 is no endpoint"
        return self._judge(peer.host, peer.port)

    def _judge(self, host: str, port: int) -> str:
        key = host, port
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= _CACHED:
                self._verdicts.clear()
            verdict = self._verdicts[key] = next(filter(None, self._verdicts_of(host, port)), "")
        return verdict

    def judge_host(self, host: str) -> str:
        """Return why every port of a host is denied, or "" if some port is permitted (permissions are by host)."""
        verdict = self._judge(host, 0)
        if verdict and any(permitted and packed in reduce(host) for (packed, _), permitted in self._named.items()):
            return ""
        return verdict

    def _verdicts_of(self, host: str, port: int) -> Iterator[str]:
        for packed in reduce(host):
            named = self._named.get((packed, port))
            if named is not None:
                yield "" if named else f"{host} port {port} is denied by a rule"
            elif (packed, port) in self._own:
                yield f"{host} port {port} is the server's own"
            else:
                yield self._verdict(host, packed)

    def _verdict(self, host: str, packed: bytes) -> str:
        bits = len(packed) * 8
        number = int.from_bytes(packed, "big")
        own = packed in self._own_packed
        for rule in self._rules:
            if rule.bits == bits and number >> (bits - rule.length) == rule.network:
                if not rule.permitted:
                    return f"denied by {rule.text}"
                named = rule.length == bits or (packed[0] == 127 and bits == 32 and rule.length >= 8)
                return f"{host} is an address of this server" if own and not named else ""
        return f"{host} is an address of this server" if own else ""

    def __reduce__(self) -> tuple[object, ...]:
        return _made, (self.allow, self.deny, self.listeners, self.own_hosts)


def _made(
    allow: tuple[str, ...], deny: tuple[str, ...], listeners: tuple[Address, ...], own_hosts: tuple[str, ...]
) -> PeerPolicy:
    return PeerPolicy(allow=allow, deny=deny, listeners=listeners, own_hosts=own_hosts)


@lru_cache(maxsize=4096)
def reduce(host: str) -> tuple[bytes, ...]:
    """Reduce an address to the packed addresses that it may reach; each of them must be permitted."""
    packed = pack_host(host)
    if len(packed) == 4:
        return (_LOOPBACK4 if packed == bytes(4) else packed,)
    inner = tuple(_embedded(packed))
    return tuple(_LOOPBACK4 if each == bytes(4) else each for each in inner) or (packed,)


def _embedded(packed: bytes) -> Iterator[bytes]:
    """Yield the IPv4 addresses that an IPv6 address wraps."""
    tail = packed[12:]
    if packed == bytes(15) + b"\x01":
        yield _LOOPBACK4  # ::1 is judged as loopback, so that a rule about 127.0.0.0/8 covers both
    elif packed.startswith((bytes(12), bytes(10) + b"\xff\xff", bytes(8) + b"\xff\xff\0\0")):
        yield tail  # compatible and unspecified, mapped, translated (RFC 4291, 2.5.5; RFC 7915)
    elif packed.startswith(b"\0\x64\xff\x9b" + bytes(8)):
        yield tail  # the well-known NAT64 prefix (RFC 6052)
    elif packed.startswith(b"\0\x64\xff\x9b\0\x01"):
        # A local NAT64 prefix may have any length from 48 (RFC 8215); a reading that begins with 0 is padding.
        readings = (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13], tail)
        found = tuple(reading for reading in readings if reading[0])
        yield from found or (tail,)
    elif packed.startswith(b"\x20\x02"):
        yield packed[2:6]  # 6to4 (RFC 3056)
    elif packed.startswith(b"\x20\x01\0\0"):
        yield packed[4:8]  # Teredo: its server, and the client behind it (RFC 4380)
        yield bytes(byte ^ 0xFF for byte in tail)


def _prefix(text: str, shown: str, *, permitted: bool) -> _Rule:
    host, slash, digits = text.partition("/")
    try:
        packed = pack_host(host)
    except DecodeError:
        raise ConfigurationError(f"{text!r} is no peer rule: write ADDRESS, ADDRESS/LENGTH or ADDRESS:PORT") from None
    bits = len(packed) * 8
    if slash and not (digits.isascii() and digits.isdigit() and int(digits) <= bits):
        raise ConfigurationError(f"{text!r} is no peer rule: the prefix length must be within 0..{bits}")
    length = int(digits) if slash else bits
    number = int.from_bytes(packed, "big")
    if number & ((1 << (bits - length)) - 1):
        raise ConfigurationError(f"{text!r} is no peer rule: it has bits set beyond its prefix of {length}")
    reduced = reduce(host)
    if length < bits and any(length >= size and packed.startswith(start) for start, size in _WRAPPERS):
        raise ConfigurationError(
            f"{text!r} is no peer rule: such addresses are judged as the IPv4 addresses that they wrap"
        )
    if length == bits and reduced != (packed,):
        if len(reduced) != 1:
            raise ConfigurationError(f"{text!r} is no peer rule: write the IPv4 addresses that it wraps")
        packed, bits, length = reduced[0], 32, 32
        number = int.from_bytes(packed, "big")
    return _Rule(bits, length, number >> (bits - length), permitted, shown)


def _endpoint(text: str) -> tuple[bytes, int] | None:
    """Parse a rule with a port; None if it has no port."""
    if not text.startswith("[") and text.count(":") != 1:
        return None
    try:
        address = Address.parse(text)
    except DecodeError as error:
        raise ConfigurationError(f"{text!r} is no peer rule: {error}") from None
    reduced = reduce(address.host)
    if len(reduced) != 1:
        raise ConfigurationError(f"{text!r} is no peer rule: write the IPv4 addresses that it wraps")
    return reduced[0], address.port


def _own_endpoints(listeners: tuple[Address, ...], own_hosts: tuple[str, ...]) -> Iterator[tuple[bytes, int]]:
    for listener in listeners:
        hosts: tuple[str, ...] = (listener.host,)
        if listener.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            hosts = (*own_hosts, "127.0.0.1", "::1")
        for host in hosts:
            for packed in reduce(host):
                yield packed, listener.port
