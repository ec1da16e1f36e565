"""Addresses that STUN and TURN servers report: why one of them is impossible, and the first that is possible.

    everywhere          unspecified, port 0, multicast, broadcast, "this network" (RFC 1122), IPv4-mapped IPv6
    from elsewhere      loopback or IPv6 link-local, reported by a server that is neither: it has no meaning here
    as our own address  an IPv6 address of packets that left over IPv4; the opposite is what NAT64 does (RFC 6146)

For example, a server without IPv6 may report `0.0.0.0:0` as its second relayed address. Such an address is ignored, and
the reason is reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from polynya.core.addresses import IPV4, IPV6, Address, pack_host, scope

_MAPPED = bytes(10) + b"\xff\xff"


def why_impossible(address: Address, *, by: Address | None = None, mapped: bool = False) -> str:
    """Return why no packet can go to `address`; empty if it is possible.

    `by` is the server that reported it. `mapped`: the server reports it as the source address of our packets.
    """
    reason = _host_problem(address.host) or ("has port 0" if address.port == 0 else "")
    if not reason and by is not None:
        reason = _elsewhere(scope(address.host), scope(by.host), address.family)
        if not reason and mapped and address.family == IPV6 and by.family == IPV4:
            reason = "is an IPv6 address, and the packet left over IPv4"
    return f"{address} {reason}" if reason else ""


def first_possible(
    addresses: Iterable[Address | None], *, by: Address | None = None, mapped: bool = False
) -> tuple[Address | None, str]:
    """Return the first possible address, or None; and why others are impossible."""
    given = [address for address in addresses if address is not None]
    reasons = {address: why_impossible(address, by=by, mapped=mapped) for address in given}
    first = next((address for address, reason in reasons.items() if not reason), None)
    return first, "; ".join(reason for reason in reasons.values() if reason)


@lru_cache(maxsize=1024)
def _host_problem(host: str) -> str:
    kind, packed = scope(host), pack_host(host)
    if kind in ("unspecified", "multicast"):
        return f"is {'unspecified' if kind == 'unspecified' else 'a multicast address'}"
    if packed.startswith(_MAPPED) and len(packed) == 16:
        return "is an IPv4-mapped IPv6 address"
    if packed == b"\xff\xff\xff\xff":
        return "is the broadcast address"
    return "is an address of 'this network'" if len(packed) == 4 and packed[0] == 0 else ""


def _elsewhere(kind: str, server: str, family: int) -> str:
    if kind == "loopback" and server != "loopback":
        return "is a loopback address of another host"
    if kind == "link-local" and family == IPV6 and server != "link-local":
        return "is a link-local address of another link"
    return ""
