"""STUN messages: reading, building, signing and verifying them (RFC 8489, sections 5, 6.3 and 14).

    message = decode(data)                      # raises DecodeError, and nothing else, for other bytes
    if message.verify(key): message[PRIORITY]   # typed values by attribute

    request = Message.request(Method.BINDING, transaction_id, {PRIORITY: 1, USE_CANDIDATE: True})
    data = request.encode(integrity=key, fingerprint=True)

`decode` handles hostile and odd input by these rules. Lengths are checked before values are read. A wrong FINGERPRINT,
or one that is not last, is an error. The first of a repeated attribute counts. Attributes after MESSAGE-INTEGRITY are
ignored, except for MESSAGE-INTEGRITY-SHA256 and FINGERPRINT. Unknown comprehension-required attributes are listed for
the caller, who answers a request with 420 and drops other messages. A comprehension-optional attribute with an invalid
value is treated as unknown. Padding may have any bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zlib import crc32

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow

from .attributes import ATTRIBUTES, ERROR_CODE, Attribute, StunError
from .layouts import BUILT, BUILT_LEGACY, MAX_SIZE, Frame, Layouts, layout_key
from .registry import (
    COMPREHENSION_OPTIONAL,
    FINGERPRINT_XOR,
    HEADER_LENGTH,
    MAGIC_COOKIE,
    MAGIC_COOKIE_BYTES,
    MESSAGE_TYPES,
    REASONS,
    TRANSACTION_ID_LENGTH,
    AttributeType,
    Class,
    Method,
    message_type,
    split_message_type,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .integrity import IntegrityKey

T = TypeVar("T")

_HEAD: Final = struct.Struct("!HHI").unpack_from
_TYPE_AND_LENGTH: Final = struct.Struct("!HH").unpack_from
_PAIR: Final = struct.Struct("!HH").pack
_WORDS: Final = struct.Struct("!II").pack
_WORD: Final = struct.Struct("!I").unpack_from
MAX_ATTRIBUTES: Final = 0xFFFC - 24 - 36 - 8
"""Limit of the attributes' bytes, which leaves room for two signatures and a FINGERPRINT."""
MAX_UNKNOWN: Final = 64
"""Limit of listed unknown comprehension-required attributes; one is enough to refuse the message."""
_FINGERPRINT_HEAD: Final = AttributeType.FINGERPRINT << 16 | 4
_INTEGRITY_HEAD: Final = _PAIR(AttributeType.MESSAGE_INTEGRITY, 20)
_SHA256_HEAD: Final = _PAIR(AttributeType.MESSAGE_INTEGRITY_SHA256, 32)

# Looking up a member of an enum is slow.
_REQUEST, _INDICATION, _SUCCESS, _ERROR = Class
_INTEGRITY: Final = int(AttributeType.MESSAGE_INTEGRITY)
_SHA256: Final = int(AttributeType.MESSAGE_INTEGRITY_SHA256)
_FINGERPRINT: Final = int(AttributeType.FINGERPRINT)

_attribute_of: Final = ATTRIBUTES.get
_type_numbers: Final[dict[tuple[int, int], int]] = {pair: number for number, pair in MESSAGE_TYPES.items()}
_type_of: Final = _type_numbers.get
_layouts: Final = Layouts()
_layout_of: Final = _layouts.by_key.get


