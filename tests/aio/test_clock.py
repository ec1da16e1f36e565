"""The clock of real time, and the watch that detects its jumps."""

from __future__ import annotations

import asyncio
import time

import pytest

from polynya.aio import clock
from polynya.core.instants import SECOND, Instant
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no CLOCK_BOOTTIME")
def test_the_clock_continues_while_the_system_sleeps() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= clock.now() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def test_a_loop_has_one_watch_which_is_removed_with_its_last_subscriber() -> None:
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
    assert loop not in clock.loops(), "the registry keeps no closed loop"


async def test_each_subscriber_is_called_once_for_each_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    real = clock.now
    notified: list[str] = []
    watch = clock.watch(asyncio.get_running_loop(), interval=0.005)
    watch.subscribe("one", lambda _: notified.append("one"))
    watch.subscribe("two", lambda _: notified.append("two"))
    for jumps in (1, 2):
        monkeypatch.setattr(clock, "now", lambda ahead=jumps: Instant(real() + ahead * 60 * SECOND))
        await until(lambda expected=2 * jumps: len(notified) >= expected)  # type: ignore[misc]
    for who in ("one", "two"):
        watch.unsubscribe(who)
    assert notified == ["one", "two"] * 2
