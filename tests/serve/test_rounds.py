"""The portable plane in the server's loop: at once or in rounds, and without blocking the loop."""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import Datagram
from polynya.plane.portable import PortablePlane
from polynya.plane.sockets import bind_listeners
from polynya.serve.rounds import Rounds

LISTENER = Flow(1)
REQUEST = b"\x00\x03 allocate"


class Timer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """An event loop with a virtual clock in milliseconds. Readability comes from the plane's real epoll."""

    def __init__(self) -> None:
        self.now = 0
        self.readers: dict[int, Callable[[], None]] = {}
        self.timers: list[tuple[int, int, Callable[[], None], Timer]] = []

    def add_reader(self, descriptor: int, call: Callable[[], None]) -> None:
        assert descriptor not in self.readers
        self.readers[descriptor] = call

    def remove_reader(self, descriptor: int) -> None:
        self.readers.pop(descriptor, None)

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> Timer:
        timer = Timer()
        due = self.now + round(delay * 1000)
        heapq.heappush(self.timers, (due, len(self.timers), partial(call, *arguments), timer))
        return timer

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> Timer:
        return self.call_later(0, call, *arguments)

    def readable(self) -> bool:
        """Call the reader. Returns False if there is none."""
        for call in list(self.readers.values()):
            call()
            return True
        return False

    def run(self, milliseconds: int) -> int:
        """Advance the clock. Returns the number of timers that fired."""
        end, fired = self.now + milliseconds, 0
        while self.timers and self.timers[0][0] <= end:
            self.now, _, call, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                call()
                fired += 1
        self.now = end
        return fired


class Scene:
    """A plane on loopback and a client."""

    def __init__(self, gather: float) -> None:
        (self.listener,) = bind_listeners(Address("127.0.0.1", 0), 1)
        self.plane = PortablePlane({LISTENER: self.listener})
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(self.listener.getsockname())
        self.loop: Any = VirtualLoop()
        self.heard: list[int] = []
        self.rounds = Rounds(self.plane, gather, self.take, self.loop)

    def take(self) -> None:
        self.heard.append(sum(isinstance(each, Datagram) for each in self.plane.reports()))

    def say(self, times: int = 1) -> None:
        for _ in range(times):
            self.client.send(REQUEST)

    def close(self) -> None:
        self.rounds.close()
        self.plane.close()
        self.listener.close()
        self.client.close()


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Any:
    made = Scene(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("scene", [0.0], indirect=True)
def test_without_gathering_packets_are_served_at_once(scene: Scene) -> None:
    scene.say()
    assert scene.loop.readable()
    assert scene.heard == [1]
    assert not scene.loop.timers


@pytest.mark.parametrize("scene", [0.002, 0.0015], indirect=True)
def test_packets_that_arrive_during_a_wait_are_served_in_one_round(scene: Scene) -> None:
    scene.say()
    assert scene.loop.readable()
    assert scene.heard == [], "nothing is served before the wait is over"
    assert not scene.loop.readers, "what is readable meanwhile must not wake the loop again and again"
    scene.say(3)
    assert scene.loop.run(1) == 0
    assert scene.loop.run(1), "a loop counts in milliseconds: what is less is one more"
    assert sum(scene.heard) == 4


@pytest.mark.parametrize("scene", [0.001], indirect=True)
def test_while_packets_flow_the_plane_runs_by_timer_and_is_watched_again_later(scene: Scene) -> None:
    scene.say()
    scene.loop.readable()
    for _ in range(5):
        scene.say(2)
        before = sum(scene.heard)
        assert scene.loop.run(1)
        assert sum(scene.heard) == before + 2 + (before == 0), "all that is there"
        assert not scene.loop.readers
    assert scene.loop.run(1) == 1, "the round that finds nothing"
    assert scene.loop.readers and scene.loop.run(100) == 0


@pytest.mark.parametrize("scene", [0.05], indirect=True)
def test_packets_left_by_a_round_do_not_wait_for_the_next(scene: Scene) -> None:
    scene.say(150)
    scene.loop.readable()
    scene.loop.run(50)
    assert max(scene.heard) < 150 == sum(scene.heard), "others had their turn in between"


@pytest.mark.parametrize("scene", [0.001], indirect=True)
def test_after_a_close_in_a_wait_it_does_not_run(scene: Scene) -> None:
    scene.say()
    scene.loop.readable()
    scene.rounds.close()
    assert scene.loop.run(10) == 0
    assert scene.heard == []


async def test_in_a_real_loop_other_tasks_run_while_packets_gather() -> None:
    """The wait is a timer, during which other tasks continue."""
    turns, scene = 0, Scene(0.0)
    scene.rounds.close()
    rounds = Rounds(scene.plane, 0.05, scene.take, asyncio.get_running_loop())
    scene.say()
    try:
        async with asyncio.timeout(30):
            while not scene.heard:
                await asyncio.sleep(0)
                turns += 1
    finally:
        rounds.close()
        scene.close()
    assert turns > 3
