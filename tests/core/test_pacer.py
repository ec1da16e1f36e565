"""RFC 8445, section 14.2: over all agents of a process, no two new transactions within one interval."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.pacer import MINIMUM_INTERVAL, Pacer, Pacing

START = Instant(100 * SECOND)

asks = st.lists(st.integers(0, 20 * MILLISECOND), max_size=50)


def test_the_default_is_the_rfcs_five_milliseconds() -> None:
    assert Pacer().interval == MINIMUM_INTERVAL == 5 * MILLISECOND


@given(asks)
def test_slots_lie_apart_and_never_in_the_past(gaps: list[int]) -> None:
    pacer, now, slots = Pacer(), 0, []
    for gap in gaps:
        now += gap
        slot = pacer.reserve(now=Instant(now))
        assert slot >= now
        slots.append(slot)
    assert all(later - earlier >= pacer.interval for earlier, later in pairwise(slots))


@given(asks)
def test_nobody_waits_longer_than_those_before_need(gaps: list[int]) -> None:
    pacer, now, last = Pacer(), 0, None
    for gap in gaps:
        now += gap
        slot = pacer.reserve(now=Instant(now))
        assert slot == (now if last is None else max(now, last + pacer.interval))
        last = slot


def test_a_slot_is_free_at_once_after_a_pause() -> None:
    pacer = Pacer(10)
    assert [pacer.reserve(now=Instant(0)), pacer.reserve(now=Instant(0)), pacer.reserve(now=Instant(500))] == [
        0,
        10,
        500,
    ]


def test_the_last_slot_can_be_given_back() -> None:
    pacer = Pacer(10)
    pacer.reserve(now=Instant(0))
    slot = pacer.reserve(now=Instant(0))
    pacer.release(slot)
    assert pacer.reserve(now=Instant(0)) == slot


def test_giving_back_an_earlier_slot_lets_nobody_come_too_close() -> None:
    pacer = Pacer(10)
    first, second = pacer.reserve(now=Instant(0)), pacer.reserve(now=Instant(0))
    pacer.release(first)
    assert pacer.reserve(now=Instant(0)) == second + 10


def test_giving_back_twice_frees_one_slot() -> None:
    pacer = Pacer(10)
    pacer.reserve(now=Instant(0))
    slot = pacer.reserve(now=Instant(0))
    pacer.release(slot)
    pacer.release(slot)
    assert pacer.reserve(now=Instant(0)) == slot


def test_a_lab_may_switch_pacing_off_but_not_turn_it_around() -> None:
    pacer = Pacer(0)
    assert [pacer.reserve(now=Instant(7)) for _ in range(3)] == [7, 7, 7]
    with pytest.raises(ValueError, match="zero or more"):
        Pacer(-1)


def test_one_who_was_late_keeps_the_next_one_waiting() -> None:
    """A busy process acts at 14 on the slots 0 and 10 of two agents: the second one has to wait until 24."""
    pacer = Pacer(10)
    first, second = pacer.reserve(now=Instant(0)), pacer.reserve(now=Instant(0))
    assert max(first, pacer.free_at) <= 14
    pacer.used(now=Instant(14))
    assert max(second, pacer.free_at) == 24
    assert pacer.reserve(now=Instant(14)) == 24


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12 * MILLISECOND)), min_size=1, max_size=40))
def test_owners_that_ask_and_tell_start_apart_however_late_they_are(steps: list[tuple[int, int]]) -> None:
    pacer, now, slots, started = Pacer(), 0, dict[int, int](), list[int]()
    for owner, later in steps:
        now += later
        if owner not in slots:
            slots[owner] = pacer.reserve(now=Instant(now))
        for each, slot in list(slots.items()):
            if max(slot, pacer.free_at) <= now:
                pacer.used(now=Instant(now))
                started.append(now)
                del slots[each]
    assert all(later - earlier >= pacer.interval for earlier, later in pairwise(started))


def test_an_agent_without_work_takes_no_slot() -> None:
    pacer = Pacer()
    pacing = Pacing(pacer, 50 * MILLISECOND)
    assert pacing.ready(now=START)
    pacing.used(now=START)
    assert not pacing.ready(now=START)
    assert pacing.next_timer() == START + 50 * MILLISECOND
    pacing.idle()
    assert pacing.next_timer() is None
    assert pacer.reserve(now=Instant(START + 5 * MILLISECOND)) == START + 5 * MILLISECOND


def test_a_slot_that_is_not_needed_is_given_back() -> None:
    pacer = Pacer()
    pacer.reserve(now=START)
    pacing = Pacing(pacer, 50 * MILLISECOND)
    assert not pacing.ready(now=START)
    assert pacing.next_timer() == START + 5 * MILLISECOND
    pacing.idle()
    assert pacer.reserve(now=START) == START + 5 * MILLISECOND