class Message:
    """A STUN message with its attributes as typed values, by attribute."""

    __slots__ = ("_data", "attributes", "cls", "frame", "method", "transaction_id")

    def __init__(
        self,
        method: Method | int,
        cls: Class,
        transaction_id: bytes,
        attributes: dict[Attribute[Any], Any],
        _data: bytes = b"",
        _frame: Frame = BUILT,
    ) -> None:
        self.method = method
        self.cls = cls
        self.transaction_id = transaction_id
        self.attributes = attributes
        self._data = _data
        self.frame = _frame

    # -------------------------------------------------------------------------------------------------------- building

    @classmethod
    def request(
        cls, method: Method, transaction_id: bytes, attributes: Mapping[Attribute[Any], Any] | None = None
    ) -> Message:
        """Return a request. The caller supplies a random transaction id: 12 bytes, or 16 for a server of RFC 3489."""
        return _built(method, _REQUEST, transaction_id, attributes)

    @classmethod
    def indication(
        cls, method: Method, transaction_id: bytes, attributes: Mapping[Attribute[Any], Any] | None = None
    ) -> Message:
        """Return an indication, which has no response."""
        return _built(method, _INDICATION, transaction_id, attributes)

    @classmethod
    def success(cls, request: Message, attributes: Mapping[Attribute[Any], Any] | None = None) -> Message:
        """Return the success response to `request`."""
        return _built(request.method, _SUCCESS, request.transaction_id, attributes)

    @classmethod
    def error(
        cls,
        request: Message,
        code: int,
        reason: str | None = None,
        attributes: Mapping[Attribute[Any], Any] | None = None,
    ) -> Message:
        """Return the error response to `request`, with the code's default reason, or none if `reason` is empty."""
        phrase = REASONS.get(code, "") if reason is None else reason
        values: dict[Attribute[Any], Any] = {ERROR_CODE: StunError(int(code), phrase)}
        return _built(request.method, _ERROR, request.transaction_id, values | dict(attributes or {}))

    def encode(
        self, *, integrity: IntegrityKey | None = None, sha256: IntegrityKey | None = None, fingerprint: bool = False
    ) -> bytes:
        """Encode the message: the attributes in their order, then the requested integrity and FINGERPRINT.

        Raises ValueError for an invalid value, or a message that is too long.
        """
        mask = self.transaction_id if len(self.transaction_id) == 16 else MAGIC_COOKIE_BYTES + self.transaction_id
        rest = mask + b"".join([attribute.pack(value, mask) for attribute, value in self.attributes.items()])
        size = len(rest) - 16
        if size > MAX_ATTRIBUTES:
            raise ValueError(f"a message holds at most {MAX_ATTRIBUTES} bytes of attributes, not {size}")
        kind = _type_of((self.method, self.cls)) or message_type(self.method, self.cls)
        if integrity is not None:
            size += 24
            rest += _INTEGRITY_HEAD + integrity.sha1(_PAIR(kind, size) + rest)
        if sha256 is not None:
            size += 36
            rest += _SHA256_HEAD + sha256.sha256(_PAIR(kind, size) + rest)
        if not fingerprint:
            return _PAIR(kind, size) + rest
        data = _PAIR(kind, size + 8) + rest
        return data + _WORDS(_FINGERPRINT_HEAD, crc32(data) ^ FINGERPRINT_XOR)

    # --------------------------------------------------------------------------------------------------------- reading

    def get(self, attribute: Attribute[T]) -> T | None:
        """Return the value of an attribute, or None if the message lacks it."""
        return self.attributes.get(attribute)

    def __getitem__(self, attribute: Attribute[T]) -> T:
        value: T = self.attributes[attribute]
        return value

    def __contains__(self, attribute: Attribute[Any]) -> bool:
        return attribute in self.attributes

    @property
    def legacy(self) -> bool:
        """Whether the message has no magic cookie, as in RFC 3489; its transaction id has 16 bytes then."""
        return self.frame.legacy

    @property
    def unknown_required(self) -> tuple[int, ...]:
        """The types of unknown comprehension-required attributes, in their order."""
        return self.frame.unknown_required

    @property
    def malformed(self) -> str:
        """The comprehension-required attribute that is invalid, and why; empty unless `decode` was lenient."""
        return self.frame.malformed

    @property
    def has_fingerprint(self) -> bool:
        """Whether the message has a FINGERPRINT, which `decode` has verified."""
        return self.frame.fingerprint

    @property
    def has_integrity(self) -> bool:
        return self.frame.integrity > 0

    @property
    def has_integrity_sha256(self) -> bool:
        return self.frame.sha256 > 0

    def verify(self, key: IntegrityKey) -> bool:
        """Whether the message is signed with `key`; False for an unsigned one.

        If it has both integrity attributes, the stronger one decides (RFC 8489, section 9.1.3). The comparison takes
        constant time.
        """
        data, frame = self._data, self.frame
        if frame.sha256:
            offset, size = frame.sha256, frame.sha256_size
            digest = key.sha256(frame.sha256_head + data[4:offset])[:size]
            return compare_digest(digest, data[offset + 4 : offset + 4 + size])
        offset = frame.integrity
        if not offset:
            return False
        return compare_digest(key.sha1(frame.integrity_head + data[4:offset]), data[offset + 4 : offset + 24])

    def verify_sha1(self, key: IntegrityKey) -> bool:
        """Verify MESSAGE-INTEGRITY only, for a peer that negotiated SHA-1 (RFC 8489, section 9.2.5)."""
        data, offset = self._data, self.frame.integrity
        return offset > 0 and compare_digest(
            key.sha1(self.frame.integrity_head + data[4:offset]), data[offset + 4 : offset + 24]
        )

    def __repr__(self) -> str:
        method = self.method.name if isinstance(self.method, Method) else f"{self.method:#05x}"
        values = ", ".join(f"{attribute}={value!r}" for attribute, value in self.attributes.items())
        return f"<{method} {self.cls.name} {self.transaction_id.hex()} {values}>"


