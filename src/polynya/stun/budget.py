"""Rate limit by source: so many units a second with a burst, in a table of bounded size.

Each source has one integer: the time when its bucket is full again (generic cell rate algorithm).
"""

from __future__ import annotations

from typing import Final

from polynya.core.addresses import pack_host
from polynya.core.instants import SECOND, Instant

SOURCES: Final = 65_536
"""Limit of sources in the table; then the oldest are dropped, and start again with a full bucket."""


def source_of(host: str) -> str:
    """Return the source of a budget: an IPv4 host, or the /64 of an IPv6 host, which one subscriber has."""
    return pack_host(host)[:8].hex() if ":" in host else host


class Budget:
    """Units per second for each source. A rate of 0 disables the limit."""

    def __init__(self, per_second: int, burst: int | None = None, sources: int = SOURCES) -> None:
        self._interval = SECOND // per_second if per_second else 0
        self._burst = self._interval * (burst if burst is not None else per_second)
        self._sources = sources
        self._full_again: dict[str, int] = {}

    def take(self, source: str, *, now: Instant) -> bool:
        """Use one unit of a source's budget; return False if none is left."""
        if not self._interval:
            return True
        table = self._full_again
        full_again = max(table.pop(source, 0), now) + self._interval
        allowed = full_again - now <= self._burst
        if len(table) >= self._sources:
            del table[next(iter(table))]
        table[source] = full_again if allowed else full_again - self._interval
        return allowed

    def __len__(self) -> int:
        return len(self._full_again)
