"""`Connection`: what it sends, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio

import pytest

import polynya
from polynya.aio.connection import QUEUE_LENGTH
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
        with pytest.raises(polynya.ConnectionClosed, match="no path at this moment"):
            _ = connection.max_datagram_size
        assert repr(connection) == "<Connection 0/1 no path>"


async def test_what_finds_the_queue_full_is_counted() -> None:
    async with connected() as (_, b):
        for _ in range(QUEUE_LENGTH + 5):
            b._deliver(b"x")
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
        assert not b.closed


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
            assert here.ready
        assert "consent" in await here.wait_closed()
