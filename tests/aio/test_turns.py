"""The turns of an event loop: one share for each stream, a few shares for all of them, and an order that is fair."""

from __future__ import annotations

import asyncio

import pytest

from polynya.aio.turns import SHARES, Turns, turns

pytestmark = pytest.mark.loops("asyncio", "uvloop")


class Stream:
    """A stream with so many shares of input."""

    def __init__(self, common: Turns, name: int, shares: int, log: list[tuple[int, int]]) -> None:
        self.turns = common
        self.name = name
        self.left = shares
        self.last = 0
        self.log = log

    def arrive(self) -> None:
        if self.turns.take(self.last):
            self.go_on()
        else:
            self.turns.wait(self)

    def go_on(self) -> None:
        self.last = self.turns.number
        self.log.append((self.last, self.name))
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no input")
        if self.left:
            self.turns.wait(self)


async def until_idle(count: int, log: list[tuple[int, int]]) -> None:
    while len(log) < count:  # noqa: ASYNC110 - each sleep is one turn of the loop
        await asyncio.sleep(0)


async def test_a_stream_gets_one_share_of_each_turn() -> None:
    log: list[tuple[int, int]] = []
    stream = Stream(turns(asyncio.get_running_loop()), 1, 5, log)
    stream.arrive()
    await until_idle(5, log)
    assert len({number for number, _ in log}) == 5


async def test_a_second_input_of_a_turn_waits_for_the_next_one() -> None:
    log: list[tuple[int, int]] = []
    stream = Stream(turns(asyncio.get_running_loop()), 1, 1, log)
    stream.arrive()
    stream.left = 1
    stream.arrive()
    assert len(log) == 1
    await until_idle(2, log)
    assert log[1][0] > log[0][0]


async def test_the_shares_of_a_turn_are_limited_and_go_round() -> None:
    log: list[tuple[int, int]] = []
    common = turns(asyncio.get_running_loop())
    greedy = [Stream(common, name, 6, log) for name in range(3 * SHARES)]
    for stream in greedy:
        stream.arrive()
    assert len(log) == SHARES
    late = Stream(common, -1, 1, log)
    late.arrive()
    await until_idle(6 * len(greedy) + 1, log)
    by_turn = [[name for number, name in log if number == each] for each in sorted({number for number, _ in log})]
    assert max(len(names) for names in by_turn) == SHARES
    assert all(len(set(names)) == len(names) for names in by_turn), "no stream has two shares of a turn"
    assert next(index for index, names in enumerate(by_turn) if -1 in names) <= 4, "a late stream waits for one round"


@pytest.mark.unhandled(1)
async def test_an_error_of_one_stream_does_not_stop_the_others() -> None:
    log: list[tuple[int, int]] = []
    common = turns(asyncio.get_running_loop())
    streams = [Stream(common, name, 1, log) for name in range(SHARES)]
    for stream in streams:
        stream.arrive()
    broken, good = Stream(common, 100, 0, log), Stream(common, 101, 1, log)
    broken.arrive()
    good.arrive()
    await until_idle(SHARES + 2, log)
    assert [name for _, name in log[-2:]] == [100, 101]
