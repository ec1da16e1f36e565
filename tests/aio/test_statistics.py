"""`Agent.stats()`: webrtc-stats with the application data that went over each pair."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import polynya
from polynya.aio.connection import Connection, Traffic
from tests.aio.test_agent import connected

pytestmark = pytest.mark.loops("asyncio", "uvloop")


def made_alone() -> Connection:
    """A connection without an agent."""
    return Connection(stream=0, component=1, agent=None, owner=None)  # type: ignore[arg-type]


def move(connection: Connection, send: Callable[[bytes], bool] | None, pair: int) -> None:
    connection._move(send, pair, "a test", max_length=1000)


async def test_the_selected_pair_has_what_was_sent_and_received() -> None:
    async with connected() as (one, other):
        await one.agent.completed()
        for text in (b"one", b"three", b"seven"):
            one.send(text)
            assert await other.recv() == text
        other.send(b"thanks")
        await one.recv()
        agent = one.agent
        assert isinstance(agent, polynya.Agent)
        before = time.time() * 1000
        report = agent.stats()
        assert all(members["id"] == name for name, members in report.items())
        assert all(before <= members["timestamp"] <= time.time() * 1000 for members in report.values())
        transport = report["transport-0-1"]
        pair = report[transport["selectedCandidatePairId"]]
        for members in (transport, pair):
            assert (members["packetsSent"], members["bytesSent"]) == (3, 13), members
            assert (members["packetsReceived"], members["bytesReceived"]) == (1, 6), members
        assert before - 60_000 < pair["lastPacketSentTimestamp"] <= pair["lastPacketReceivedTimestamp"] <= before
        assert pair["packetsDiscardedOnSend"] == pair["bytesDiscardedOnSend"] == 0
        assert transport["selectedCandidatePairChanges"] == one.pair_changes >= 1
        assert pair["nominated"] and pair["state"] == "succeeded" and 0 < pair["currentRoundTripTime"] < 10
        assert report[pair["localCandidateId"]]["interface"] == "lo"
        assert "lastPacketSentTimestamp" not in transport
        others = [each for each in report.values() if each["type"] == "candidate-pair" and each is not pair]
        assert all((each["packetsSent"], each["bytesReceived"]) == (0, 0) for each in others)
        assert not any("lastPacketSentTimestamp" in each for each in others)


def test_each_pair_keeps_its_own_traffic() -> None:
    """Data moves from one pair to another and back, with a time without a pair in between."""
    connection = made_alone()
    connection._deliver(b"early")  # the other side was authenticated before a check of ours was answered
    for pair, sent in ((7, b"a"), (8, b"bb"), (0, None), (7, b"cccc")):
        move(connection, None if sent is None else lambda _: True, pair)
        if sent is not None:
            connection.send(sent)
        connection._deliver(b"in")
    assert {pair: traffic[:4] for pair, traffic in connection._traffic_by_pair().items()} == {
        7: Traffic(packets_sent=2, bytes_sent=5, packets_received=4, bytes_received=11)[:4],
        8: Traffic(packets_sent=1, bytes_sent=2, packets_received=1, bytes_received=2)[:4],
    }
    assert connection._traffic[:4] == (3, 7, 5, 13)
    assert connection.pair_changes == 3


def test_what_the_system_refuses_is_not_counted_as_sent() -> None:
    connection = made_alone()
    taken = iter((True, False, True))
    move(connection, lambda _: next(taken), 7)
    assert [connection.send(data) for data in (b"a", b"bb", b"cccc")] == [True, False, True]
    traffic = connection._traffic_by_pair()[7]
    assert (traffic.packets_sent, traffic.bytes_sent) == (2, 5)
    assert (traffic.packets_refused, traffic.bytes_refused) == (1, 2)


def test_each_pair_keeps_the_time_of_its_last_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """lastPacketSentTimestamp, lastPacketReceivedTimestamp: of the pair, not of the connection."""
    now = 1000.0
    monkeypatch.setattr("polynya.aio.connection.time", lambda: now)
    connection = made_alone()
    move(connection, lambda _: True, 7)
    connection.send(b"a")
    now = 1001.0
    connection._deliver(b"in")
    now = 1002.0
    move(connection, lambda _: True, 8)
    connection.send(b"b")
    now = 1003.0
    connection._deliver(b"no task waits in recv(), and another is in the queue")
    seen = {pair: (each.sent_at, each.received_at) for pair, each in connection._traffic_by_pair().items()}
    assert seen == {7: (1000.0, 1001.0), 8: (1002.0, 1003.0)}
    move(connection, lambda _: True, 7)
    now = 1004.0
    connection.send(b"c")
    assert connection._traffic_by_pair()[7][6:] == (1004.0, 1001.0)


async def test_counters_cover_packets_and_sockets() -> None:
    async with connected() as (one, _):
        agent = one.agent
        assert isinstance(agent, polynya.Agent)
        assert agent.counters["datagrams_out"] >= 1 and agent.counters["bytes_in"] >= 20
