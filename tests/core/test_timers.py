"""The timer table, compared with a simple model, and the properties of each method."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.instants import Instant
from polynya.core.timers import Timers

KEYS = "abcdef"
calls = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from(KEYS), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.sampled_from(KEYS), st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
        st.tuples(st.just("clear"), st.just(""), st.just(0)),
    ),
    max_size=60,
)


class Model:
    """A list of (time, key) in the order in which the timers were set."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []

    def set(self, key: str, at: int) -> None:
        self.cancel(key)
        self.entries.append((at, key))

    def cancel(self, key: str) -> None:
        self.entries = [entry for entry in self.entries if entry[1] != key]

    def due(self, *, now: int) -> list[str]:
        due = sorted((entry for entry in self.entries if entry[0] <= now), key=lambda entry: entry[0])  # stable
        self.entries = [entry for entry in self.entries if entry[0] > now]
        return [key for _, key in due]

    def next(self) -> int | None:
        return min((at for at, _ in self.entries), default=None)


@given(calls)
def test_timers_behave_like_a_sorted_list(calls: list[tuple[str, str, int]]) -> None:
    timers, model = Timers[str](), Model()
    for call, key, number in calls:
        if call == "set":
            timers.set(key, Instant(number))
            model.set(key, number)
        elif call == "cancel":
            timers.cancel(key)
            model.cancel(key)
        elif call == "clear":
            timers.clear()
            model.entries.clear()
        else:
            assert timers.due(now=Instant(number)) == model.due(now=number)
        assert timers.next() == model.next()
        assert len(timers) == len(model.entries)
        for name in KEYS:
            at = next((at for at, other in model.entries if other == name), None)
            assert timers.at(name) == at
            assert (name in timers) is (at is not None)


def test_equal_times_are_due_in_the_order_in_which_they_were_set() -> None:
    timers = Timers[str]()
    for key in "zyx":
        timers.set(key, Instant(5))
    timers.set("z", Instant(5))
    assert timers.due(now=Instant(5)) == ["y", "x", "z"]


def test_a_timer_that_is_set_again_moves() -> None:
    timers = Timers[str]()
    timers.set("a", Instant(5))
    timers.set("a", Instant(9))
    assert timers.next() == 9
    assert timers.due(now=Instant(8)) == []
    assert timers.due(now=Instant(9)) == ["a"]
    assert timers.due(now=Instant(99)) == []


def test_a_timer_is_due_at_its_time_and_not_before() -> None:
    timers = Timers[str]()
    timers.set("a", Instant(10))
    assert timers.due(now=Instant(9)) == []
    assert timers.due(now=Instant(10)) == ["a"]
    assert timers.next() is None


def test_next_changes_nothing() -> None:
    timers = Timers[str]()
    timers.set("a", Instant(1))
    timers.cancel("a")
    timers.set("b", Instant(2))
    assert [timers.next() for _ in range(3)] == [2, 2, 2]
    assert timers.due(now=Instant(2)) == ["b"]


def test_keys_need_not_be_comparable() -> None:
    timers = Timers[object]()
    first, second = object(), object()
    timers.set(first, Instant(1))
    timers.set(second, Instant(1))
    assert timers.due(now=Instant(1)) == [first, second]


def test_moving_a_timer_often_does_not_grow_the_heap(rng: random.Random) -> None:
    timers = Timers[int]()
    for key in range(10):
        timers.set(key, Instant(0))
    for _ in range(100_000):
        timers.set(rng.randrange(10), Instant(rng.randrange(1_000_000)))
    assert timers.size <= 65
    assert len(timers) == 10


@pytest.mark.parametrize("key", ["absent", ""])
def test_canceling_a_timer_that_is_not_set_does_nothing(key: str) -> None:
    timers = Timers[str]()
    timers.cancel(key)
    assert timers.next() is None and timers.at(key) is None
