"""A machine that records its inputs, its driver, and plain sockets as peers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from polynya.aio.driver import Driver
from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Datagram, Input, Open, Opened, Output, Resolve, Send, StreamData
from tests import loops


@dataclass
class Recorder:
    """A machine that records its inputs; tests set its outputs, events and timer."""

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
        """Wait for `count` inputs of a kind; return the last of them."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.inputs if isinstance(each, kind)]


@asynccontextmanager
async def driving(on_event: Callable[[Any], None] = lambda _: None, **options: Any) -> AsyncIterator[Driver[Recorder]]:
    """Run a recorder in a driver, which is closed at the end."""
    driver = Driver(Recorder(), on_event=on_event, **options)
    try:
        yield driver
    finally:
        await driver.aclose()


async def open_udp(driver: Driver[Recorder], host: str = "127.0.0.1", **options: Any) -> Opened:
    """Open a UDP flow; wait for its `Opened`."""
    flow = driver.flow_ids.new()
    driver.call(driver.machine.put, Open(flow=flow, transport=Transport.UDP, local=Address.of(host, 0), **options))
    machine = driver.machine
    await machine.until(lambda: any(getattr(each, "flow", None) == flow for each in machine.inputs))
    [opened] = [each for each in machine.inputs if getattr(each, "flow", None) == flow]
    assert isinstance(opened, Opened), opened
    return opened


@pytest.fixture
def foreign() -> Iterator[socket.socket]:
    """Open a plain UDP socket on IPv4 loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(loops.LIMIT)
        yield sock


def address_of(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


def stun_like(size: int = 20) -> bytes:
    """Make bytes with the header of a STUN message."""
    return b"\x00\x01" + (size - 20).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(size - 8)


__all__ = ["Close", "Datagram", "Flow", "FlowIds", "Resolve", "Send", "StreamData"]
