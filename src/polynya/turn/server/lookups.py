"""Requests that wait until somebody outside has said who their user is, and the answers that came, for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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
    """Say who this is: answer with `UserFound`, also when it is nobody."""

    name: str


@dataclass(frozen=True, slots=True)
class UserFound:
    """The answer to a `LookUp`. `user` is None for a stranger."""

    name: str
    user: User | None


@dataclass(slots=True)
class Waiting:
    """A request that is judged again when its user is known. Its nonce was good, so its source is not forged."""

    message: Message
    client: Client
    stream: bool


class LookUps:
    """Who is being looked up, by name."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: dict[str, dict[tuple[Client, bytes], Waiting]] = {}
        self._count = 0
        self._patience: Timers[str] = Timers()
        self._known: dict[str, tuple[Instant, tuple[User, ...]]] = {}
        self._outputs: list[LookUp] = []

    def known(self, name: str, *, now: Instant) -> tuple[User, ...] | None:
        """Who this is, when it was asked not long ago."""
        entry = self._known.get(name)
        return entry[1] if entry is not None and now < entry[0] else None

    def wait(self, name: str, request: Waiting, *, now: Instant) -> bool:
        """Let a request wait, and ask unless that was done already; False when too many wait."""
        if self.limits.pending_lookups and self._count >= self.limits.pending_lookups:
            return False
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = {}
            self._patience.set(name, Instant(now + self.limits.lookup_patience))
            self._outputs.append(LookUp(name))
        key = request.client, request.message.transaction_id
        self._count += key not in waiting
        waiting[key] = request
        return True

    def found(self, name: str, users: Sequence[User], *, now: Instant) -> list[Waiting]:
        """Keep an answer, and let go who waited for it."""
        known = self._known
        known.pop(name, None)
        if len(known) >= _CACHED:
            del known[next(iter(known))]
        known[name] = Instant(now + (KEPT if users else KEPT_UNKNOWN)), tuple(users)
        return self._release(name)

    def forget(self, name: str | None = None) -> None:
        """Ask anew next time: for one user, or for all."""
        if name is None:
            self._known.clear()
        else:
            self._known.pop(name, None)

    def tick(self, *, now: Instant) -> int:
        """Drop the requests that waited too long; how many."""
        return sum(len(self._release(name)) for name in self._patience.due(now=now))

    def next_timer(self) -> Instant | None:
        return self._patience.next()

    def outputs(self) -> list[LookUp]:
        drained, self._outputs = self._outputs, []
        return drained

    def _release(self, name: str) -> list[Waiting]:
        self._patience.cancel(name)
        waiting = list(self._waiting.pop(name, {}).values())
        self._count -= len(waiting)
        return waiting
