"""Choice of the local addresses to gather on (RFC 8445, section 5.1.1.1; RFC 8421, section 4; RFC 6724).

These addresses are refused, each with a reason that `why()` shows: loopback unless it is enabled, those that the
filters refuse, deprecated and tentative ones, site-local, IPv4-mapped and IPv4-compatible IPv6 ones, and link-local
ones if the interface has a better one of the same family. Temporary IPv6 addresses come first and hide the stable
address of the same prefix, which would identify the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from polynya.core.addresses import IPV4, IPV6, Address, pack_host, scope
from polynya.core.errors import DecodeError
from polynya.core.machine import Interface, InterfaceAddress
from polynya.ice.candidates import HIGHEST_PREFERENCE, LINK_LOCAL_PREFERENCE, PREFERENCE_STEP

from .options import HostAddress, SessionConfig

_DEPRECATED = "deprecated (RFC 4862, section 5.5.4)"
_HIDDEN = "a temporary address of the same prefix is used instead (RFC 8445, section 5.1.1.1)"
_TENTATIVE = "duplicate address detection has not finished"
_TOO_MANY = "more than"
_ONLY_LESS_PREFERRED = (_DEPRECATED, _HIDDEN, _TENTATIVE, _TOO_MANY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A local address that is not gathered on, with the reason."""

    interface: str
    host: str
    reason: str

    @property
    def may_stay(self) -> bool:
        """Whether a socket that is open on it stays: the address works, and only others are preferred to it."""
        return self.reason.startswith(_ONLY_LESS_PREFERRED)


def choose_addresses(
    interfaces: Iterable[Interface], config: SessionConfig
) -> tuple[tuple[HostAddress, ...], tuple[Refused, ...]]:
    """Return the addresses to gather on, best first with families interleaved (RFC 8421, section 4), and the others."""
    chosen: dict[int, list[HostAddress]] = {family: [] for family in config.families}
    refused: list[Refused] = []
    seen: set[tuple[str, str]] = set()
    for interface in interfaces:
        for address, judgement in _judge(interface, config):
            host, zone = _split_zone(address.host, interface)
            reason = judgement or ("another interface has the same address" if (host, zone) in seen else None)
            if reason is not None:
                refused.append(_refused(interface.name, address.host, reason))
                continue
            seen.add((host, zone))
            chosen[IPV6 if ":" in host else IPV4].append(_host_address(host, zone, interface, address.temporary))
    order = _interleave([chosen[family] for family in config.families])
    if config.families == (IPV4, IPV6):  # the agent prefers IPv6 by default
        order = (replace(host, preference=_preference(rank, host)) for rank, host in enumerate(order))
    return tuple(order), tuple(refused)


def _preference(rank: int, host: HostAddress) -> int:
    """Return the local preference of the address with this rank; link-local ones come last (RFC 8421, section 4)."""
    first = LINK_LOCAL_PREFERENCE if scope(host.address.host) == "link-local" else HIGHEST_PREFERENCE
    return max(0, first - rank * PREFERENCE_STEP)


# Agents of one process gather on the same addresses, so they share these objects.


@lru_cache(maxsize=256)
def _host_address(host: str, zone: str, interface: Interface, temporary: bool) -> HostAddress:
    return HostAddress(
        address=Address.of(host, 0)._replace(zone=zone),
        interface=interface.name,
        temporary=temporary,
        loopback=interface.loopback,
        pinned=not (interface.loopback or interface.dead_end),
    )


@lru_cache(maxsize=256)
def _refused(interface: str, host: str, reason: str) -> Refused:
    return Refused(interface=interface, host=host, reason=reason)


def _judge(interface: Interface, config: SessionConfig) -> Iterator[tuple[InterfaceAddress, str | None]]:
    """Return each address of an interface with the reason to refuse it, or None."""
    if config.interfaces is not None and not config.interfaces(interface):
        yield from ((address, "the interface filter refused it") for address in interface.addresses)
        return
    alone = {address.host: _reason_alone(interface, address, config) for address in interface.addresses}
    usable = [address for address in interface.addresses if alone[address.host] is None]
    global_families = {_family(address) for address in usable if scope(_bare(address)) in {"global", "private"}}
    temporary = [pack_host(_bare(address))[:8] for address in usable if address.temporary]
    ipv6_left = config.addresses_per_interface
    for address in sorted(interface.addresses, key=lambda a: not a.temporary):
        reason = alone[address.host]
        if reason is None and scope(_bare(address)) == "link-local" and _family(address) in global_families:
            reason = "link-local, and the interface has an address of wider scope"
        hidden = not address.temporary and reason is None and pack_host(_bare(address))[:8] in temporary
        if hidden and _family(address) == IPV6:
            reason = _HIDDEN
        if reason is None and _family(address) == IPV6:
            if ipv6_left <= 0:
                reason = f"{_TOO_MANY} {config.addresses_per_interface} IPv6 addresses on one interface"
            ipv6_left -= 1
        yield address, reason


def _reason_alone(interface: Interface, address: InterfaceAddress, config: SessionConfig) -> str | None:
    try:
        reach, packed = scope(_bare(address)), pack_host(_bare(address))
    except DecodeError as error:
        return str(error)
    if _family(address) not in config.families:
        return f"IPv{_family(address)} is not enabled"
    if reach in {"unspecified", "multicast"}:
        return f"{reach} addresses cannot be used"
    if (interface.loopback or reach == "loopback") and not config.loopback:
        return "loopback is not enabled"
    if len(packed) == 16 and packed[:12] in (bytes(10) + b"\xff\xff", bytes(12)) and reach != "loopback":
        return "IPv4-mapped and IPv4-compatible addresses are not gathered (RFC 8445, section 5.1.1.1)"
    if len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0xC0:
        return "site-local addresses are not gathered (RFC 8445, section 5.1.1.1)"
    if address.tentative:
        return _TENTATIVE
    if address.deprecated:
        return _DEPRECATED
    if config.addresses is not None and not config.addresses(interface, address):
        return "the address filter refused it"
    return None


def _bare(address: InterfaceAddress) -> str:
    return address.host.partition("%")[0]


def _family(address: InterfaceAddress) -> int:
    return IPV6 if ":" in address.host else IPV4


def _split_zone(host: str, interface: Interface) -> tuple[str, str]:
    bare, _, zone = host.partition("%")
    if ":" in bare and scope(bare) == "link-local":
        return bare, zone or interface.name
    return bare, ""


def _interleave(families: list[list[HostAddress]]) -> Iterator[HostAddress]:
    """Return the addresses of the families in turn, so that a broken family delays the other little."""
    for rank in range(max(map(len, families), default=0)):
        yield from (addresses[rank] for addresses in families if rank < len(addresses))
