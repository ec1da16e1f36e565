"""The URIs of STUN and TURN servers (RFC 7064, 7065).

    stun:HOST[:PORT]                     stuns:...: over TLS
    turn:HOST[:PORT][?transport=udp|tcp] turns:HOST[:PORT][?transport=tcp]: over TLS

HOST is a name, an IPv4 address or an IPv6 address in brackets. There are no slashes, users or passwords. `str()`
returns what was parsed, with the scheme and transport in lower case and addresses in their canonical spelling.

TURN over DTLS is not supported: `turns:HOST?transport=udp` is a ConfigurationError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Transport

from .registry import DEFAULT_PORT, DEFAULT_TLS_PORT

_URI: Final = re.compile(
    r"(?P<scheme>[A-Za-z]+):(?:\[(?P<v6>[^\]\[]*)\]|(?P<host>[^:\[\]?/@#]*))(?::(?P<port>[^?]*))?(?:\?(?P<query>.*))?"
)
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
MAX_URI: Final = 512
_DIGITS: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class StunUri:
    """URI of a STUN server. `explicit_port` is None if the URI names no port."""

    host: str
    """A name, or an address without brackets."""
    explicit_port: int | None = None
    secure: bool = False

    @classmethod
    def parse(cls, text: str) -> StunUri:
        """Parse a `stun:` or `stuns:` URI. Raises ConfigurationError with the reason for other text."""
        scheme, host, port, query = _split(text, "stun")
        if query is not None:
            raise ConfigurationError(f"{text!r}: a {scheme}: URI has no query")
        return cls(host, port, scheme == "stuns")

    @property
    def port(self) -> int:
        """The port of the server: as the URI says, else 3478, or 5349 over TLS."""
        return _port(self.explicit_port, secure=self.secure)

    @property
    def transport(self) -> Transport:
        return Transport.TLS if self.secure else Transport.UDP

    def __str__(self) -> str:
        return ("stuns:" if self.secure else "stun:") + _authority(self.host, self.explicit_port)


@dataclass(frozen=True, slots=True)
class TurnUri:
    """A TURN server, without credentials. `explicit_transport` is None if the URI names no transport.

    Raises ConfigurationError for DTLS (`turns:` with `transport=udp`), which is not supported.
    """

    host: str
    """A name, or an address without brackets."""
    explicit_port: int | None = None
    secure: bool = False
    explicit_transport: str | None = None

    def __post_init__(self) -> None:
        if self.secure and self.explicit_transport == "udp":
            tls = "turns:" + _authority(self.host, self.explicit_port)
            raise ConfigurationError(f"'{self}': TURN over DTLS is not supported; use {tls} for TURN over TLS")

    @classmethod
    def parse(cls, text: str) -> TurnUri:
        """Parse a `turn:` or `turns:` URI. Raises ConfigurationError with the reason for other text."""
        scheme, host, port, query = _split(text, "turn")
        transport = None
        if query is not None:
            name, _, value = query.partition("=")
            transport = value.lower()
            if name != "transport" or transport not in ("udp", "tcp"):
                raise ConfigurationError(f"{text!r}: after the question mark write transport=udp or transport=tcp")
        return cls(host, port, scheme == "turns", transport)

    @property
    def port(self) -> int:
        """The port of the server: as the URI says, else 3478, or 5349 over TLS."""
        return _port(self.explicit_port, secure=self.secure)

    @property
    def transport(self) -> Transport:
        """The transport of the URI, else UDP for `turn:` and TLS for `turns:` (RFC 5928, section 3)."""
        if self.secure:
            return Transport.TLS
        return Transport.TCP if self.explicit_transport == "tcp" else Transport.UDP

    def __str__(self) -> str:
        query = f"?transport={self.explicit_transport}" if self.explicit_transport else ""
        return ("turns:" if self.secure else "turn:") + _authority(self.host, self.explicit_port) + query


def _split(text: str, kind: str) -> tuple[str, str, int | None, str | None]:
    """Return scheme, host, port and query of a URI with the scheme `kind` or `kind`s."""
    if len(text) > MAX_URI:
        raise ConfigurationError(f"a {kind} URI has at most {MAX_URI} characters, not {len(text)}")
    match = _URI.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not a {kind} URI: write {kind}:HOST or {kind}:HOST:PORT")
    scheme = match["scheme"].lower()
    if scheme not in (kind, kind + "s"):
        raise ConfigurationError(f"{text!r} is not a {kind} URI: it begins with {scheme}:")
    host = _literal(text, match["v6"]) if match["v6"] is not None else _host(text, match["host"])
    port = match["port"]
    if port is None:
        return scheme, host, None, match["query"]
    if not _DIGITS.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{text!r}: a port is within 1..65535, not {port!r}")
    return scheme, host, int(port), match["query"]


def _literal(text: str, host: str) -> str:
    try:
        address = Address.of(host, 0)
    except DecodeError:
        address = None
    if address is None or ":" not in address.host or address.zone:
        raise ConfigurationError(f"{text!r}: {host!r} is not an IPv6 address")
    return address.host


def _host(text: str, host: str) -> str:
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigurationError(f"{text!r}: {host!r} is not a host name; an IPv6 address is put in brackets")
    if labels[-1].isdigit():  # no top-level domain is a number, so this is meant to be an IPv4 address
        try:
            return Address.of(host, 0).host
        except DecodeError:
            raise ConfigurationError(f"{text!r}: {host!r} is not an IPv4 address") from None
    return host


def _port(explicit: int | None, *, secure: bool) -> int:
    return explicit or (DEFAULT_TLS_PORT if secure else DEFAULT_PORT)


def _authority(host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return f"{bracketed}:{port}" if port is not None else bracketed
