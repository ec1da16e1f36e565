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


def stun_uris(listeners: Sequence[Address], reached: str | None, local: str, remote: str) -> tuple[str, ...]:
    """The URIs (RFC 7064) of the STUN listeners for one client.

    `reached` is the host that the client used for HTTP, `local` the address that its connection arrived at, `remote`
    its own. A listener on a certain address is told as that; one on all addresses by what the client used. A listener
    that the client cannot reach (loopback, from elsewhere) is left out.
    """
    outside = _scope(remote) != "loopback"
    uris: dict[str, None] = {}
    for listener in listeners:
        kind = scope(listener.host)
        if kind == "loopback" and outside:
            continue
        if kind != "unspecified":
            uris[stun_uri(listener.host, listener.port)] = None
            continue
        host = reached or local
        if is_literal(host) and (":" in host) != (":" in listener.host):
            continue  # the other family's listener answers there
        uris[stun_uri(host, listener.port)] = None
    return tuple(uris)


def stun_uri(host: str, port: int) -> str:
    return f"stun:[{host}]:{port}" if ":" in host else f"stun:{host}:{port}"


def http_url(address: Address) -> str:
    """The URL of an HTTP listener; one on all addresses is told by loopback, where it can be tried."""
    host = address.host
    if scope(host) == "unspecified":
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{address._replace(host=host)}"


def is_literal(host: str) -> bool:
    return _scope(host) != ""


def _scope(host: str) -> str:
    try:
        return scope(host)
    except DecodeError:
        return ""
