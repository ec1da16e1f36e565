"""The alarm: one timer of the system for all drivers of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from polynya.aio import alarm, clock
from polynya.core.instants import MICROSECOND, MILLISECOND, SECOND, Instant

pytestmark = pytest.mark.loops("asyncio", "uvloop")


@pytest.fixture(params=[True, False], ids=["timerfd", "the loop's timer"])
def timerfd(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param
    assert alarm.loops() == (), "an alarm without holders is removed"


class Sleeper:
    """A timer owner that records when its timer was due, and then calls `then`."""

    def __init__(self, name: str, woken: list[str], *, timerfd: bool) -> None:
        self.name, self.woken = name, woken
        self.then: Callable[[], object] = lambda: None
        self.alarm = alarm.alarm(asyncio.get_running_loop(), timerfd=timerfd)
        self.at: Instant | None = None
        self.up = asyncio.Event()

    def sleep(self, wait: int) -> Instant:
        at = Instant(clock.now() + wait)
        self.alarm.set(self, at)
        return at

    def timer_due(self) -> None:
        self.at = clock.now()
        self.woken.append(self.name)
        self.up.set()
        self.then()


def sleepers(*names: str, timerfd: bool) -> tuple[list[Sleeper], list[str]]:
    woken: list[str] = []
    return [Sleeper(name, woken, timerfd=timerfd) for name in names], woken


async def test_timers_fire_in_the_order_of_time_and_never_early(timerfd: bool) -> None:
    made, woken = sleepers("late", "early", "first", timerfd=timerfd)
    due = [one.sleep(wait) for one, wait in zip(made, (9 * MILLISECOND, 2_300 * MICROSECOND, 0), strict=True)]
    for one, at in zip(made, due, strict=True):
        await one.up.wait()
        assert one.at is not None and one.at >= at
    assert woken == ["first", "early", "late"]
    for one in made:
        one.alarm.leave(one)


async def test_a_timer_that_is_set_again_moves_and_a_canceled_one_does_not_fire(timerfd: bool) -> None:
    [moved, canceled, postponed], woken = sleepers("moved", "canceled", "postponed", timerfd=timerfd)
    moved.sleep(3600 * SECOND)
    canceled.sleep(1 * MILLISECOND)
    postponed.sleep(1 * MILLISECOND)
    canceled.alarm.cancel(canceled)
    later = postponed.sleep(8 * MILLISECOND)
    moved.sleep(2 * MILLISECOND)
    await moved.up.wait()
    await postponed.up.wait()
    assert woken == ["moved", "postponed"] and postponed.at is not None and postponed.at >= later
    for one in (moved, canceled, postponed):
        one.alarm.leave(one)


async def test_a_timer_that_is_always_due_lets_other_tasks_run(timerfd: bool) -> None:
    [busy], woken = sleepers("busy", timerfd=timerfd)
    busy.then = lambda: busy.sleep(0)
    busy.sleep(0)
    await busy.up.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(woken) < 30
    busy.alarm.leave(busy)


async def test_an_owner_that_leaves_is_not_woken_and_the_last_one_removes_the_alarm(timerfd: bool) -> None:
    [one, other, last], woken = sleepers("one", "other", "last", timerfd=timerfd)
    one.then = lambda: one.alarm.leave(one)
    one.sleep(MILLISECOND)
    await one.up.wait()
    assert alarm.loops() == (asyncio.get_running_loop(),), "two others still hold it"
    other.sleep(MILLISECOND)
    last.sleep(2 * MILLISECOND)
    other.alarm.leave(other)
    await last.up.wait()
    assert woken == ["one", "last"]
    last.alarm.leave(last)


@pytest.mark.unhandled(1)
async def test_an_owner_that_raises_is_reported_and_the_others_are_woken(timerfd: bool) -> None:
    [faulty, other], _ = sleepers("faulty", "other", timerfd=timerfd)
    faulty.then = lambda: 1 // 0
    at = faulty.sleep(MILLISECOND)
    other.alarm.set(other, at)
    await other.up.wait()
    for one in (faulty, other):
        one.alarm.leave(one)
