"""`Connection`: what it sends, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

import polynya
from polynya.aio.connection import OVERHEAD, RECEIVE_BUFFER
from polynya.ice.events import AgentState
from tests.aio.test_agent import connected, local_agent
from tests.aio.test_endpoint import alone, both_kinds, one_shot
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

# --------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "data", [b"data", bytearray(b"data"), memoryview(b"-data-")[1:5], memoryview(b"d.a.t.a.")[::2]]
)
async def test_everything_that_holds_bytes_is_sent(data: object) -> None:
    async with connected() as (a, b):
        assert a.send(data)  # type: ignore[arg-type]
        assert await b.recv() == b"data"
        assert (a.datagrams_sent, a.bytes_sent, b.bytes_received) == (1, 4, 4)


async def test_what_no_path_can_carry_is_an_error_and_not_counted() -> None:
    async with connected(families=(4,)) as (a, _):
        with pytest.raises(polynya.UsageError, match="not str: encode it first"):
            a.send("text")  # type: ignore[arg-type]
        with pytest.raises(polynya.UsageError, match="bytes, bytearray or memoryview, not list"):
            a.send([1])  # type: ignore[arg-type]
        with pytest.raises(polynya.UsageError, match=r"65508 bytes is too long: .* carries 65507, and 548 without"):
            a.send(bytes(65508))
        assert a.path.datagrams_sent == a.path.datagrams_refused == a.path.datagrams_without_path == 0
        assert a.send(bytes(a.max_datagram_size))


async def test_the_longest_datagram_arrives() -> None:
    async with connected(families=(6,)) as (a, b):
        with pytest.raises(polynya.UsageError, match="65528 bytes is too long"):
            a.send(bytes(65528))
        assert a.send(bytes(65527)) and len(await b.recv()) == 65527


async def test_no_path_and_refused_by_the_system_are_told_apart() -> None:
    async with connected(families=(4,)) as (a, _):
        connection, sender = a, a._send
        for send, reason in ((lambda _: False, "refused"), (None, "without path"), (sender, "sent")):
            connection._move(send, a._pair, reason, max_length=1000)
            assert connection.send(b"xyz") is (reason == "sent") and connection.ready is (send is not None)
        path = connection.path
        assert (path.datagrams_sent, path.datagrams_refused, path.datagrams_without_path) == (1, 1, 1)
        assert (connection.bytes_sent, connection.bytes_refused) == (3, 3)
        transport = connection.agent.stats()["transport-0-1"]
        assert (transport["packetsSent"], transport["packetsRefusedOnSend"], transport["packetsWithoutPath"]) == (
            1, 1, 1,
        )  # fmt: skip
        pair = connection.agent.stats()[transport["selectedCandidatePairId"]]
        assert (pair["packetsSent"], pair["packetsDiscardedOnSend"], pair["bytesDiscardedOnSend"]) == (1, 1, 3)


async def test_before_there_is_a_path_send_counts_and_returns_false() -> None:
    async with local_agent() as agent:
        connection = agent.connection()
        assert not connection.ready and connection.send(b"x") is False
        assert connection.datagrams_without_path == 1 and connection.datagrams_sent == 0
        with pytest.raises(polynya.UsageError, match="encode it first"):
            connection.send("x")  # type: ignore[arg-type]
        with pytest.raises(polynya.UsageError, match="no path at this moment"):
            _ = connection.max_datagram_size
        assert repr(connection) == "<Connection 0/1 no path>"


async def test_what_finds_the_queue_full_is_counted() -> None:
    async with connected() as (_, b):
        for _ in range(RECEIVE_BUFFER // (1000 + OVERHEAD) + 5):
            b._deliver(bytes(1000))
        assert b.agent.stats()["transport-0-1"]["packetsDroppedOnReceive"] == b.datagrams_dropped == 5


# --------------------------------------------------------------------------------------------------------------- end


@both_kinds
async def test_with_its_last_connection_an_agent_stops_sending(kind: str) -> None:
    """Consent checks end with it; the context of the agent closes the rest."""
    async with alone(kind, controlling=True) as a, a, local_agent(controlling=False) as b:
        await one_shot(a, b)
        here, there = await asyncio.gather(a.connect(9), b.connect(9))
        await asyncio.gather(a.completed(9), b.completed(9))
        await here.close()
        assert a.state is AgentState.CLOSED and await here.wait_closed() == "closed here"
        sent = b.counters["datagrams_in"]
        there.send(b"to a closed one")
        await here.close()
        for call in (a.connect(1), a.completed(1)):
            with pytest.raises(polynya.UsageError, match="closed"):
                await call
        assert [text async for text in a.local_signals()] == [] and [event async for event in a.events()] == []
        assert "closed here" in str(a.why()) and b.counters["datagrams_in"] == sent
        assert there.ready


async def test_closing_one_of_two_connections_leaves_the_other() -> None:
    async with (
        local_agent(controlling=True, components=(1, 1), families=(4,)) as a,
        local_agent(controlling=False, components=(1, 1), families=(4,)) as b,
    ):
        await one_shot(a, b)
        await asyncio.gather(a.completed(9), b.completed(9))
        first, second = a.connection(0), a.connection(1)
        await first.close()
        assert first.closed and a.state is AgentState.COMPLETED
        with pytest.raises(polynya.ConnectionClosed, match="closed here"):
            await a.connect(1, stream=0)
        second.send(b"still here")
        assert await b.connection(1).recv() == b"still here"
        await second.close()
        assert a.state is AgentState.CLOSED


async def test_wait_closed_returns_why_it_ended() -> None:
    async with connected() as (a, b):
        waiting = [asyncio.ensure_future(a.wait_closed()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        await a.agent.close()
        assert await asyncio.gather(*waiting) == ["closed here"] * 2 == [await a.wait_closed()] * 2
        assert await b.wait_closed() == "the other side closed the connection"


async def test_canceling_wait_closed_leaves_the_connection() -> None:
    async with connected() as (a, b):
        waiting = asyncio.ensure_future(a.wait_closed())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        a.send(b"x")
        assert await b.recv() == b"x"


async def test_consent_timers_are_options() -> None:
    """RFC 7675, section 5.1: the defaults are 5 s and 30 s."""
    ice = polynya.IceConfig(consent_interval=0.02, consent_timeout=0.2, patience=0.2)
    async with local_agent(controlling=True, ice=ice) as a:
        async with local_agent(controlling=False) as b:
            await one_shot(a, b)
            here, _ = await asyncio.gather(a.connect(9), b.connect(9))
            await asyncio.gather(a.completed(9), b.completed(9))
            pair = a.stats()["transport-0-1"]["selectedCandidatePairId"]
            await until(lambda: a.stats()[pair]["consentRequestsSent"] >= 5)
            assert here.ready and b._driver is not None
            b._driver.close_now()  # without a word to the other side
        assert "consent" in await here.wait_closed()


# ------------------------------------------------------------------------------------------------------------- queue


async def test_the_receive_buffer_is_bounded_in_bytes_and_says_so_once() -> None:
    """Datagrams of any size count with 64 bytes more, so that empty ones are bounded, too."""
    for size in (0, 1, 1000):
        fitting = 10_000 // (size + OVERHEAD)
        async with connected(receive_buffer=10_000) as (_, b):
            events = b.agent.events()
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            for number in range(fitting + 7):
                b._deliver(b"%d" % (number % 10) * size)
            assert b.datagrams_dropped == 7 and b.datagrams_received == fitting
            assert await first == polynya.ReceiveBufferFull(stream=0, component=1, size=10_000)
            second = asyncio.ensure_future(anext(events))
            assert [await b.recv() for _ in range(fitting)] == [b"%d" % (n % 10) * size for n in range(fitting)]
            b._deliver(b"again")
            assert await b.recv() == b"again" and not second.done()
            second.cancel()


async def test_datagrams_keep_their_order_while_some_are_read_and_others_arrive() -> None:
    async with connected() as (_, b):
        received = []
        for number in range(0, 300, 3):
            for each in range(3):
                b._deliver(b"%d" % (number + each))
            received += [await b.recv() for _ in range(2)]
        received += [await b.recv() for _ in range(100)]
        assert received == [b"%d" % number for number in range(300)]


@pytest.mark.parametrize("size", [0, -1, 63, "many", None, 1.5, True])
def test_an_impossible_receive_buffer_is_refused(size: object) -> None:
    with pytest.raises(polynya.ConfigurationError, match="receive_buffer is a number of bytes"):
        polynya.Agent(receive_buffer=size)  # type: ignore[arg-type]
    with pytest.raises(polynya.ConfigurationError, match="receive_buffer is a number of bytes"):
        polynya.Mux().agent(receive_buffer=size)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- drain


class Socket:
    """The agent of a connection, reduced to the state of its socket."""

    def __init__(self) -> None:
        self.has_room = True
        self.looks = 0

    def _writable(self, stream: int, component: int) -> bool:
        self.looks += 1
        return self.has_room


async def test_drain_waits_for_the_local_socket() -> None:
    socket = Socket()
    connection = polynya.Connection(stream=0, component=1, agent=socket, owner=socket)  # type: ignore[arg-type]
    connection._move(lambda _: socket.has_room, 1, "for the test", max_length=100)
    await connection.drain()
    assert socket.looks == 1
    socket.has_room = False
    assert not connection.send(b"x")
    draining = asyncio.ensure_future(connection.drain())
    await until(lambda: socket.looks > 3)
    assert not draining.done()
    socket.has_room = True
    await draining
    assert connection.send(b"x")


async def test_drain_waits_for_a_path_and_ends_with_the_connection() -> None:
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        draining = asyncio.ensure_future(a.connection().drain())
        await one_shot(a, b)
        await draining
    async with local_agent() as c:
        draining = asyncio.ensure_future(c.connection().drain())
        await asyncio.sleep(0)
        await c.close()
        with pytest.raises(polynya.ConnectionClosed, match="closed"):
            await draining


# ---------------------------------------------------------------------------------------------------------- no path


async def test_without_a_path_only_a_closed_connection_says_that_it_is_closed() -> None:
    async with local_agent() as agent:
        connection = agent.connection()
        for look in (lambda: connection.path, lambda: connection.max_datagram_size):
            with pytest.raises(polynya.UsageError, match="no path at this moment: wait for"):
                look()
        await connection.close()
        for look in (lambda: connection.path, lambda: connection.max_datagram_size):
            with pytest.raises(polynya.ConnectionClosed, match="closed here"):
                look()
        for wait in (connection.path_changed(), connection.drain()):
            with pytest.raises(polynya.ConnectionClosed, match="closed here"):
                await wait


async def test_path_changed_waits_until_there_is_a_path_again() -> None:
    async with connected() as (a, _):
        await a.agent.completed(9)
        changed = asyncio.ensure_future(a.path_changed())
        await asyncio.sleep(0)
        send = a._send
        a._move(None, 0, "lost", max_length=0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not changed.done() and not a.ready
        a._move(send, 1, "found again", max_length=100)
        assert (await changed).reason == "found again"
