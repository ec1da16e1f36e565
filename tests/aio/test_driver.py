"""The steps of the driver: the order of its calls, and the release of its resources."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from polynya.aio import clock
from polynya.aio.driver import Driver
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, Open, Opened, Resolve, Resolved, Send, SendFailed
from tests.aio.conftest import Recorder, address_of, driving, open_udp, stun_like

pytestmark = pytest.mark.loops("asyncio", "uvloop")


async def test_a_call_returns_the_result_of_the_method_and_performs_its_outputs(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)

        def send_and_count(*texts: bytes, now: Instant) -> int:
            driver.machine.put(*(Send(opened.flow, address_of(foreign), text) for text in texts))
            return len(texts)

        assert driver.call(send_and_count, b"one", b"two") == 2
        assert [foreign.recvfrom(99)[0] for _ in range(2)] == [b"one", b"two"]
        assert driver.counters["datagrams_out"] == 2


async def test_outputs_are_performed_before_events_are_emitted(foreign: socket.socket) -> None:
    seen: list[bytes] = []

    def on_event(event: object) -> None:
        if isinstance(event, Datagram):
            seen.append(foreign.recv(99))

    def echo(machine: Recorder, input: object) -> None:
        if isinstance(input, Datagram):
            machine.put(Send(input.flow, input.remote, b"echo " + input.data))

    async with driving(on_event) as driver:
        driver.machine.answers = echo
        opened = await open_udp(driver)
        foreign.sendto(b"hello", tuple(opened.local[:2]))
        await driver.machine.received(Datagram)
        assert seen == [b"echo hello"]


async def test_on_event_may_call_the_machine(foreign: socket.socket) -> None:
    def on_event(event: object) -> None:
        if isinstance(event, Datagram):
            driver.call(driver.machine.put, Send(event.flow, event.remote, b"from the event"))
            assert driver.counters["datagrams_out"] == 0, "it is performed after the events"

    async with driving(on_event) as driver:
        opened = await open_udp(driver)
        foreign.sendto(b"hello", tuple(opened.local[:2]))
        await driver.machine.received(Datagram)
        assert foreign.recv(99) == b"from the event"


@pytest.mark.unhandled(2)
async def test_an_exception_of_on_event_stops_neither_the_machine_nor_other_events() -> None:
    events: list[object] = []

    def on_event(event: object) -> None:
        events.append(event)
        raise ValueError("an error of the user")

    async with driving(on_event) as driver:
        await open_udp(driver)
        await open_udp(driver)
        assert [type(event) for event in events] == [Opened, Opened]


async def test_queued_inputs_are_handled_after_the_machine_raises() -> None:
    async with driving() as driver:

        def refuse_once(machine: Recorder, input: object) -> None:
            machine.answers = None
            raise RuntimeError("a bug of the machine")

        driver.machine.answers = refuse_once
        requests = [
            Open(flow=driver.flow_ids.new(), transport=Transport.UDP, local=Address("127.0.0.1", 0)) for _ in "ab"
        ]
        with pytest.raises(RuntimeError, match="a bug of the machine"):
            driver.call(driver.machine.put, *requests)
        await driver.machine.received(Opened, 2)


async def test_the_machine_ticks_when_its_timer_is_due_and_not_before() -> None:
    async with driving() as driver:
        driver.call(driver.machine.wake_in, 0.02)
        due = driver.machine.due
        assert due is not None
        await driver.machine.until(lambda: driver.machine.ticks)
        [tick] = driver.machine.ticks
        assert due <= tick < due + SECOND


async def test_a_timer_that_moves_fires_at_its_new_time() -> None:
    async with driving() as driver:
        machine = driver.machine
        driver.call(machine.wake_in, 3600)
        driver.call(machine.wake_in, 0.01)
        await machine.until(lambda: machine.ticks)
        driver.call(machine.wake_in, 0.01)
        driver.call(machine.wake_in, 0.03)
        later = machine.due
        await machine.until(lambda: len(machine.ticks) == 2)
        assert later is not None
        assert machine.ticks[1] >= later


async def test_the_machine_ticks_at_once_after_a_jump_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock.watch(asyncio.get_running_loop(), interval=0.01)
    real = clock.now
    async with driving() as driver:
        driver.call(driver.machine.wake_in, 3600)
        monkeypatch.setattr(clock, "now", lambda: Instant(real() + 7200 * SECOND))
        await driver.machine.until(lambda: driver.machine.ticks)


async def test_a_timer_does_not_fire_early_while_the_clocks_agree() -> None:
    clock.watch(asyncio.get_running_loop(), interval=0.001)
    async with driving() as driver, driving() as other:
        driver.call(driver.machine.wake_in, 3600)
        other.call(other.machine.wake_in, 0.05)
        await other.machine.until(lambda: other.machine.ticks)
        assert driver.machine.ticks == []


async def test_an_address_that_cannot_be_bound_is_closed_with_advice(foreign: socket.socket) -> None:
    async with driving() as driver:
        flow = driver.flow_ids.new()
        driver.call(driver.machine.put, Open(flow=flow, transport=Transport.UDP, local=address_of(foreign)))
        closed = await driver.machine.received(Closed)
        assert closed.flow == flow
        assert closed.errno == errno.EADDRINUSE
        assert "choose another" in closed.reason
        assert driver.machine.of(Opened) == []


async def test_an_invalid_open_raises_and_the_other_outputs_are_performed() -> None:
    async with driving() as driver:
        ids, local = driver.flow_ids, Address("127.0.0.1", 0)
        nowhere = Open(flow=ids.new(), transport=Transport.UDP)
        bare = Open(flow=ids.new(), transport=Transport.TLS, local=local)
        udp = Open(flow=ids.new(), transport=Transport.UDP, local=local)
        with pytest.raises(ConfigurationError, match="give `local`"):
            driver.call(driver.machine.put, nowhere, bare, udp)
        assert [type(each) for each in driver.machine.inputs] == [Closed, Closed, Opened]


async def test_a_send_on_a_closed_flow_is_reported_as_failed() -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        remote = Address("127.0.0.1", 9)
        driver.call(driver.machine.put, Close(flow=opened.flow), Send(opened.flow, remote, b"late"))
        assert driver.machine.of(SendFailed) == [SendFailed(flow=opened.flow, remote=remote, errno=errno.EBADF)]
        assert driver.machine.of(Closed) == [], "closing a flow emits no input"
        assert driver.sender(opened.flow, remote)(b"data") is False
        driver.accept_data(opened.flow, remote, lambda _: None)


async def test_names_are_resolved_and_pending_queries_are_canceled_at_the_end() -> None:
    cancelled = asyncio.Event()

    async def resolve(name: str) -> list[str]:
        if name == "quick.example":
            return ["192.0.2.1"]
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with driving(resolve=resolve) as driver:
        quick = Resolve(name="quick.example", token=7)
        driver.call(driver.machine.put, quick, Resolve(name="never.example"))
        assert await driver.machine.received(Resolved) == Resolved(query=quick, hosts=("192.0.2.1",))
    assert cancelled.is_set()


async def test_a_closed_driver_sends_and_receives_nothing_but_emits_events(foreign: socket.socket) -> None:
    events: list[object] = []
    driver = Driver(Recorder(), on_event=events.append)
    opened = await open_udp(driver)
    await driver.aclose()
    await driver.aclose()
    events.clear()

    def goodbye(*, now: Instant) -> None:
        driver.machine.put(Send(opened.flow, address_of(foreign), b"late"))
        driver.machine.emit("closed")

    driver.call(goodbye)
    driver.take(Datagram(opened.flow, address_of(foreign), b"late"))
    assert events == ["closed"]
    assert driver.machine.of(SendFailed) == []
    foreign.setblocking(False)
    with pytest.raises(BlockingIOError):
        foreign.recv(1)


async def test_on_event_may_close_the_driver(foreign: socket.socket) -> None:
    def on_event(event: object) -> None:
        if isinstance(event, Datagram):
            driver.close_now()

    driver = Driver(Recorder(), on_event=on_event)
    opened = await open_udp(driver)
    for _ in range(3):
        foreign.sendto(stun_like(), tuple(opened.local[:2]))
    await driver.machine.received(Datagram)
    await asyncio.sleep(0)
    assert len(driver.machine.of(Datagram)) == 1
    assert driver.counters["datagrams_in"] >= 1


async def test_the_counters_include_closed_sockets(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        send = driver.sender(opened.flow, address_of(foreign))
        assert send(b"12345")
        before = driver.counters
        driver.call(driver.machine.put, Close(flow=opened.flow))
        assert driver.counters == before
        assert (before["datagrams_out"], before["bytes_out"]) == (1, 5)


async def test_closing_a_flow_that_was_never_opened_does_nothing() -> None:
    async with driving() as driver:
        driver.call(driver.machine.put, Close(flow=Flow(99)))
        assert driver.machine.inputs == []
