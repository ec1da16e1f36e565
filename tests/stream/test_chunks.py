"""A byte stream in datagrams: both sides end despite loss, and every chunk that arrived is delivered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from polynya.core.errors import ConnectionClosed
from polynya.stream.chunks import DATA, END_TIMEOUT, GOODBYE, HOLD, REST, ChunkStream, Outcome

pytestmark = pytest.mark.loops("jumping")

Lose = Callable[[bytes], bool]


class End:
    """One end of a link with delay; `lose` decides which datagrams are lost."""

    def __init__(self, delay: float = 0.02, lose: Lose = lambda _: False) -> None:
        self.other: End | None = None
        self.sent: list[bytes] = []
        self.full = 0
        self._delay = delay
        self._lose = lose
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closed = False

    def send(self, data: bytes) -> bool:
        if self._closed:
            raise ConnectionClosed("lost")
        if self.full:
            self.full -= 1
            return False
        self.sent.append(data)
        if self.other is not None and not self._lose(data):
            asyncio.get_running_loop().call_later(self._delay, self.other._queue.put_nowait, data)
        return True

    async def recv(self) -> bytes:
        data = None if self._closed else await self._queue.get()
        if data is None:
            raise ConnectionClosed("lost")
        return data

    def close(self) -> None:
        self._closed = True
        self._queue.put_nowait(None)


def link(delay: float = 0.02, one: Lose = lambda _: False, two: Lose = lambda _: False) -> tuple[End, End]:
    ends = End(delay, one), End(delay, two)
    ends[0].other, ends[1].other = ends[1], ends[0]
    return ends


class Side:
    """One side of a stream, with its received chunks."""

    def __init__(self, end: End, linger: float = 1.0) -> None:
        self.received: list[bytes] = []
        self.ended_at = 0.0
        self.stream = ChunkStream(end, self._write, linger=linger)

    async def _write(self, data: bytes) -> None:
        self.received.append(data)

    async def run(self, source: AsyncIterator[bytes]) -> Outcome:
        began = asyncio.get_running_loop().time()
        outcome = await self.stream.run(source)
        self.ended_at = asyncio.get_running_loop().time() - began
        return outcome


async def chunks(*data: bytes, pause: float = 0.0, then: float = 0.0) -> AsyncIterator[bytes]:
    for each in data:
        await asyncio.sleep(pause)
        yield each
    await asyncio.sleep(then)


def terminal() -> AsyncIterator[bytes]:
    """Yield nothing, like an idle terminal."""
    return chunks(then=1e9)


async def test_both_sides_receive_everything_and_end() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])
    outcomes = await asyncio.gather(one.run(chunks(b"a", b"b")), two.run(chunks(b"c")))
    assert (one.received, two.received) == ([b"c"], [b"a", b"b"])
    assert [each.confirmed for each in outcomes] == [True, True]
    assert [(each.chunks_sent, each.chunks_received) for each in outcomes] == [(2, 1), (1, 2)]
    assert max(one.ended_at, two.ended_at) < REST + 0.3


async def test_a_silent_side_ends_after_the_sender() -> None:
    ends = link()
    sender, listener = Side(ends[0]), Side(ends[1])
    outcomes = await asyncio.gather(sender.run(chunks(b"x")), listener.run(terminal()))
    assert listener.received == [b"x"]
    assert all(each.confirmed for each in outcomes)
    assert 1.0 <= listener.ended_at < 1.0 + REST + 0.3


async def test_a_side_without_data_waits_for_the_other() -> None:
    ends = link()
    silent, slow = Side(ends[0]), Side(ends[1])
    data = [bytes([number]) for number in range(20)]
    await asyncio.gather(silent.run(chunks()), slow.run(chunks(*data, pause=0.7)))
    assert silent.received == data


async def test_linger_is_the_wait_for_a_silent_side() -> None:
    ends = link()
    one, two = Side(ends[0], linger=30), Side(ends[1], linger=30)
    await asyncio.gather(one.run(chunks()), two.run(chunks(b"late", pause=20)))
    assert one.received == [b"late"]


@pytest.mark.parametrize("seed", range(30))
async def test_with_a_third_lost_both_sides_end_in_time_and_one_is_confirmed(seed: int) -> None:
    chance = random.Random(seed)
    ends = link(0.03, lambda _: chance.random() < 1 / 3, lambda _: chance.random() < 1 / 3)
    one, two = Side(ends[0]), Side(ends[1])
    outcomes = await asyncio.gather(one.run(chunks(b"a")), two.run(terminal() if seed % 2 else chunks(b"b")))
    assert any(each.confirmed for each in outcomes)
    assert max(one.ended_at, two.ended_at) < 1.0 + END_TIMEOUT + 1.0


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_up_to_three_lost_ends_are_repeated(lost: int) -> None:
    def lose_first(count: int) -> Lose:
        left = [count]

        def lose(data: bytes) -> bool:
            if data[:1] == GOODBYE and left[0]:
                left[0] -= 1
                return True
            return False

        return lose

    for first, second in ((lost, 0), (0, lost), (lost, lost)):
        ends = link(0.02, lose_first(first), lose_first(second))
        one, two = Side(ends[0]), Side(ends[1])
        outcomes = await asyncio.gather(one.run(chunks(b"a")), two.run(chunks(b"b")))
        assert all(each.confirmed for each in outcomes), (first, second)


async def test_the_number_of_ends_is_limited() -> None:
    ends = link(delay=0.0001)
    one, two = Side(ends[0]), Side(ends[1])
    await asyncio.gather(one.run(chunks()), two.run(chunks()))
    assert max(len(end.sent) for end in ends) < 12


async def test_a_side_without_a_peer_ends_unconfirmed() -> None:
    ends = link(one=lambda _: True)
    one = Side(ends[0])
    outcome = await one.run(chunks(b"x"))
    assert not outcome.confirmed
    assert outcome.reason == "the other side did not confirm the end"
    assert one.ended_at < 1.0 + END_TIMEOUT + 0.5


async def test_a_lost_connection_ends_the_stream() -> None:
    ends = link()
    one = Side(ends[0])
    asyncio.get_running_loop().call_later(5, ends[0].close)
    outcome = await one.run(terminal())
    assert (outcome.confirmed, outcome.reason) == (False, "the connection ended: lost")
    assert one.ended_at == pytest.approx(5, abs=0.2)


async def test_a_cancelled_stream_sends_its_end() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])
    task = asyncio.create_task(one.run(terminal()))
    other = asyncio.create_task(two.run(terminal()))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await other).confirmed
    assert two.ended_at < 5
    assert len(ends[0].sent) >= 3, "the end is sent several times"


async def test_a_refused_chunk_is_sent_again_and_counted_if_always_refused() -> None:
    ends = link()
    ends[0].full = 50
    one, two = Side(ends[0]), Side(ends[1])
    outcomes = await asyncio.gather(one.run(chunks(b"a")), two.run(chunks(b"b", then=1)))
    assert two.received == [b"a"]
    assert outcomes[0].refused == 0
    ends[0].full = 10**6
    outcome = await Side(ends[0]).run(chunks(b"a"))
    assert (outcome.chunks_sent, outcome.refused) == (0, 1)


async def test_a_burst_is_paced() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])
    data = [number.to_bytes(2, "big") for number in range(8000)]
    await asyncio.gather(one.run(chunks(*data)), two.run(chunks()))
    assert sorted(two.received) == data
    assert 1.0 <= one.ended_at < 1.6


@pytest.mark.parametrize("where", ["source", "output"])
async def test_a_local_error_is_raised(where: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("no more")

    async def write(data: bytes) -> Any:
        raise BrokenPipeError("the reader is gone")

    ends = link()
    two = Side(ends[1])
    other = asyncio.create_task(two.run(chunks(b"y")))
    if where == "source":
        with pytest.raises(OSError, match="no more"):
            await Side(ends[0]).run(broken())
    else:
        with pytest.raises(BrokenPipeError):
            await ChunkStream(ends[0], write).run(terminal())
    await other


async def test_a_side_that_closes_first_does_not_spoil_the_end_of_the_other() -> None:
    """The side that rests first closes its connection, and the other side notices at once."""
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])

    async def first() -> Outcome:
        outcome = await one.run(chunks(b"a"))
        ends[0].close()
        ends[1].close()
        return outcome

    outcomes = await asyncio.gather(first(), two.run(chunks(b"b", pause=0.25)))
    assert [(outcome.confirmed, outcome.reason) for outcome in outcomes] == [(True, "both sides sent all")] * 2
    assert (one.received, two.received) == ([b"b"], [b"a"])


@pytest.mark.parametrize("seed", range(10))
async def test_lost_chunks_are_counted_by_the_side_that_misses_them(seed: int) -> None:
    chance = random.Random(seed)
    ends = link(0.03, lambda data: data[:1] == DATA and chance.random() < 0.3)
    one, two = Side(ends[0]), Side(ends[1])
    data = [bytes([number]) * (1 + number) for number in range(50)]
    sent, received = await asyncio.gather(one.run(chunks(*data)), two.run(chunks(b"back")))
    lost = [chunk for chunk in data if chunk not in two.received]
    assert lost and received.confirmed and sent.confirmed
    assert (received.chunks_missing, received.bytes_missing) == (len(lost), sum(map(len, lost)))
    assert (sent.chunks_missing, sent.bytes_missing) == (0, 0)


async def test_nothing_is_missing_of_an_empty_stream_and_all_of_one_that_is_lost_whole() -> None:
    for count in (0, 3):
        ends = link(0.02, lambda data: data[:1] == DATA)
        one, two = Side(ends[0]), Side(ends[1])
        _, outcome = await asyncio.gather(one.run(chunks(*[b"xy"] * count)), two.run(chunks()))
        assert (outcome.chunks_missing, outcome.bytes_missing) == (count, 2 * count)
        assert outcome.confirmed and outcome.chunks_received == 0


async def test_a_refused_chunk_is_missing_on_the_other_side() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        ends[0].full = 100
        yield b"second"
        yield b"third"

    _, outcome = await asyncio.gather(one.run(source()), two.run(chunks(then=3)))
    assert two.received == [b"first", b"third"]
    assert (outcome.chunks_missing, outcome.bytes_missing) == (1, 6)


async def test_bytes_of_every_kind_are_data() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])
    data = [b"\x00", b"\x01", b"\x02", GOODBYE + bytes(16), HOLD * 3]
    await asyncio.gather(one.run(chunks(*data, pause=0.01)), two.run(chunks()))
    assert two.received == data


async def test_foreign_datagrams_are_ignored() -> None:
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])
    for odd in (b"", b"\x01", b"\x01short", b"\x03what", b"\xff"):
        ends[1]._queue.put_nowait(odd)
    _, outcome = await asyncio.gather(one.run(chunks(b"x")), two.run(chunks()))
    assert two.received == [b"x"] and outcome.confirmed and outcome.chunks_missing == 0


class Slow(Side):
    """A side whose output takes its time."""

    def __init__(self, end: End, seconds: float) -> None:
        super().__init__(end)
        self.seconds = seconds

    async def _write(self, data: bytes) -> None:
        await asyncio.sleep(self.seconds)
        self.received.append(data)


@pytest.mark.parametrize("seconds", [0.05, 0.5, 10.0])
async def test_a_slow_output_loses_nothing_and_slows_the_sender(seconds: float) -> None:
    ends = link()
    one, two = Side(ends[0]), Slow(ends[1], seconds)
    data = [bytes([number]) for number in range(20)]
    sent, received = await asyncio.gather(one.run(chunks(*data, pause=0.1)), two.run(chunks()))
    assert two.received == data and sent.confirmed and received.confirmed
    assert HOLD in ends[1].sent
    assert one.ended_at >= seconds * 19


async def test_the_queue_of_a_blocked_receiver_stays_short() -> None:
    ends = link()
    one, two = Side(ends[0]), Slow(ends[1], 1.0)
    data = [number.to_bytes(2, "big") for number in range(20_000)]
    sending = asyncio.create_task(one.run(chunks(*data)))
    receiving = asyncio.create_task(two.run(chunks()))
    await asyncio.sleep(20)
    assert len(ends[0].sent) < 3000, "without a pause it would be all of them after 2.5 s"
    sending.cancel()
    receiving.cancel()
    await asyncio.gather(sending, receiving, return_exceptions=True)


@pytest.mark.parametrize("both_ended", [True, False])
async def test_input_that_is_left_when_the_other_side_closes_is_not_confirmed(both_ended: bool) -> None:
    """The reader of the other side's output has enough, as `head` does; an idle terminal loses nothing."""
    ends = link()
    one, two = Side(ends[0]), Side(ends[1])

    def close() -> None:
        ends[0].close()
        ends[1].close()

    asyncio.get_running_loop().call_later(2.2, close)
    source = chunks(b"x", then=30) if both_ended else chunks(*[b"x"] * 100, pause=0.05)
    outcome, _ = await asyncio.gather(one.run(source), two.run(chunks(b"all")))
    assert one.received == [b"all"]
    assert outcome.confirmed is both_ended
    assert ("before all was sent" in outcome.reason) is not both_ended