@dataclass(slots=True)
class Received:
    """A decoded STUN message with its flow and source, so that it is decoded once only."""

    flow: Flow
    remote: Address
    message: Message
    data: bytes
    packet: int = 0
    """Id of the packet in the trace; 0 without a trace."""


def is_stun(data: bytes) -> bool:
    """Whether a datagram looks like STUN: two zero bits, the magic cookie, a length that fits. It is cheap."""
    return (
        len(data) >= HEADER_LENGTH
        and data[0] < 0x40
        and data[4:8] == MAGIC_COOKIE_BYTES
        and (data[2] << 8 | data[3]) == len(data) - HEADER_LENGTH
    )


def decode(data: bytes, *, legacy: bool = False, lenient: bool = False) -> Message:
    """Decode one whole message. Raises DecodeError, and nothing else, for other bytes.

    With `legacy`, a message without the magic cookie is decoded as one of RFC 3489. With `lenient`, an invalid
    attribute is left out and reported in `Message.malformed`, so that a server can authenticate the client first.
    """
    layout = _layout_of(layout_key(data)) if len(data) > HEADER_LENGTH + 3 else None
    if layout is None:
        return _walk(data, legacy=legacy, lenient=lenient)
    unpack, words, method, cls, template, integers, texts, others, fingerprint, frame = layout
    try:
        fields = unpack(data)
        if fields[::2] != words or (fingerprint and crc32(data[:-8]) ^ FINGERPRINT_XOR != fields[-1]):
            return _walk(data, legacy=legacy, lenient=lenient)
        attributes = template.copy()
        for attribute, index in integers:
            attributes[attribute] = fields[index]
        for attribute, index in texts:
            attributes[attribute] = fields[index].decode()
        for attribute, index, read in others:
            attributes[attribute] = read(fields[index], data[4:20])
    except (struct.error, UnicodeDecodeError, DecodeError):
        return _walk(data, legacy=legacy, lenient=lenient)  # it finds the error, or decodes what it can
    return Message(method, cls, fields[1], attributes, data, frame)


