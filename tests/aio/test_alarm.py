"""The one timer that wakes all drivers of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from polynya.aio import alarm, clock
from polynya.core.instants import MICROSECOND, MILLISECOND, SECOND, Instant
from tests.aio.conftest import Run


@pytest.fixture(params=["the system's timer", "the loop's timer"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "the loop's timer":
        monkeypatch.setattr(alarm, "_make_file", lambda: None)
    yield
    assert not alarm._alarms, "an alarm that nobody has is gone"


pytestmark = pytest.mark.usefixtures("_kind")


class TimerOwner:
    """Notes when it was woken, and may do something then."""

    def __init__(self, name: str, woken: list[str], then: Callable[[], None] = lambda: None) -> None:
        self.name, self.woken, self.then = name, woken, then
        self.alarm = alarm.alarm(asyncio.get_running_loop())
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


def sleepers(*names: str) -> tuple[list[TimerOwner], list[str]]:
    woken: list[str] = []
    return [TimerOwner(name, woken) for name in names], woken


def test_everyone_is_woken_in_the_order_of_time_and_never_early(run: Run) -> None:
    async def main() -> None:
        made, woken = sleepers("late", "early", "first")
        due = [one.sleep(wait) for one, wait in zip(made, (9 * MILLISECOND, 2_300 * MICROSECOND, 0), strict=True)]
        for one, at in zip(made, due, strict=True):
            await one.up.wait()
            assert one.at is not None and one.at >= at
        assert woken == ["first", "early", "late"]
        for one in made:
            one.alarm.leave(one)

    run(main())


def test_a_time_that_is_set_anew_holds_and_a_cancelled_one_does_not(run: Run) -> None:
    async def main() -> None:
        [moved, cancelled, postponed], woken = sleepers("moved", "cancelled", "postponed")
        moved.sleep(3600 * SECOND)
        cancelled.sleep(1 * MILLISECOND)
        postponed.sleep(1 * MILLISECOND)
        cancelled.alarm.cancel(cancelled)
        until = postponed.sleep(8 * MILLISECOND)
        moved.sleep(2 * MILLISECOND)
        await moved.up.wait()
        await postponed.up.wait()
        assert woken == ["moved", "postponed"] and postponed.at is not None and postponed.at >= until
        for one in (moved, cancelled, postponed):
            one.alarm.leave(one)

    run(main())


def test_one_that_is_always_due_leaves_the_loop_its_turns(run: Run) -> None:
    async def main() -> None:
        [busy], woken = sleepers("busy")
        busy.then = lambda: busy.sleep(0) and None
        busy.sleep(0)
        await busy.up.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(woken) < 30
        busy.alarm.leave(busy)

    run(main())


def test_who_leaves_while_it_is_due_is_not_woken_and_the_last_takes_the_alarm_along(run: Run) -> None:
    async def main() -> None:
        [one, other], woken = sleepers("one", "other")
        one.then = lambda: one.alarm.leave(one)
        one.sleep(MILLISECOND)
        await one.up.wait()
        assert asyncio.get_running_loop() in alarm._alarms, "the other has it yet"
        other.sleep(MILLISECOND)
        other.alarm.leave(other)
        await asyncio.sleep(0.005)
        assert woken == ["one"]

    run(main())


def test_the_fault_of_one_is_told_and_wakes_the_others_all_the_same(run: Run) -> None:
    async def main() -> None:
        [faulty, other], _ = sleepers("faulty", "other")
        faulty.then = lambda: 1 // 0 and None
        at = faulty.sleep(MILLISECOND)
        other.alarm.set(other, at)
        await other.up.wait()
        for one in (faulty, other):
            one.alarm.leave(one)

    run(main(), expect_unhandled=1)
