"""Valid messages, and what hostile networks make of them: shared by the test and by `make fuzz`.

`Fuzzer(seed)` gives case after case; the same seed gives the same cases. `check(data)` holds each against what must be
true of any bytes whatever.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from zlib import crc32

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.stun import attributes as a
from polynya.stun.framing import StreamFramer, encode_channel_data, is_channel_data
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, _walk, decode, is_stun
from polynya.stun.registry import FINGERPRINT_XOR, Class, Method

KEY = IntegrityKey.short_term("VOkJxbRl1RmTxUk/WvJxBt")
V4 = Address("192.0.2.1", 32853)
V6 = Address("2001:db8::1", 443)

VALUES = {
    a.MAPPED_ADDRESS: V4,
    a.SOURCE_ADDRESS: V4,
    a.CHANGED_ADDRESS: V6,
    a.XOR_MAPPED_ADDRESS: V6,
    a.USERNAME: "evtj:h6vY",
    a.USERHASH: bytes(range(32)),
    a.REALM: "example.org",
    a.NONCE: b"obMatJos2AAADabcdef",
    a.SOFTWARE: "a test \u2603",
    a.ERROR_CODE: a.StunError(438, "Stale Nonce"),
    a.UNKNOWN_ATTRIBUTES: (0x7FFF, 3, 0x24),
    a.PASSWORD_ALGORITHM: a.PasswordAlgorithm(2),
    a.PASSWORD_ALGORITHMS: (a.PasswordAlgorithm(2), a.PasswordAlgorithm(9, b"abcde"), a.PasswordAlgorithm(1)),
    a.ALTERNATE_SERVER: (V4, V6),
    a.ALTERNATE_DOMAIN: "example.org",
    a.ORIGIN: "https://example.org",
    a.PRIORITY: 0x6E0001FF,
    a.USE_CANDIDATE: True,
    a.ICE_CONTROLLED: 0x932FF9B151263B36,
    a.ICE_CONTROLLING: 1,
    a.NOMINATION: 7,
    a.ICE_CLOSED: "abcd:efgh",
    a.CHANNEL_NUMBER: 0x4001,
    a.LIFETIME: 600,
    a.XOR_PEER_ADDRESS: (V4, V6, V4),
    a.XOR_RELAYED_ADDRESS: (V4, V6),
    a.DATA: b"\x00\x01\x00\x00payload",
    a.REQUESTED_ADDRESS_FAMILY: 6,
    a.ADDITIONAL_ADDRESS_FAMILY: 6,
    a.SSODA_ADDITIONAL_ADDRESS_FAMILY: 6,
    a.EVEN_PORT: True,
    a.REQUESTED_TRANSPORT: 17,
    a.DONT_FRAGMENT: True,
    a.RESERVATION_TOKEN: bytes(range(8)),
    a.ADDRESS_ERROR_CODE: a.AddressError(6, 440, "Address Family not Supported"),
    a.SSODA_ADDRESS_ERROR_CODE: a.AddressError(6, 440, "Address Family not Supported"),
    a.ICMP: a.IcmpValue(3, 4, b"\0\0\5\xdc"),
    a.CONNECTION_ID: 0xDEADBEEF,
    a.ACCESS_TOKEN: b"token",
    a.THIRD_PARTY_AUTHORIZATION: "auth.example.org",
    a.MOBILITY_TICKET: b"ticket",
    a.CHANGE_REQUEST: a.ChangeRequest(address=True, port=False),
    a.PADDING: bytes(9),
    a.RESPONSE_PORT: 4242,
    a.CACHE_TIMEOUT: 60,
    a.RESPONSE_ORIGIN: V4,
    a.OTHER_ADDRESS: V6,
    a.TRANSACTION_TRANSMIT_COUNTER: a.TransmitCounter(2, 1),
}
"""A value for every attribute there is."""


def valid_messages() -> list[bytes]:
    """Messages of every shape: each attribute alone, checks and answers, TURN's, signed in every way, and old ones."""
    rng = random.Random(5769)
    messages = [
        Message.request(Method.BINDING, rng.randbytes(12), {attribute: value}).encode(fingerprint=number % 2 == 0)
        for number, (attribute, value) in enumerate(VALUES.items())
    ]
    for use_candidate in (False, True):
        values = {a.USERNAME: "abcd:efgh", a.PRIORITY: 1, a.ICE_CONTROLLING: 2}
        if use_candidate:
            values[a.USE_CANDIDATE] = True
        check = Message.request(Method.BINDING, rng.randbytes(12), values)
        messages.append(check.encode(integrity=KEY, fingerprint=True))
        messages.append(Message.success(check, {a.XOR_MAPPED_ADDRESS: V4}).encode(integrity=KEY, fingerprint=True))
        messages.append(Message.error(check, 487).encode(integrity=KEY, sha256=KEY, fingerprint=True))
        messages.append(check.encode(sha256=KEY))
    everything = Message(Method.ALLOCATE, Class.REQUEST, rng.randbytes(12), dict(VALUES))
    messages.append(everything.encode(integrity=KEY, sha256=KEY, fingerprint=True))
    messages.append(Message(0xABC, Class.INDICATION, rng.randbytes(12), {}).encode(fingerprint=True))
    messages.append(Message.request(Method.BINDING, rng.randbytes(16), {a.CHANGE_REQUEST: a.ChangeRequest()}).encode())
    nested = Message.indication(Method.SEND, rng.randbytes(12), {a.XOR_PEER_ADDRESS: (V4,), a.DATA: messages[0]})
    messages.append(nested.encode())
    return messages


