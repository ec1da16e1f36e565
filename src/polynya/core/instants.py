"""Time as the machines see it: an integer of nanoseconds on their owner's clock.

Integers add and compare exactly, so the same seed gives the same bytes. What a user says or reads is in seconds; it is
converted here and nowhere else.
"""

from __future__ import annotations

from math import isfinite
from typing import NewType

from .errors import ConfigurationError

Instant = NewType("Instant", int)
"""A point in time, nanoseconds on the owner's clock. Only differences mean something."""

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """A duration that a user gave in seconds, in nanoseconds; ValueError when it is negative or not a number."""
    if not seconds >= 0:
        raise ValueError(f"a duration is zero or more seconds, not {seconds!r}")
    return round(seconds * SECOND)


def duration(name: str, seconds: float, *, above_zero: bool = False) -> int:
    """Convert the option `name` from seconds to nanoseconds. Raises ConfigurationError if it is no duration."""
    if not isfinite(seconds) or seconds < 0 or (above_zero and seconds == 0):
        least = "more than zero" if above_zero else "zero or more"
        raise ConfigurationError(f"{name} is {least} seconds, not {seconds!r}")
    return round(seconds * SECOND)


def in_seconds(duration: int) -> float:
    """A duration in seconds, for people."""
    return duration / SECOND


def earliest(*times: Instant | None) -> Instant | None:
    """The first of those that are set; None where none is."""
    first: Instant | None = None
    for at in times:
        if at is not None and (first is None or at < first):
            first = at
    return first
