"""Census of the HTTP connections and WebSockets: limits their number, in all and of each source."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from polynya.aio.accepting import Seldom
from polynya.core.errors import DecodeError
from polynya.stun.budget import source_of

logger: Final = logging.getLogger("polynya.serve")

SPARE: Final = 64
"""Connections of one source beyond its signaling WebSockets: for health checks, and for those that are refused."""
SPARE_IN_ALL: Final = 1000
"""The same for all sources together."""


class Census:
    """Counts connections by source: an IPv4 address or IPv6 /64. Addresses in `exempt` are trusted proxies."""

    def __init__(self, in_all: int, of_source: int, exempt: Collection[str] = ()) -> None:
        self._in_all = in_all
        self._of_source = of_source
        self._exempt = frozenset(exempt)
        self._by_source: dict[str, int] = {}
        self._total = 0
        self._faults = Seldom(asyncio.get_running_loop().time)

    def enter(self, host: str) -> bool:
        """Count a connection; False, and not counted, if there are too many."""
        source = _source(host)
        count = self._by_source.get(source, 0)
        if self._total >= self._in_all:
            self._log(f"there are {self._total}")
            return False
        if count >= self._of_source and host not in self._exempt:
            self._log(f"{host} has {count}")
            return False
        self._total += 1
        self._by_source[source] = count + 1
        return True

    def leave(self, host: str) -> None:
        """Count the end of a connection that was counted."""
        source = _source(host)
        self._total -= 1
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]

    def _log(self, why: str) -> None:
        if since := self._faults.due():
            more = f" ({since} since the last such line)" if since > 1 else ""
            logger.warning("an HTTP connection was refused: %s already%s", why, more)


def _source(host: str) -> str:
    try:
        return source_of(host.partition("%")[0])
    except DecodeError:
        return host  # not an IP address
