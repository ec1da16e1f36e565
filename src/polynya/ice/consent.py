"""Consent to send (RFC 7675) and keepalives (RFC 8445, section 11).

An answered check is consent to be sent to for 30 s. While data goes over a pair, a Binding request is sent on it
every 4 to 6 s, at random; each is a transaction of its own and never sent again, and an answer to any that is still
outstanding renews the consent, however late it comes: a link with a long round trip is as good as a short one.

    GRANTED -- an authenticated answer ------------------------------> GRANTED (30 s from now)
    GRANTED -- 30 s without one, or an authenticated 403 ------------> LOST

What is lost stays lost: the credentials are not used on that path again (section 5.1). But a pair that carried
nothing has not lost what nobody asked for: when it is to carry data after all, it is asked at once and has 30 s.
"""

from __future__ import annotations

from random import Random
from typing import Final

from polynya.core.instants import SECOND, Instant

from .pairs import Pair

INTERVAL: Final = 5 * SECOND
SPREAD: Final = 0.2
"""An interval is drawn from 1 - SPREAD to 1 + SPREAD times INTERVAL."""
LIFETIME: Final = 30 * SECOND
KEEPALIVE: Final = 15 * SECOND
"""Tr: a mapping that carries nothing else is kept by an indication this often."""


class Consent:
    """The consent of one pair that carries data. The pair's `answered_at` is what renews it."""

    __slots__ = ("_random", "_regained_from", "next_check", "pair")

    def __init__(self, pair: Pair, random: Random, *, now: Instant) -> None:
        self.pair = pair
        self._random = random
        self._regained_from = Instant(0)
        if (pair.answered_at or 0) + LIFETIME <= now:
            self._regained_from = now
        self.next_check = max(now, self._draw(now if pair.answered_at is None else pair.answered_at))

    def _draw(self, since: Instant) -> Instant:
        return Instant(since + round(INTERVAL * self._random.uniform(1 - SPREAD, 1 + SPREAD)))

    @property
    def expires(self) -> Instant:
        return Instant(max(self.pair.answered_at or 0, self._regained_from) + LIFETIME)

    def lost(self, *, now: Instant) -> str | None:
        """Why the consent is lost, or None while it is there."""
        return "no answer to a consent check for 30 s" if now >= self.expires else None

    def due(self, *, now: Instant) -> bool:
        """Whether a request is to be sent."""
        return now >= self.next_check

    def sent(self, *, now: Instant) -> None:
        """A request was sent; the next one is drawn."""
        self.next_check = self._draw(now)

    def next_timer(self) -> Instant:
        return min(self.expires, self.next_check)
