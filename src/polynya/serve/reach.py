"""The addresses by which a client reaches this server, derived from its request for signaling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.errors import DecodeError

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?")


def host_of(header: str) -> str | None:
    """Return the host of a Host header, a name or a literal without brackets; None if it is invalid."""
    try:
        return Address.parse(header, 0).host
    except DecodeError:
        pass
    name, _, port = header.partition(":")
    return name if _NAME.fullmatch(name) and (not port or port.isdigit()) else None


def hosts_for(
    listeners: Sequence[Address], reached: str | None, local: str, remote: str
) -> tuple[tuple[str, int], ...]:
    """Return the listeners as (host, port), as one client can reach them.

    `reached` is the host in the client's HTTP request, `local` the address at which it arrived, and `remote` the
    client's own. A listener on a specific address keeps it. A listener on the wildcard address gets the host that the
    client used. A loopback listener is omitted for clients on other hosts.
    """
    outside = _scope(remote) != "loopback"
    found: dict[tuple[str, int], None] = {}
    for listener in listeners:
        kind = scope(listener.host)
        if kind == "loopback" and outside:
            continue
        if kind != "unspecified":
            found[listener.host, listener.port] = None
            continue
        host = reached or local
        if is_literal(host) and (":" in host) != (":" in listener.host):
            continue  # another listener serves this IP version
        found[host, listener.port] = None
    return tuple(found)


def uri(scheme: str, place: tuple[str, int]) -> str:
    """Return a URI of RFC 7064 or 7065, without a query."""
    host, port = place
    return f"{scheme}:[{host}]:{port}" if ":" in host else f"{scheme}:{host}:{port}"


def http_url(address: Address) -> str:
    """Return the URL of an HTTP listener; for the wildcard address, that of the loopback address."""
    host = address.host
    if scope(host) == "unspecified":
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{address._replace(host=host)}"


def is_literal(host: str) -> bool:
    return _scope(host) != ""


def is_loopback(host: str) -> bool:
    return _scope(host) == "loopback"


def _scope(host: str) -> str:
    try:
        return scope(host)
    except DecodeError:
        return ""
