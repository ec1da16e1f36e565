"""By what address a client reaches this server: it asked for the signaling by one that works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from polynya.core.addresses import Address, scope
from polynya.core.errors import DecodeError

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?")


def host_of(header: str) -> str | None:
    """The host of a Host header, a name or a literal without brackets; None when it is neither."""
    try:
        return Address.parse(header, 0).host
    except DecodeError:
        pass
    name, _, port = header.partition(":")
    return name if _NAME.fullmatch(name) and (not port or port.isdigit()) else None


def hosts_for(
    listeners: Sequence[Address], reached: str | None, local: str, remote: str
) -> tuple[tuple[str, int], ...]:
    """The listeners as one client reaches them: a name or address each, and the port.

    `reached` is the host that the client used for HTTP, `local` the address that its connection arrived at, `remote`
    its own. A listener on a certain address is told as that; one on all addresses by what the client used. A listener
    that the client cannot reach (loopback, from elsewhere) is left out.
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
            continue  # the other family's listener answers there
        found[host, listener.port] = None
    return tuple(found)


def uri(scheme: str, place: tuple[str, int]) -> str:
    """A URI of RFC 7064 or 7065, without its query."""
    host, port = place
    return f"{scheme}:[{host}]:{port}" if ":" in host else f"{scheme}:{host}:{port}"


def http_url(address: Address) -> str:
    """The URL of an HTTP listener; one on all addresses is told by loopback, where it can be tried."""
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
