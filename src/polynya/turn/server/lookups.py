"""User lookups outside the server: requests that wait for one, and a cache of recent results.

unknown name --LookUp--> requests wait --UserFound--> authenticated again, result cached
                                       --timeout----> dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from polynya.core.compact import Queue
from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers
from polynya.stun.message import Message

from .commands import Client
from .config import Limits
from .users import User

KEPT: Final = 60 * SECOND
KEPT_UNKNOWN: Final = 5 * SECOND
_CACHED: Final = 10_000


@dataclass(frozen=True, slots=True)
class LookUp:
    """Asks the owner for a user; the owner answers with `UserFound`, even if there is no such user."""

    name: str


@dataclass(frozen=True, slots=True)
class UserFound:
    """The result of a `LookUp`. `user` is None if there is no such user."""

    name: str
    user: User | None


@dataclass(slots=True)
class PendingRequest:
    """A request that waits for a user lookup. Its nonce was valid, so its source is not forged."""

    message: Message
    client: Client
    stream: bool


class LookUps:
    """Pending lookups and their requests, by user name."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pending: dict[str, dict[tuple[Client, bytes], PendingRequest]] = {}
        self._count = 0
        self._timeouts: Timers[str] = Timers()
        self._known: dict[str, tuple[Instant, tuple[User, ...]]] = {}
        self._outputs: Queue[LookUp] = Queue()

    def known(self, name: str, *, now: Instant) -> tuple[User, ...] | None:
        """Return the cached result of a lookup; None if there is none."""
        entry = self._known.get(name)
        return entry[1] if entry is not None and now < entry[0] else None

    def add(self, name: str, request: PendingRequest, *, now: Instant) -> bool:
        """Let a request wait for a lookup, and start it unless it is pending; False if too many requests wait."""
        if self.limits.pending_lookups and self._count >= self.limits.pending_lookups:
            return False
        pending = self._pending.get(name)
        if pending is None:
            pending = self._pending[name] = {}
            self._timeouts.set(name, Instant(now + self.limits.lookup_patience))
            self._outputs.append(LookUp(name))
        key = request.client, request.message.transaction_id
        self._count += key not in pending
        pending[key] = request
        return True

    def found(self, name: str, users: Sequence[User], *, now: Instant) -> list[PendingRequest]:
        """Cache the result of a lookup and return the requests that waited for it."""
        known = self._known
        known.pop(name, None)
        if len(known) >= _CACHED:
            del known[next(iter(known))]
        known[name] = Instant(now + (KEPT if users else KEPT_UNKNOWN)), tuple(users)
        return self._release(name)

    def forget(self, name: str | None = None) -> None:
        """Drop the cached result for one user, or for all."""
        if name is None:
            self._known.clear()
        else:
            self._known.pop(name, None)

    def tick(self, *, now: Instant) -> int:
        """Drop the requests whose lookup has timed out; returns their number."""
        return sum(len(self._release(name)) for name in self._timeouts.due(now=now))

    def next_timer(self) -> Instant | None:
        return self._timeouts.next()

    def outputs(self) -> list[LookUp]:
        return self._outputs.drain()

    def _release(self, name: str) -> list[PendingRequest]:
        self._timeouts.cancel(name)
        pending = list(self._pending.pop(name, {}).values())
        self._count -= len(pending)
        return pending
