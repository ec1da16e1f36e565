"""Grammar of a candidate line (RFC 8839, section 5.1; RFC 6544, section 4.5) and of `remote-candidates` (section 5.2).

    candidate:FOUNDATION COMPONENT TRANSPORT PRIORITY ADDRESS PORT typ TYPE [raddr A rport P] [tcptype T] [NAME VALUE]*
    remote-candidates:COMPONENT ADDRESS PORT [COMPONENT ADDRESS PORT]*

The text comes from the other side by signaling, so it is bounded. `DecodeError` names the part of a line that is wrong.
Unknown extensions are kept and written again. A well-formed line with an unknown type raises `UnsupportedCandidate`: it
is ignored and does not spoil the lines beside it.

An agent that hides the related address of a reflexive or relayed candidate writes `raddr 0.0.0.0 rport 9`, or `::`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from polynya.core.addresses import IPV6, Address
from polynya.core.arguments import instance
from polynya.core.errors import DecodeError, UsageError

MAX_LINE: Final = 1024
UNRESOLVED: Final = "0.0.0.0"  # noqa: S104 - the host of an address while only its name is known

HIDDEN_PORT: Final = 9

_FOUNDATION = re.compile(r"[A-Za-z0-9+/]{1,32}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
_VALUE = re.compile(r"[\x21-\x7e\x80-\ud7ff\ue000-\U0010ffff]{1,256}")
_NAME = re.compile(
    r"(?=.{1,253}\.?\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(?:\.[A-Za-z0-9_-]{1,63})*\.?"
)
_NUMERIC = re.compile(r"[0-9.]+")
TYPES: Final = ("host", "srflx", "prflx", "relay")
TCP_TYPES: Final = ("active", "passive", "so")


class UnsupportedCandidate(DecodeError):
    """A well-formed candidate of an unknown kind: ignore it (RFC 8839, section 5.1)."""


class CandidateLine(NamedTuple):
    """The fields of a candidate line. `type` is one of `TYPES`, `tcp_type` one of `TCP_TYPES` or None."""

    foundation: str
    component: int
    transport: str
    priority: int
    address: Address
    """The host is `UNRESOLVED` if the line has a name."""
    host_name: str | None
    type: str
    related: Address | None
    tcp_type: str | None
    generation: int
    extensions: tuple[tuple[str, str], ...]


def parse_line(line: str) -> CandidateLine:
    """Read one candidate line, with or without `a=` and surrounding white space. Raises DecodeError."""
    instance("a candidate line", line, str, error=UsageError)
    if len(line) > MAX_LINE:
        raise DecodeError(f"a candidate of {len(line)} characters is longer than {MAX_LINE}")
    text = line.strip(" \t\r\n").removeprefix("a=")
    prefix, colon, rest = text.partition(":")
    if not colon or prefix.lower() != "candidate":
        raise _error("does not begin with candidate:", line)
    words = rest.split(" ")
    if len(words) < 8 or words[6] != "typ":
        raise _error("lacks one of foundation, component, transport, priority, address, port and typ", line)
    foundation, component, transport, priority, host, port, _, kind = words[:8]
    if not _FOUNDATION.fullmatch(foundation):
        raise _error("has a foundation that is not 1 to 32 of A-Z a-z 0-9 + /", line)
    if not _TOKEN.fullmatch(transport):
        raise _error("has a transport that is not a token", line)
    if not _TOKEN.fullmatch(kind):
        raise _error("has a type that is not a token", line)
    if kind not in TYPES:
        raise UnsupportedCandidate(f"a candidate has the unknown type {kind[:32]!r}: {line[:120]!r}")
    address, host_name = _host(host, _number(port, 65535, "port", line), line)
    pairs = _extensions(words[8:], line)
    return CandidateLine(
        foundation=foundation,
        component=_number(component, 256, "component", line, lowest=1),
        transport=transport.lower(),
        priority=_number(priority, 2**32 - 1, "priority", line),
        address=address,
        host_name=host_name,
        type=kind,
        related=_related(pairs, line),
        tcp_type=_tcp_type(pairs, line),
        generation=_generation(pairs),
        extensions=tuple(pairs),
    )


def format_line(line: CandidateLine) -> str:
    """Return the SDP value of a candidate, `candidate:...`."""
    host = line.host_name or line.address.host
    words = [
        f"candidate:{line.foundation} {line.component} {line.transport} {line.priority}",
        f"{host} {line.address.port} typ {line.type}",
    ]
    related = line.related
    if related is None and line.type != "host":
        related = Address("::" if line.address.family == IPV6 else UNRESOLVED, HIDDEN_PORT)
    if related is not None:
        words.append(f"raddr {_zoned(related)} rport {related.port}")
    if line.tcp_type is not None:
        words.append(f"tcptype {line.tcp_type}")
    if line.generation:
        words.append(f"generation {line.generation}")
    words += [f"{name} {value}" for name, value in line.extensions]
    return " ".join(words)


class RemoteCandidate(NamedTuple):
    """The candidate of the receiver that the controlling agent selected for one component (RFC 8839, section 5.2)."""

    component: int
    address: Address


def parse_remote_candidates(text: str) -> tuple[RemoteCandidate, ...]:
    """Read the value of `remote-candidates`. Raises DecodeError."""
    words = text.split(" ")
    if len(text) > MAX_LINE or len(words) % 3:
        raise DecodeError(f"remote-candidates are not components, addresses and ports in turn: {text[:120]!r}")
    found = []
    for component, host, port in zip(words[::3], words[1::3], words[2::3], strict=True):
        if not all(word.isascii() and word.isdigit() and len(word) <= 5 for word in (component, port)):
            raise DecodeError(f"remote-candidates have a component or port that is not a number: {text[:120]!r}")
        if not 1 <= int(component) <= 256:
            raise DecodeError(f"remote-candidates have a component out of range: {text[:120]!r}")
        found.append(RemoteCandidate(int(component), Address.of(host, int(port))))
    return tuple(found)


def format_remote_candidates(candidates: Iterable[RemoteCandidate]) -> str:
    """Return the value of `remote-candidates`."""
    return " ".join(f"{component} {_zoned(address)} {address.port}" for component, address in candidates)


def _zoned(address: Address) -> str:
    return f"{address.host}%{address.zone}" if address.zone else address.host


def _error(what: str, line: str) -> DecodeError:
    return DecodeError(f"a candidate {what}: {line[:120]!r}")


def _number(text: str, highest: int, name: str, line: str, *, lowest: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and lowest <= int(text) <= highest):
        raise _error(f"has a {name} that is not within {lowest}..{highest}", line)
    return int(text)


def _host(host: str, port: int, line: str) -> tuple[Address, str | None]:
    if ":" not in host and not _NUMERIC.fullmatch(host):
        if not _NAME.fullmatch(host):
            raise _error("has an address that is neither an IP address nor a name", line)
        return Address(UNRESOLVED, port), host
    if "%" in host:
        what = "an address with a zone, which means nothing on another host"
        raise UnsupportedCandidate(f"a candidate has {what}: {line[:120]!r}")
    try:
        return Address.of(host, port), None
    except DecodeError:
        raise _error("has an address that is neither an IP address nor a name", line) from None


def _extensions(words: list[str], line: str) -> list[tuple[str, str]]:
    if len(words) % 2:
        raise _error("has an extension without a value", line)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    for name, value in pairs:
        if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise _error(f"has the malformed extension {name[:32]!r}", line)
    return pairs


def _take(pairs: list[tuple[str, str]], name: str) -> str | None:
    for index, pair in enumerate(pairs):
        if pair[0] == name:
            del pairs[index]
            return pair[1]
    return None


def _related(pairs: list[tuple[str, str]], line: str) -> Address | None:
    host, port = _take(pairs, "raddr"), _take(pairs, "rport")
    if host is None or port is None:
        return None  # for diagnosis only (RFC 8839, section 5.1)
    number = _number(port, 65535, "rport", line)
    try:
        related = Address.of(host, number)
    except DecodeError:
        return None  # a name, as libwebrtc writes for mDNS
    return None if number == HIDDEN_PORT and not any(related.packed) else related


def _tcp_type(pairs: list[tuple[str, str]], line: str) -> str | None:
    text = _take(pairs, "tcptype")
    if text is not None and text not in TCP_TYPES:
        raise _error(f"has the unknown tcptype {text[:32]!r}", line)
    return text


def _generation(pairs: list[tuple[str, str]]) -> int:
    """Read an extension of libwebrtc; anything but a small number counts as 0."""
    text = _take(pairs, "generation")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 9 else 0
