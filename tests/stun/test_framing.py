"""RFC 8489, section 6.2.2, and RFC 8656, section 12.5: STUN and ChannelData on a stream."""

import random

import pytest

from polynya.core.errors import DecodeError
from polynya.stun.framing import FrameCounter, StreamFramer, decode_channel_data, encode_channel_data, is_channel_data
from polynya.stun.message import Message
from polynya.stun.registry import Method

ID = bytes(range(12))
REQUEST = Message.request(Method.BINDING, ID).encode(fingerprint=True)
CHANNELS = [encode_channel_data(0x4000 + size, bytes(size), pad=False) for size in range(9)]
FRAMES = [REQUEST, *CHANNELS, REQUEST]
STREAM = REQUEST + b"".join(frame + bytes(-len(frame) & 3) for frame in CHANNELS) + REQUEST


def test_frames_are_found_when_bytes_come_one_by_one() -> None:
    framer = StreamFramer()
    frames = [frame for byte in STREAM for frame in framer.feed(bytes((byte,)))]
    assert frames == FRAMES
    assert framer.pending == 0
    assert framer.error is None


def test_frames_are_found_when_they_come_all_at_once() -> None:
    assert StreamFramer().feed(STREAM) == FRAMES


def test_frames_are_found_wherever_the_stream_is_cut() -> None:
    rng = random.Random(7)
    for _ in range(200):
        framer, frames, position = StreamFramer(), [], 0
        while position < len(STREAM):
            size = rng.randint(1, 40)
            frames += framer.feed(STREAM[position : position + size])
            position += size
        assert frames == FRAMES


def test_portions_begin_a_few_frames_each_wherever_the_stream_is_cut() -> None:
    rng = random.Random(8)
    begins = [0]
    for frame in FRAMES:
        begins.append(begins[-1] + len(frame) + (-len(frame) & 3))
    for most in (1, 2, 3, 100):
        for _ in range(100):
            counter, position, portions = FrameCounter(), 0, []
            while position < len(STREAM):
                piece = STREAM[position : position + rng.randint(1, 60)]
                start = 0
                while start < len(piece):
                    end = counter.portion(piece, start, most)
                    assert end > start
                    portions.append((position + start, position + end))
                    start = end
                position += len(piece)
            for first, last in portions:
                assert sum(first <= each < last for each in begins) <= most
            assert len(portions) < 150


@pytest.mark.parametrize(("most", "sizes"), [(1, [4] * 6), (4, [16, 8]), (6, [24]), (7, [24])])
def test_a_portion_ends_where_a_frame_does(most: int, sizes: list[int]) -> None:
    counter, data, start, found = FrameCounter(), bytes.fromhex("40000000") * 6, 0, []
    while start < len(data):
        end = counter.portion(data, start, most)
        found.append(end - start)
        start = end
    assert found == sizes


def test_bytes_that_are_no_frame_are_one_portion() -> None:
    data = encode_channel_data(0x4000, b"abcd", pad=True) + b"\xff" * 100
    assert FrameCounter().portion(data, 0, 16) == len(data)


def test_channel_data_waits_for_its_padding() -> None:
    framer = StreamFramer()
    data = encode_channel_data(0x4001, b"abc", pad=True)
    assert framer.feed(data[:-1]) == []
    assert framer.feed(data[-1:]) == [data[:-1]]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x80",
        b"\xff",
        b"\xc0\0",
        b"\x00\x01\x00\x03",
        b"\x00\x01\x00\x00\x21\x13",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_a_stream_that_lost_step_is_broken_for_good(garbage: bytes) -> None:
    framer = StreamFramer()
    assert framer.feed(REQUEST + garbage) == [REQUEST]
    assert isinstance(framer.error, DecodeError)
    assert framer.feed(REQUEST) == []
    assert framer.pending == 0


def test_channel_data_breaks_a_stream_that_has_no_channels() -> None:
    framer = StreamFramer(channels=False)
    assert framer.feed(CHANNELS[1]) == []
    assert framer.error is not None


def test_no_more_than_the_allowed_frame_is_ever_kept() -> None:
    framer = StreamFramer(max_frame=100)
    assert framer.feed(bytes.fromhex("000100542112a442")) == []
    assert framer.error is not None
    assert framer.pending == 0


def test_channel_data_is_recognized_by_its_bits_and_its_length() -> None:
    assert decode_channel_data(encode_channel_data(0x4ABC, b"hello", pad=True)) == (0x4ABC, b"hello")
    assert decode_channel_data(encode_channel_data(0x4ABC, b"hello", pad=False)) == (0x4ABC, b"hello")
    assert not is_channel_data(b"Hello")  # begins like a channel, and its length does not fit
    for data in (b"", b"\x40\0\0", b"\x40\0\0\x01", REQUEST):
        assert not is_channel_data(data)
        with pytest.raises(DecodeError):
            decode_channel_data(data)


@pytest.mark.parametrize(("channel", "payload"), [(0x3FFF, b""), (0x8000, b""), (0x4000, bytes(65536))])
def test_what_is_no_channel_data_cannot_be_built(channel: int, payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        encode_channel_data(channel, payload, pad=False)
