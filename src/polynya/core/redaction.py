"""Redaction of texts, report data and trace events: addresses, names, ufrags and user names get replacements.

One `Replacements` gives equal replacements for equal values, so that several files of one run still fit together. A
replaced address keeps its kind: private ones become other private ones, public ones those for documentation (RFC 5737,
RFC 3849). Loopback, unspecified and multicast addresses, ports and interface names stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .addresses import Address, pack_host, scope
from .errors import DecodeError
from .trace import TraceEvent

_KEPT: Final = frozenset({"loopback", "unspecified", "multicast"})
_WORD: Final = re.compile(
    r"""(?P<url>(?<![\w.])(?:https?|wss?)://[^\s'"<>,;]+)
    | (?P<labeled>\b(?:ufrag|user|users?\ names?|credentials\ of|realm|room)\ '[^']*'|\bice-(?:ufrag|pwd):\S+)
    | (?P<v6>(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4})?(?:%[\w.-]+)?(?![\w:]))
    | (?P<v4>(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d))
    | (?P<name>(?<![\w.-])(?:[\w-]+\.)+(?!local\b)[A-Za-z][A-Za-z0-9-]+\.?(?![\w-]))
    | (?P<mdns>(?<![\w.-])(?:[\w-]+\.)+local\b)
    | (?P<hexadecimal>\b[0-9a-f]{32}\b)
    | (?P<token>[A-Za-z0-9+/]{4,256})
    """,
    re.VERBOSE | re.IGNORECASE,
)
_EXTENSION: Final = re.compile(r"(candidate:[^\n\r]*? ufrag )([^\s'\"]+)")
"""The ufrag in a candidate line."""
_SECRET_KEYS: Final = {"ufrag", "remote_ufrag", "usernameFragment", "username", "user", "realm", "room"}
"""Fields of reports and traces whose whole text is replaced."""
_UFRAG_KEYS: Final = {"ufrag", "remote_ufrag", "usernameFragment"}
_PLAIN_NAMES: Final = {"localhost", "e.g", "i.e"}
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class Replacements:
    """Gives each value its replacement: the first of its kind that is free. The same value always gets the same one."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    # --------------------------------------------------------------------------------------------------------- values

    def host(self, host: str) -> str:
        """Returns the replacement of an IP address without a port."""
        known = self._hosts.get(host)
        if known is None:
            known = self._new_host(host)
            if known == host and scope(host) not in _KEPT:  # it looks like a replacement itself
                known = self._new_host(host)
            self._hosts[host] = known
        return known

    def address(self, address: Address) -> Address:
        return address._replace(host=self.host(address.host))

    def name(self, name: str) -> str:
        """Returns the replacement of a host name: `name1.example`, or `name1.local` for mDNS."""
        plain = name.lower().rstrip(".")
        if plain in _PLAIN_NAMES:
            return name
        if plain not in self._names:
            domain = "local" if plain.endswith(".local") else "example"
            self._names[plain] = f"name{self._count('name')}.{domain}"
        return self._names[plain]

    def token(self, token: str) -> str:
        """Returns the replacement of a ufrag, user name, realm or room, of the same length in bytes.

        From now on, texts that hold the token are replaced, too.
        """
        if token not in self._tokens:
            size, number = len(token.encode()), self._count("token")
            digits = ""
            while number or not digits:
                number, digit = divmod(number, len(_LETTERS))
                digits = _LETTERS[digit] + digits
            self._tokens[token] = digits.rjust(size, "x")[-size:] if size else ""
        return self._tokens[token]

    def _count(self, kind: str) -> int:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind]

    def _new_host(self, host: str) -> str:
        kind = scope(host)
        if kind in _KEPT:
            return host
        packed = pack_host(host)
        if len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff"):
            return f"::ffff:{self.host('.'.join(map(str, packed[12:])))}"
        family = 4 if len(packed) == 4 else 6
        number = self._count(f"{kind}{family}")
        if family == 6:
            prefix = {"link-local": "fe80", "private": "fd00"}.get(kind, "2001:db8")
            high, low = divmod(number, 0x10000)
            return Address.of(f"{prefix}::{high:x}:{low:x}", 0).host
        high, low = divmod(number, 250)
        if kind == "link-local":
            return f"169.254.{high % 256}.{low + 1}"
        if kind == "private":
            return f"10.0.{high % 256}.{low + 1}"
        documentation = ("192.0.2", "198.51.100", "203.0.113")
        return f"{documentation[high] if high < 3 else f'198.18.{high % 256}'}.{low + 1}"

    # ---------------------------------------------------------------------------------------------------------- texts

    def text(self, text: str) -> str:
        """Returns a text with every address, name and known token replaced."""
        for line in _EXTENSION.finditer(text):
            self.token(line[2])
        return _WORD.sub(self._word, text)

    def data(self, value: Any, key: str = "") -> Any:
        """Returns data that is fit for JSON with every text in it replaced, keys of dictionaries included."""
        if isinstance(value, str):
            return self.token(value) if key in _SECRET_KEYS and value else self.text(value)
        if isinstance(value, dict):
            for name in _UFRAG_KEYS & value.keys():  # learned first: other members mention them
                if isinstance(value[name], str):
                    self.token(value[name])
            return {self.text(str(name)): self.data(each, str(name)) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(each, key) for each in value]
        return value

    def event(self, event: TraceEvent) -> TraceEvent:
        """Returns a trace event with its reason and fields redacted. Its kind, machine and node stay."""
        fields = self.data(event.fields)
        return TraceEvent(event.at, event.node, event.machine, event.kind, self.text(event.reason), fields)

    def _word(self, match: re.Match[str]) -> str:
        found = match[0]
        kind = match.lastgroup or ""
        return _BY_KIND[kind](self, found)

    def _url(self, found: str) -> str:
        scheme, _, rest = found.partition("://")
        authority, slash, path = rest.partition("/")
        credentials, at, authority = authority.rpartition("@")
        return f"{scheme}://{self.token(credentials) if at else ''}{at}{self.text(authority)}{slash}{self.text(path)}"

    def _labeled(self, found: str) -> str:
        if found.endswith("'"):
            label, _, value = found.rstrip("'").partition("'")
            return f"{label}'{self.token(value)}'"
        label, _, value = found.partition(":")
        return f"{label}:{self.token(value)}"

    def _address(self, found: str) -> str:
        literal, percent, zone = found.partition("%")
        try:
            host = Address.of(literal, 0).host
        except DecodeError:
            return found
        return f"{self.host(host)}{percent}{zone}"

    def _known(self, found: str) -> str:
        return self._tokens.get(found, found)


_BY_KIND: Final[dict[str, Callable[[Replacements, str], str]]] = {
    "url": Replacements._url,
    "labeled": Replacements._labeled,
    "v6": Replacements._address,
    "v4": Replacements._address,
    "name": Replacements.name,
    "mdns": Replacements.name,
    "hexadecimal": Replacements.token,
    "token": Replacements._known,
}
