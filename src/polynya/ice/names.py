"""Remote candidates that have a name in place of an address (RFC 8839, section 5.1; mDNS ICE candidates, section 3.2).

The name comes from the other side, so what is looked up for it is bounded, and each name only once. The first
address of the answer is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from polynya.core.addresses import Address
from polynya.core.empty import NOTHING
from polynya.core.errors import DecodeError
from polynya.core.machine import RecordType, Resolve, Resolved

from .candidates import Candidate

LIMIT: Final = 16
"""Names of one agent."""


class Names:
    """The names that are being looked up, and the candidates that wait for them."""

    __slots__ = ("_asked", "_waiting")

    def __init__(self) -> None:
        self._asked = 0
        self._waiting: Mapping[Resolve, list[tuple[Candidate, int]]] = NOTHING

    def expects(self, query: Resolve) -> bool:
        """Whether an answer to this query is waited for."""
        return query in self._waiting

    def look_up(self, candidate: Candidate, name: str, stream: int) -> Resolve | None:
        """Let a candidate wait for its name. Returns the query that is to be made, None when there is none to make."""
        for query, waiting in self._waiting.items():
            if query.name == name:
                if len(waiting) < LIMIT:
                    waiting.append((candidate, stream))
                return None
        if self._asked >= LIMIT:
            return None
        self._asked += 1
        query = Resolve(name=name, record=RecordType.ADDRESS, token=self._asked)
        self._waiting = {**self._waiting, query: [(candidate, stream)]}
        return query

    def resolved(self, answer: Resolved) -> list[tuple[Candidate, int]]:
        """The candidates, with their address, that an answer makes usable; none when the name was not found."""
        found = []
        waiting = self._waiting.get(answer.query, ())
        self._waiting = {query: each for query, each in self._waiting.items() if query != answer.query} or NOTHING
        for candidate, stream in waiting:
            try:
                address = Address.of(answer.hosts[0], candidate.address.port) if answer.hosts else None
            except DecodeError:
                address = None
            if address is not None:
                found.append((replace(candidate, address=address), stream))
        return found
