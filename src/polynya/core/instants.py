"""Time in machines: integer nanoseconds on the clock of their owner.

Integers are added and compared exactly, so a run with the same seed produces the same bytes. Public options and reports
are in seconds; the functions here convert them.
"""

from __future__ import annotations

from typing import NewType

from .arguments import seconds as checked_seconds

Instant = NewType("Instant", int)
"""A point in time: nanoseconds on the owner's clock. Only differences have a meaning."""

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000


def nanoseconds(seconds: float) -> int:
    """Convert seconds to nanoseconds; raises ValueError if they are negative or not a number."""
    if not seconds >= 0:
        raise ValueError(f"a duration is zero or more seconds, not {seconds!r}")
    return round(seconds * SECOND)


def duration(name: str, seconds: float, *, above_zero: bool = False) -> int:
    """Convert the option `name` from seconds to nanoseconds. Raises ConfigurationError if it is no duration."""
    return round(checked_seconds(name, seconds, above_zero=above_zero) * SECOND)


def in_seconds(duration: int) -> float:
    """Convert nanoseconds to seconds."""
    return duration / SECOND


def earliest(*times: Instant | None) -> Instant | None:
    """Return the earliest of the given times; None if all are None."""
    first: Instant | None = None
    for at in times:
        if at is not None and (first is None or at < first):
            first = at
    return first
