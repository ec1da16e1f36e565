"""Prefixes and routes: the longest prefix that contains an address wins."""

from __future__ import annotations

from typing import Generic, TypeVar

from polynya.core.addresses import Address, pack_host

T = TypeVar("T")


class Prefix:
    """An IP prefix such as `10.0.0.0/24`, `2001:db8::/32`, or a single address."""

    __slots__ = ("bits", "length", "value")

    def __init__(self, text: str) -> None:
        host, slash, length = text.partition("/")
        packed = pack_host(host)
        self.bits = 8 * len(packed)
        self.length = int(length) if slash else self.bits
        if not 0 <= self.length <= self.bits:
            raise ValueError(f"{text!r} is not a prefix: write HOST/LENGTH, with a length within 0..{self.bits}")
        self.value = int.from_bytes(packed, "big") >> (self.bits - self.length)

    def __contains__(self, host: str) -> bool:
        packed = pack_host(host)
        return 8 * len(packed) == self.bits and int.from_bytes(packed, "big") >> (self.bits - self.length) == self.value

    def host(self, number: int) -> str:
        """Return an address of the prefix: `Prefix("10.0.0.0/24").host(1)` is `10.0.0.1`."""
        value = (self.value << (self.bits - self.length)) + number
        return Address.from_packed(value.to_bytes(self.bits // 8, "big"), 0).host


class Routes(Generic[T]):
    """A routing table. Lookups are cached until the table changes."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], dict[int, T]] = {}
        self._order: list[tuple[int, int]] = []
        self._found: dict[str, T | None] = {}

    def add(self, prefix: str, via: T) -> None:
        """Add or replace a route; `0.0.0.0/0` and `::/0` are the defaults."""
        parsed = Prefix(prefix)
        self._tables.setdefault((parsed.bits, parsed.length), {})[parsed.value] = via
        self._order = sorted(self._tables, reverse=True)
        self._found.clear()

    def remove(self, prefix: str) -> None:
        """Remove a route if it exists."""
        parsed = Prefix(prefix)
        self._tables.get((parsed.bits, parsed.length), {}).pop(parsed.value, None)
        self._found.clear()

    def find(self, host: str) -> T | None:
        """Return the route to `host`, or None."""
        try:
            return self._found[host]
        except KeyError:
            pass
        packed = pack_host(host)
        bits, value = 8 * len(packed), int.from_bytes(packed, "big")
        found = None
        for size, length in self._order:
            if size == bits:
                found = self._tables[size, length].get(value >> (bits - length))
                if found is not None:
                    break
        self._found[host] = found
        return found
