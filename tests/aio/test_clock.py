"""The clock of real time and the watch over its jumps."""

from __future__ import annotations

import asyncio
import time

import pytest

from polynya.aio import clock
from polynya.core.instants import SECOND, Instant
from tests.aio.conftest import Run


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that runs on in sleep")
def test_the_clock_is_the_one_that_runs_on_in_sleep() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= clock.now() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_all_drivers_of_a_loop_share_one_watch_and_it_rests_when_the_last_leaves(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        watch = clock.watch(loop)
        assert clock.watch(loop) is watch
        one, two = object(), object()
        watch.subscribe(one, lambda _: None)
        watch.subscribe(two, lambda _: None)
        watch.unsubscribe(one)
        assert clock.watch(loop) is watch
        watch.unsubscribe(two)
        watch.unsubscribe(two)
        assert loop not in clock._watches, "a loop that is over can be forgotten"

    run(main())


def test_a_jump_is_told_to_every_subscriber_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[str]:
        monkeypatch.setattr(clock, "LOOK_INTERVAL", 0.005)
        real, told = clock.now, []
        watch = clock.JumpWatch(asyncio.get_running_loop())
        heard = asyncio.Event()
        watch.subscribe("one", lambda _: told.append("one"))
        watch.subscribe("two", lambda _: (told.append("two"), heard.set()))
        monkeypatch.setattr(clock, "now", lambda: Instant(real() + 60 * SECOND))
        await heard.wait()
        await asyncio.sleep(0.03)
        for who in ("one", "two"):
            watch.unsubscribe(who)
        return told

    assert run(main()) == ["one", "two"]
