"""Resolution of remote candidates that have a name in place of an address (RFC 8839, 5.1; mDNS candidates, 3.2).

The other side chooses the names, so their number is bounded and each name is resolved only once. The first address of
the result is used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.machine import RecordType, Resolve, Resolved

from .candidates import Candidate

LIMIT: Final = 16
"""Names that one agent resolves, and candidates that wait for one name."""


class Names:
    """The names under resolution, and the candidates that wait for them."""

    __slots__ = ("_asked", "_waiting")

    def __init__(self) -> None:
        self._asked = 0
        self._waiting: dict[Resolve, list[tuple[Candidate, int]]] = {}

    def expects(self, query: Resolve) -> bool:
        """Return whether a query of this agent is pending."""
        return query in self._waiting

    def look_up(self, candidate: Candidate, name: str, stream: int) -> Resolve | None:
        """Let a candidate wait for its name. Returns the query to make, or None if it is pending or over the limit."""
        for query, waiting in self._waiting.items():
            if query.name == name:
                if len(waiting) < LIMIT:
                    waiting.append((candidate, stream))
                return None
        if self._asked >= LIMIT:
            return None
        self._asked += 1
        query = Resolve(name=name, record=RecordType.ADDRESS, token=self._asked)
        self._waiting[query] = [(candidate, stream)]
        return query

    def resolved(self, answer: Resolved) -> list[tuple[Candidate, int]]:
        """Return the candidates of a resolved name with their address; empty if the name was not found."""
        found = []
        for candidate, stream in self._waiting.pop(answer.query, ()):
            try:
                address = Address.of(answer.hosts[0], candidate.address.port) if answer.hosts else None
            except DecodeError:
                address = None
            if address is not None:
                found.append((replace(candidate, address=address), stream))
        return found
