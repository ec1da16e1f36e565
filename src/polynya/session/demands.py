"""Demands for TURN credentials: asks the owner for those of each URI, again and again with a backoff.

The first demand is made at once, the next one a second after it, then after up to 64 s. The waits are the same if the
owner could not get credentials and if the server refused those that it got. After two of the longest waits without a
demand, the next one is a first one again: credentials that expire every hour are asked for at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from polynya.core.instants import Instant, earliest

from .backoff import FIRST_WAIT, LONGEST_WAIT
from .events import CredentialsWanted

MAX_DEMANDS: Final = 14
"""Demands in a row, 10 minutes in all, after which a relay that was never allocated is given up."""

_NEVER: Final = Instant(0)


@dataclass(slots=True)
class _Demand:
    wanted: CredentialsWanted
    count: int = 0
    """Demands in a row."""
    asked_at: Instant = _NEVER
    again_at: Instant | None = None

    @property
    def wait(self) -> int:
        """The time between the last demand and the next one."""
        return min(FIRST_WAIT << min(self.count - 1, 16), LONGEST_WAIT) if self.count else 0


class Demands:
    """The demands of a session, by the index of the URI."""

    __slots__ = ("_demands",)

    def __init__(self) -> None:
        self._demands: dict[int, _Demand] = {}

    def __len__(self) -> int:
        return len(self._demands)

    def want(self, index: int, wanted: CredentialsWanted, *, now: Instant) -> None:
        """Schedule a demand: now, or later if the last one was made a short time ago."""
        demand = self._demands.setdefault(index, _Demand(wanted))
        demand.wanted = wanted
        if now > demand.asked_at + 2 * LONGEST_WAIT:
            demand.count = 0
        demand.again_at = Instant(demand.asked_at + demand.wait)

    def failed(self, index: int, *, now: Instant) -> bool:
        """Schedule the next demand, because the owner has no credentials now; return whether few were made in vain."""
        demand = self._demands.get(index)
        if demand is None:
            return False
        demand.again_at = Instant(now + demand.wait)
        return demand.count < MAX_DEMANDS

    def answered(self, index: int) -> None:
        """Cancel the next demand: there are credentials to try."""
        if index in self._demands:
            self._demands[index].again_at = None

    def due(self, *, now: Instant) -> list[int]:
        """Return the URIs whose demand is due, and cancel it; `make` makes it if it is still needed."""
        due = [
            index for index, demand in self._demands.items() if demand.again_at is not None and demand.again_at <= now
        ]
        for index in due:
            self._demands[index].again_at = None
        return due

    def make(self, index: int, *, now: Instant) -> CredentialsWanted:
        """Count a demand, and return its event."""
        demand = self._demands[index]
        demand.count += 1
        demand.asked_at = now
        return demand.wanted

    def next_timer(self) -> Instant | None:
        return earliest(*(demand.again_at for demand in self._demands.values()))

    def clear(self) -> None:
        self._demands.clear()
