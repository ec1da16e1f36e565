"""Relay ports are chosen at random, used once at a time, rest after use, and can be taken in pairs."""

from __future__ import annotations

import random

import pytest

from polynya.core.instants import SECOND, Instant
from polynya.turn.server.ports import RelayPorts

NOW = Instant(0)


def ports(low: int = 50000, high: int = 50009, rest: int = 0, seed: int = 1) -> RelayPorts:
    return RelayPorts(low, high, rest, random.Random(seed))


def test_every_port_is_taken_once_and_then_none() -> None:
    pool = ports()
    assert sorted(pool.take(now=NOW) or 0 for _ in range(10)) == list(range(50000, 50010))
    assert pool.take(now=NOW) is None and pool.take_even(now=NOW, pair=False) is None and pool.free_ports(now=NOW) == 0


def test_the_order_of_ports_is_unpredictable() -> None:
    given = [[pool.take(now=NOW) for _ in range(10)] for pool in (ports(seed=seed) for seed in range(5))]
    assert len({tuple(each) for each in given}) == 5 and sorted(given[0]) != given[0]
    first = [ports(49152, 65535, seed=seed).take(now=NOW) for seed in range(200)]
    assert len({port // 2048 for port in first if port}) == 8, "from the whole range"


def test_a_released_port_rests_before_it_is_taken_again() -> None:
    pool = ports(50000, 50000, rest=2 * SECOND)
    assert pool.take(now=NOW) == 50000
    pool.release(50000, now=NOW)
    assert pool.take(now=Instant(2 * SECOND - 1)) is None
    assert pool.take(now=Instant(2 * SECOND)) == 50000


def test_releasing_a_port_that_is_not_in_use_is_an_error() -> None:
    pool = ports()
    port = pool.take(now=NOW)
    assert port is not None
    pool.release(port, now=NOW)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(port, now=NOW)


@pytest.mark.parametrize(("low", "high", "evens", "pairs"), [(50000, 50009, 5, 5), (50001, 50009, 4, 4),
                                                             (50000, 50008, 5, 4), (50001, 50001, 0, 0),
                                                             (50000, 50000, 1, 0)])  # fmt: skip
def test_even_ports_and_pairs(low: int, high: int, evens: int, pairs: int) -> None:
    pool = ports(low, high)
    single = [pool.take_even(now=NOW, pair=False) for _ in range(evens + 1)]
    assert single[-1] is None and all(port is not None and port % 2 == 0 for port in single[:-1])
    pool = ports(low, high)
    double = [pool.take_even(now=NOW, pair=True) for _ in range(pairs + 1)]
    assert double[-1] is None and all(port is not None and port % 2 == 0 for port in double[:-1])
    rest = list(iter(lambda: pool.take(now=NOW), None))
    taken = [each for port in double[:-1] if port is not None for each in (port, port + 1)]
    assert sorted(rest + taken) == list(range(low, high + 1)), "the upper port of a pair is not given out"
