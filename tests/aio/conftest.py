"""Both loops, a machine that records what it is told, and foreign sockets to talk to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from polynya.aio.driver import Driver
from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Datagram, Input, Open, Opened, Output, Resolve, Send, StreamData

LIMIT = 60.0
"""Seconds after which a test with real sockets is given up."""

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class EndpointLoop(asyncio.SelectorEventLoop):
    """Like Windows' proactor: it cannot watch sockets."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def _loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    try:
        import uvloop
    except ImportError:
        return loops
    return {**loops, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=sorted(_loops()))
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on each kind of loop, and fails if it leaves a task behind or something unhandled."""
    yield from _run_on(_loops()[request.param])


@pytest.fixture
def run_on_asyncio() -> Iterator[Run]:
    """For what uvloop does without Python's help, so that it cannot be replaced."""
    yield from _run_on(asyncio.SelectorEventLoop)


@pytest.fixture
def run_without_readers() -> Iterator[Run]:
    yield from _run_on(EndpointLoop)


def _run_on(factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Run]:
    unhandled: list[dict[str, Any]] = []

    def run(main: Coroutine[Any, Any, Any], expect_unhandled: int = 0) -> Any:
        async def guarded() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(LIMIT):
                result = await main
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks were left behind: {left}"
            return result

        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(guarded())
        assert len(unhandled) == expect_unhandled, unhandled
        return result

    yield run


@dataclass
class Recorder:
    """A machine that records its inputs; tests queue its outputs, events and timer."""

    inputs: list[Input] = field(default_factory=list)
    ticks: list[Instant] = field(default_factory=list)
    due: Instant | None = None
    answers: Callable[[Recorder, Input], None] | None = None
    _outputs: list[Output] = field(default_factory=list)
    _events: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = asyncio.Event()

    def receive(self, input: Input, *, now: Instant) -> None:
        self.inputs.append(input)
        self._events.append(input)
        if self.answers is not None:
            self.answers(self, input)
        self.changed.set()

    def tick(self, *, now: Instant) -> None:
        self.ticks.append(now)
        self.due = None
        self.changed.set()

    def next_timer(self) -> Instant | None:
        return self.due

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[object]:
        drained, self._events = self._events, []
        return drained

    # ---- called by tests

    def put(self, *outputs: Output, now: Instant | None = None) -> None:
        self._outputs += outputs

    def emit(self, event: object) -> None:
        self._events.append(event)

    def wake_in(self, seconds: float, *, now: Instant) -> None:
        self.due = Instant(now + round(seconds * SECOND))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def received(self, kind: type[Any], count: int = 1) -> Any:
        """The last of `count` inputs of a kind."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.inputs if isinstance(each, kind)]


async def until(condition: Callable[[], object], interval: float = 0.002) -> None:
    """Poll until `condition()` is true; the limit of `run` applies."""
    while not condition():  # noqa: ASYNC110  # no event exists for what is polled
        await asyncio.sleep(interval)


@asynccontextmanager
async def driving(on_event: Callable[[Any], None] = lambda _: None, **options: Any) -> AsyncIterator[Driver[Recorder]]:
    """A driver with a recorder, closed at the end."""
    driver = Driver(Recorder(), on_event=on_event, **options)
    try:
        yield driver
    finally:
        await driver.aclose()


async def open_udp(driver: Driver[Recorder], host: str = "127.0.0.1", **options: Any) -> Opened:
    """Open a UDP flow and wait until it is open."""
    flow = driver.flow_ids.new()
    driver.call(driver.machine.put, Open(flow=flow, transport=Transport.UDP, local=Address.of(host, 0), **options))
    machine = driver.machine
    await machine.until(lambda: any(getattr(each, "flow", None) == flow for each in machine.inputs))
    [opened] = [each for each in machine.inputs if getattr(each, "flow", None) == flow]
    assert isinstance(opened, Opened), opened
    return opened


@pytest.fixture
def foreign() -> Iterator[socket.socket]:
    """A plain UDP socket on IPv4 loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(LIMIT)
        yield sock


def address_of(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


def stun_like(size: int = 20) -> bytes:
    """Bytes that are STUN by their header."""
    return b"\x00\x01" + (size - 20).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(size - 8)


__all__ = ["Close", "Datagram", "Flow", "FlowIds", "Resolve", "Send", "StreamData"]
