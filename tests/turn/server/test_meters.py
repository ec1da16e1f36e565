"""Limits for all relays of one account together."""

from __future__ import annotations

import pytest

from polynya.core.instants import MILLISECOND, SECOND
from polynya.turn.server import meters
from polynya.turn.server.meters import HOUR, Meter, Meters, SharedLimit


def carried(meter: Meter, size: int, *, since: int, until: int, every: int) -> int:
    return sum(size for at in range(since, until, every) if meter.take(size, at))


def test_a_second_has_its_rate_after_a_burst_of_one_second() -> None:
    meter = Meter(SharedLimit("a", 1_000_000, 0))
    total = carried(meter, 1000, since=SECOND, until=11 * SECOND, every=MILLISECOND // 4)
    assert 10_000_000 <= total <= 11_001_000


def test_an_hour_has_its_bytes_and_the_next_one_has_them_again() -> None:
    meter = Meter(SharedLimit("a", 0, 100_000))
    assert carried(meter, 1000, since=5, until=HOUR, every=SECOND) == 100_000
    assert not meter.take(1, HOUR - 1)
    assert carried(meter, 1000, since=HOUR + 5, until=2 * HOUR, every=SECOND) == 100_000


def test_no_limit_counts_nothing() -> None:
    meter = Meter(SharedLimit("a", 0, 0))
    assert all(meter.take(1 << 40, at) for at in range(10))


def test_new_limits_count_what_was_carried() -> None:
    shared = Meters()
    meter = shared.of(SharedLimit("a", 0, 1000))
    assert meter is not None and meter.take(900, 1)
    assert shared.of(SharedLimit("a", 0, 1000)) is meter
    assert not meter.take(200, 2)
    shared.of(SharedLimit("a", 0, 2000))
    assert meter.take(1100, 3) and not meter.take(1, 4)
    assert shared.of(None) is None


def test_the_number_of_meters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "METERS", 3)
    shared = Meters()
    first = shared.of(SharedLimit("0", 1, 1))
    for number in range(1, 3):
        shared.of(SharedLimit(str(number), 1, 1))
    assert shared.of(SharedLimit("0", 1, 1)) is first
    shared.of(SharedLimit("3", 1, 1))
    assert shared.of(SharedLimit("0", 1, 1)) is first, "the one that was idle for longest is gone"


def test_the_parts_of_several_planes_are_the_whole() -> None:
    part = SharedLimit("a", 1_000_000, 10).part(3)
    assert part == SharedLimit("a", 333_334, 4)
    assert SharedLimit("a", 0, 0).part(3) == SharedLimit("a", 0, 0)