def _walk(data: bytes, *, legacy: bool, lenient: bool = False) -> Message:
    """Decode a message attribute by attribute: the slow path, which has all the rules."""
    size = len(data)
    if size < HEADER_LENGTH:
        raise DecodeError(f"{size} bytes are too few for a STUN message")
    kind, length, cookie = _HEAD(data)
    if kind > 0x3FFF or length & 3 or length != size - HEADER_LENGTH:
        raise DecodeError(f"a STUN message of type {kind:#06x} and length {length} does not fit {size} bytes")
    if cookie != MAGIC_COOKIE and not legacy:
        raise DecodeError("no STUN magic cookie")
    mask = data[4:HEADER_LENGTH]
    attributes: dict[Attribute[Any], Any] = {}
    unknown: tuple[int, ...] = ()
    integrity = sha256 = sha256_size = 0
    fingerprint = repeated = False
    malformed = ""
    position = HEADER_LENGTH
    while position < size:
        number, length = _TYPE_AND_LENGTH(data, position)
        start = position + 4
        end = start + length
        if end > size:
            raise DecodeError(f"attribute {number:#06x} of {length} bytes goes beyond the end of the message")
        if number == _FINGERPRINT:
            if length != 4 or end != size:
                raise DecodeError("FINGERPRINT is not the last attribute")
            if _WORD(data, start)[0] != crc32(data[:position]) ^ FINGERPRINT_XOR:
                raise DecodeError("wrong FINGERPRINT")
            fingerprint = True
        elif sha256:
            pass
        elif number == _SHA256:
            if not 16 <= length <= 32 or length & 3:
                raise DecodeError(f"MESSAGE-INTEGRITY-SHA256 has 16..32 bytes in steps of 4, not {length}")
            sha256, sha256_size = position, length
        elif integrity:
            pass
        elif number == _INTEGRITY:
            if length != 20:
                raise DecodeError(f"MESSAGE-INTEGRITY has 20 bytes, not {length}")
            integrity = position
        elif (attribute := _attribute_of(number)) is None:
            if number < COMPREHENSION_OPTIONAL and len(unknown) < MAX_UNKNOWN:
                unknown += (number,)
        elif attribute.repeats or attribute not in attributes:
            try:
                value = attribute.decode(data[start:end], mask)
            except DecodeError as error:
                if number < COMPREHENSION_OPTIONAL:
                    if not lenient:
                        raise DecodeError(f"{attribute.name}: {error}") from None
                    malformed = malformed or f"{attribute.name}: {error}"
            else:
                if attribute.repeats:
                    repeated = True
                    attributes.setdefault(attribute, []).append(value)
                else:
                    attributes[attribute] = value
        position = end + 3 & ~3
    if repeated:
        for attribute, value in attributes.items():
            if attribute.repeats:
                attributes[attribute] = tuple(value)
    method, cls = split_message_type(kind)
    if cookie != MAGIC_COOKIE:
        frame = Frame(True, fingerprint, unknown)
        return Message(method, cls, mask, attributes, data, frame)
    frame = BUILT
    if integrity or sha256 or fingerprint or unknown or malformed:
        frame = Frame(
            False,
            fingerprint,
            unknown,
            integrity,
            _PAIR(kind, integrity + 4) if integrity else b"",
            sha256,
            _PAIR(kind, sha256 + sha256_size - 16) if sha256 else b"",
            sha256_size,
            malformed,
        )
    if HEADER_LENGTH < size <= MAX_SIZE and not malformed:
        _layouts.offer(data, attributes, method, cls, frame)
    return Message(method, cls, data[8:HEADER_LENGTH], attributes, data, frame)


def _built(
    method: Method | int, cls: Class, transaction_id: bytes, attributes: Mapping[Attribute[Any], Any] | None
) -> Message:  # fmt: skip
    frame = BUILT
    if len(transaction_id) != TRANSACTION_ID_LENGTH:
        if len(transaction_id) != len(MAGIC_COOKIE_BYTES) + TRANSACTION_ID_LENGTH:
            raise ValueError(f"a transaction id has 12 bytes (16 for RFC 3489), not {len(transaction_id)}")
        frame = BUILT_LEGACY
    return Message(method, cls, transaction_id, dict(attributes) if attributes else {}, b"", frame)
