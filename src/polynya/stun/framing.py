"""STUN and ChannelData on a stream (RFC 8489, section 6.2.2; RFC 8656, sections 2.5 and 12.4 to 12.6).

Both carry their own length and differ in their first two bits: 00 is STUN, 01 is ChannelData, which is padded to four
bytes on a stream. Any other bits mean that the framing is lost, and no later byte can be interpreted.

    | position     | what is there        | then                                          |
    |--------------|----------------------|-----------------------------------------------|
    | at a frame   | 00, cookie in place  | 20 + length bytes are one frame               |
    |              | 01, channels allowed | 4 + length bytes are one frame, padding after |
    |              | anything else        | broken: nothing more is read                  |
    | within one   |                      | wait for the rest                             |
"""

from __future__ import annotations

from typing import Final

from polynya.core.errors import DecodeError

from .registry import HEADER_LENGTH, MAGIC_COOKIE_BYTES

MAX_FRAME: Final = HEADER_LENGTH + 0xFFFC
"""The largest STUN message, bytes."""
CHANNEL_HEADER_LENGTH: Final = 4
FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x7FFF
"""The limit of RFC 5766; RFC 8656 allows channels up to 0x4FFF. The owner decides which are accepted."""


class StreamFramer:
    """Splits a stream into STUN messages and ChannelData frames, in whatever pieces its bytes arrive.

    A frame that is longer than `max_frame` breaks the stream as soon as its header is there, so that no more than that
    is ever kept.
    """

    __slots__ = ("_buffer", "_channels", "_max_frame", "error")

    def __init__(self, *, channels: bool = True, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._channels = channels
        self._max_frame = max_frame
        self.error: DecodeError | None = None
        """Why the stream is broken; the owner closes it. None while it is well."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes and return the frames they complete: whole STUN messages, and ChannelData without its padding.

        Never raises. Once `error` is set everything is dropped.
        """
        if self.error is not None:
            return []
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        position = 0
        try:
            while (size := self._frame_size(position)) and len(buffer) - position >= size + (-size & 3):
                frames.append(bytes(buffer[position : position + size]))
                position += size + (-size & 3)
        except DecodeError as error:
            self.error = error.with_traceback(None)  # which would hold this framer, and what it buffers
            buffer.clear()
            return frames
        del buffer[:position]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of the incomplete frame."""
        return len(self._buffer)

    def _frame_size(self, position: int) -> int:
        """Return the size of the frame at `position` without padding, or 0 if its header is incomplete."""
        buffer = self._buffer
        available = len(buffer) - position
        if available < 1:
            return 0
        kind = buffer[position] >> 6
        if kind > 1 or (kind == 1 and not self._channels):
            raise DecodeError(f"a stream frame cannot begin with {buffer[position]:#04x}")
        if available < CHANNEL_HEADER_LENGTH:
            return 0
        size = CHANNEL_HEADER_LENGTH + (buffer[position + 2] << 8 | buffer[position + 3])
        if kind == 0:
            size += HEADER_LENGTH - CHANNEL_HEADER_LENGTH
            if size & 3:
                raise DecodeError("a STUN message's length is a multiple of four")
            cookie = buffer[position + 4 : position + 8]
            if not MAGIC_COOKIE_BYTES.startswith(cookie):
                raise DecodeError("a STUN message on a stream has the magic cookie")
        if size > self._max_frame:
            raise DecodeError(f"a frame of {size} bytes is longer than {self._max_frame}")
        return size


class FrameCounter:
    """Divides the bytes of a stream into portions of a few frames, without copying them."""

    __slots__ = ("_header", "_rest")

    def __init__(self) -> None:
        self._header = b""
        """The part of a header that has been counted already."""
        self._rest = 0
        """Bytes of the frame in progress that are still to come."""

    def portion(self, data: bytes, start: int, frames: int) -> int:
        """Return the end of the portion of `data` that begins at `start` and begins at most `frames` frames.

        Bytes that cannot begin a frame are one portion: the stream is broken.
        """
        position = start + self._rest
        self._rest = 0
        while position < len(data):
            if not frames:
                return position
            frames -= 1
            counted = len(self._header)
            header = self._header + data[position : position + CHANNEL_HEADER_LENGTH - counted]
            if len(header) < CHANNEL_HEADER_LENGTH:
                self._header = header
                return len(data)
            self._header = b""
            if header[0] >> 6 > 1:
                return len(data)
            least = CHANNEL_HEADER_LENGTH if header[0] >> 6 else HEADER_LENGTH
            size = least + (header[2] << 8 | header[3])
            position += size + (-size & 3) - counted
        self._rest = position - len(data)
        return len(data)


def is_channel_data(data: bytes) -> bool:
    """Whether a datagram from a TURN server is ChannelData: the first two bits are 01 and the length fits."""
    return len(data) >= CHANNEL_HEADER_LENGTH and data[0] >> 6 == 1 and (data[2] << 8 | data[3]) <= len(data) - 4


def encode_channel_data(channel: int, payload: bytes, *, pad: bool) -> bytes:
    """Encode a ChannelData message. `pad` it on a stream; over UDP padding is optional (RFC 8656, section 12.5)."""
    if not FIRST_CHANNEL <= channel <= LAST_CHANNEL:
        raise ValueError(f"a channel is within {FIRST_CHANNEL:#06x}..{LAST_CHANNEL:#06x}, not {channel:#06x}")
    if len(payload) > 0xFFFF:
        raise ValueError(f"a channel carries at most 65535 bytes at once, not {len(payload)}")
    data = channel.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload
    return data + bytes(-len(payload) & 3) if pad else data


def decode_channel_data(data: bytes) -> tuple[int, bytes]:
    """Return channel and payload; bytes after the payload are ignored. Raises DecodeError for other data."""
    if not is_channel_data(data):
        raise DecodeError(f"{data[:4].hex()} does not begin ChannelData of {len(data)} bytes")
    return data[0] << 8 | data[1], data[4 : 4 + (data[2] << 8 | data[3])]