class Fuzzer:
    """Hostile bytes without end."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._valid = valid_messages()
        self._mutators: list[Callable[[bytearray], None]] = [
            self._flip_bits,
            self._overwrite,
            self._truncate,
            self._extend,
            self._set_any_length,
            self._repeat_attribute,
            self._swap_attributes,
            self._nest,
            self._drop_attribute,
            self._change_type,
        ]

    def case(self) -> bytes:
        """The next case: a valid message after a few mutations, at times mended so that it is read further."""
        rng = self._rng
        if rng.random() < 0.02:
            return rng.randbytes(rng.choice((0, 1, 19, 20, 24, 28, 64, 300)))
        data = bytearray(rng.choice(self._valid))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
            rng.choice(self._mutators)(data)
        if rng.random() < 0.7:
            self._mend(data)
        return bytes(data)

    def _attribute_positions(self, data: bytearray) -> list[int]:
        positions, position = [], 20
        while position + 4 <= len(data):
            positions.append(position)
            position += 4 + (int.from_bytes(data[position + 2 : position + 4], "big") + 3 & ~3)
        return positions

    def _attribute(self, data: bytearray) -> tuple[int, int] | None:
        positions = self._attribute_positions(data)
        if not positions:
            return None
        index = self._rng.randrange(len(positions))
        return positions[index], positions[index + 1] if index + 1 < len(positions) else len(data)

    def _flip_bits(self, data: bytearray) -> None:
        for _ in range(self._rng.randint(1, 4)):
            if data:
                data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)

    def _overwrite(self, data: bytearray) -> None:
        if data:
            start = self._rng.randrange(len(data))
            size = min(self._rng.randint(1, 12), len(data) - start)
            data[start : start + size] = self._rng.choice((bytes(size), b"\xff" * size, self._rng.randbytes(size)))

    def _truncate(self, data: bytearray) -> None:
        del data[self._rng.randint(0, len(data)) :]

    def _extend(self, data: bytearray) -> None:
        data += self._rng.randbytes(self._rng.choice((1, 4, 8, 40)))

    def _set_any_length(self, data: bytearray) -> None:
        found = self._attribute(data)
        position = 2 if found is None or self._rng.random() < 0.2 else found[0] + 2
        if len(data) >= position + 2:
            old = int.from_bytes(data[position : position + 2], "big")
            new = self._rng.choice((0, 1, old + 1, old - 1, old + 4, old - 4, 0x7FFF, 0xFFFC, 0xFFFF))
            data[position : position + 2] = (new & 0xFFFF).to_bytes(2, "big")

    def _repeat_attribute(self, data: bytearray) -> None:
        found = self._attribute(data)
        if found and len(data) < 4000:
            data[found[1] : found[1]] = data[found[0] : found[1]] * self._rng.choice((1, 1, 2, 20))

    def _swap_attributes(self, data: bytearray) -> None:
        first, second = self._attribute(data), self._attribute(data)
        if first and second and first[1] <= second[0]:
            middle = data[first[1] : second[0]]
            moved = data[second[0] : second[1]] + middle + data[first[0] : first[1]]
            data[first[0] : second[1]] = moved

    def _nest(self, data: bytearray) -> None:
        found = self._attribute(data)
        if found and len(data) < 4000:
            data[found[1] : found[1]] = self._rng.choice(self._valid)[self._rng.choice((0, 20)) :]

    def _drop_attribute(self, data: bytearray) -> None:
        found = self._attribute(data)
        if found:
            del data[found[0] : found[1]]

    def _change_type(self, data: bytearray) -> None:
        found = self._attribute(data)
        if found:
            number = self._rng.choice((*(attribute.number for attribute in VALUES), 8, 0x1C, 0x8028, 0x7FFF, 0xFFFF))
            data[found[0] : found[0] + 2] = number.to_bytes(2, "big")

    def _mend(self, data: bytearray) -> None:
        """Let the header's length fit, and a FINGERPRINT at the end be right."""
        if len(data) < 20:
            return
        del data[len(data) & ~3 :]
        if len(data) - 20 > 0xFFFF:
            return
        data[2:4] = (len(data) - 20).to_bytes(2, "big")
        if self._rng.random() < 0.8:
            data[4:8] = b"\x21\x12\xa4\x42"
        if len(data) >= 28 and data[-8:-4] == b"\x80\x28\0\4":
            data[-4:] = struct.pack("!I", crc32(bytes(data[:-8])) ^ FINGERPRINT_XOR)


