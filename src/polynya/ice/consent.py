"""Consent to send (RFC 7675, section 5.1).

The response to a check is consent to send to its sender, for `consent_timeout` (30 s). While data goes over a pair, a
Binding request is sent on it about every `consent_interval` (5 s, randomized to 4..6 s). Each request is a transaction
that is sent once; a response to any open transaction renews the consent, however late it arrives. So a link with a
long round trip keeps its consent, too.

    GRANTED -- an authenticated response ------------------------------> GRANTED (30 s from now)
    GRANTED -- 30 s without one, or an authenticated 403 --------------> LOST

LOST is final: the credentials are not used on that path again. A pair that carried no data was not asked for consent:
when it is selected it is checked at once, and its 30 s begin.
"""

from __future__ import annotations

from random import Random
from typing import Final

from polynya.core.instants import Instant, in_seconds, nanoseconds

from .config import CONSENT_INTERVAL, CONSENT_TIMEOUT, Timing
from .pairs import Pair

SPREAD: Final = 0.2
"""An interval is drawn from 1 - SPREAD to 1 + SPREAD times `IceConfig.consent_interval`."""
INTERVAL: Final = nanoseconds(CONSENT_INTERVAL)
"""The default interval in nanoseconds."""
LIFETIME: Final = nanoseconds(CONSENT_TIMEOUT)
"""The consent timeout of RFC 7675 in nanoseconds, which peers are assumed to use."""


class Consent:
    """Consent of one pair that carries data. `Pair.answered_at` renews it."""

    __slots__ = ("_random", "_regained_from", "_timing", "next_check", "pair")

    def __init__(self, pair: Pair, timing: Timing, random: Random, *, now: Instant) -> None:
        self.pair = pair
        self._timing = timing
        self._random = random
        self._regained_from = Instant(0)
        if (pair.answered_at or 0) + timing.consent_timeout <= now:
            self._regained_from = now
        self.next_check = max(now, self._draw(now if pair.answered_at is None else pair.answered_at))

    def _draw(self, since: Instant) -> Instant:
        return Instant(since + round(self._timing.consent_interval * self._random.uniform(1 - SPREAD, 1 + SPREAD)))

    @property
    def expires(self) -> Instant:
        return Instant(max(self.pair.answered_at or 0, self._regained_from) + self._timing.consent_timeout)

    def lost(self, *, now: Instant) -> str | None:
        """Return the reason why consent is lost, or None while it is granted."""
        if now < self.expires:
            return None
        return f"no answer to a consent check for {in_seconds(self._timing.consent_timeout):g} s"

    def due(self, *, now: Instant) -> bool:
        """Return whether a consent check is due."""
        return now >= self.next_check

    def sent(self, *, now: Instant) -> None:
        """Record that a consent check was sent, and draw the time of the next one."""
        self.next_check = self._draw(now)

    def next_timer(self) -> Instant:
        return min(self.expires, self.next_check)
