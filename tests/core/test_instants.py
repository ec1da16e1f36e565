"""Conversion between seconds and nanoseconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.instants import MICROSECOND, MILLISECOND, SECOND, Instant, earliest, in_seconds, nanoseconds


def test_the_units_are_multiples_of_each_other() -> None:
    assert nanoseconds(1) == SECOND == 1000 * MILLISECOND == 1_000_000 * MICROSECOND == 1_000_000_000


@pytest.mark.parametrize(("seconds", "expected"), [(0, 0), (0.05, 50 * MILLISECOND), (39.5, 39_500 * MILLISECOND)])
def test_seconds_are_converted_exactly(seconds: float, expected: int) -> None:
    assert nanoseconds(seconds) == expected
    assert isinstance(nanoseconds(seconds), int)


@given(st.integers(0, 10**15))
def test_microseconds_survive_a_round_trip_through_seconds(microseconds: int) -> None:
    duration = microseconds * MICROSECOND
    assert abs(nanoseconds(in_seconds(duration)) - duration) < MICROSECOND


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), -float("inf")])
def test_negative_and_undefined_durations_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="zero or more seconds"):
        nanoseconds(seconds)


@given(st.lists(st.none() | st.integers(0, 2**62).map(Instant)))
def test_the_earliest_time_ignores_none(times: list[Instant | None]) -> None:
    assert earliest(*times) == min((at for at in times if at is not None), default=None)