def check(data: bytes) -> Message | None:
    """Raise AssertionError, or whatever came out that must not, unless everything holds that must hold of any bytes."""
    stun = is_stun(data)
    is_channel_data(data)
    feed_framer(data)
    try:
        walked = _walk(data, legacy=True)
    except DecodeError:
        walked = None
    message = None
    for legacy in (True, False):
        try:
            message = decode(data, legacy=legacy)
        except DecodeError:
            message = None
        expected = walked if walked is None or legacy or not walked.legacy else None
        assert same(message, expected), "a learned layout reads it differently"
    if message is None:
        return None
    assert stun, "decoded, but `is_stun` is False"
    assert message.verify(KEY) in (True, False)
    try:
        built = Message(message.method, message.cls, message.transaction_id, message.attributes).encode()
    except ValueError:
        return message  # such as a family that is neither 4 nor 6: readable, so that it can be refused
    again = decode(built)
    assert again.attributes == message.attributes
    assert again.transaction_id == message.transaction_id
    return message


def same(one: Message | None, other: Message | None) -> bool:
    """Whether two readings of a message agree in everything, the order of the attributes too."""
    if one is None or other is None:
        return one is other
    heads = [(message.method, message.cls, message.transaction_id, message.frame) for message in (one, other)]
    return heads[0] == heads[1] and list(one.attributes.items()) == list(other.attributes.items())


def feed_framer(data: bytes) -> None:
    """A stream that begins well and goes on with `data` gives its good frames and breaks or waits."""
    framer = StreamFramer(max_frame=2000)
    good = encode_channel_data(0x4000, b"abc", pad=True)
    cut = len(data) // 2
    frames = framer.feed(good + data[:cut]) + framer.feed(data[cut:])
    assert frames[0] == good[:-1]
    assert framer.pending <= 2000 + 3
    for frame in frames:
        assert frame[0] < 0x80
