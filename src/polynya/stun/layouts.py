"""Layouts of messages: learned from the first message of a kind, they decode the next ones with one `struct` call.

The checks, responses and keepalives of one peer differ in their values only, never in the order and lengths of their
attributes. Decoding attribute by attribute takes some 300 ns each. With a known layout, one `struct` call extracts all
values, one tuple comparison verifies the header words, and integers need no decoder. A layout makes no decisions: a
message that does not fit is decoded attribute by attribute.

The table is bounded. A new layout is added while there is room. In a full table, one of 16 messages without a layout
replaces the oldest layout, so that a flood of odd messages costs no more than decoding them the slow way.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from .attributes import ATTRIBUTES, DATA, Attribute, Decoder
from .registry import COMPREHENSION_OPTIONAL, HEADER_LENGTH, AttributeType, Class

MAX_SIZE: Final = 512
"""Bytes; longer messages are rare, and their layouts would not repeat."""
CAPACITY: Final = 256
_REPLACE_EVERY: Final = 16

_TYPE_AND_LENGTH: Final = struct.Struct("!HH").unpack_from
layout_key: Final = struct.Struct("!I16xI").unpack_from
"""Message type, message length and the first attribute's header: the key of a layout."""


class Frame(NamedTuple):
    """The parts of a message besides its attributes' values."""

    legacy: bool = False
    """Whether it has no magic cookie, as in RFC 3489; its transaction id has 16 bytes then."""
    fingerprint: bool = False
    unknown_required: tuple[int, ...] = ()
    integrity: int = 0
    """Offset of MESSAGE-INTEGRITY; 0 if it is absent."""
    integrity_head: bytes = b""
    """The message's first four bytes as MESSAGE-INTEGRITY covers them."""
    sha256: int = 0
    """Offset of MESSAGE-INTEGRITY-SHA256; 0 if it is absent."""
    sha256_head: bytes = b""
    sha256_size: int = 0
    """Bytes of its possibly truncated value."""
    malformed: str = ""
    """The comprehension-required attribute that is invalid, and why."""


BUILT: Final = Frame()
BUILT_LEGACY: Final = Frame(legacy=True)


class Layout(NamedTuple):
    """Positions of a message's values. Its fields are cookie, transaction id, then header word and value in turn."""

    unpack: Any
    """`Struct.unpack` for the whole message."""
    words: tuple[Any, ...]
    """The cookie and every attribute's header word: the fields with even index."""
    method: int
    cls: Class
    template: dict[Attribute[Any], Any]
    """The attributes in their order; those without bytes, such as flags, have their value."""
    integers: tuple[tuple[Attribute[Any], int], ...]
    """Attributes whose field is their value, with the field's index."""
    texts: tuple[tuple[Attribute[Any], int], ...]
    """Attributes whose field is their value in UTF-8, of an allowed length."""
    others: tuple[tuple[Attribute[Any], int, Decoder[Any]], ...]
    fingerprint: bool
    frame: Frame


class Layouts:
    """Table of layouts by key. It changes the speed of decoding, never the result."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[int, int], Layout] = {}
        self._missed = 0

    def offer(self, data: bytes, attributes: dict[Attribute[Any], Any], method: int, cls: Class, frame: Frame) -> None:
        """Add the layout of a message that was decoded the slow way."""
        key = layout_key(data)
        if key in self.by_key:
            return
        if len(self.by_key) >= CAPACITY:
            self._missed += 1
            if self._missed % _REPLACE_EVERY:
                return
        layout = _layout(data, attributes, method, cls, frame)
        if layout is None:
            return
        if len(self.by_key) >= CAPACITY:
            del self.by_key[next(iter(self.by_key))]
        self.by_key[key] = layout


def _layout(
    data: bytes, attributes: dict[Attribute[Any], Any], method: int, cls: Class, frame: Frame
) -> Layout | None:  # fmt: skip
    """Return the layout of a message; None if an equal layout could have another meaning."""
    codes = ["!4xI12s"]
    integers: list[tuple[Attribute[Any], int]] = []
    texts: list[tuple[Attribute[Any], int]] = []
    others: list[tuple[Attribute[Any], int, Decoder[Any]]] = []
    template: dict[Attribute[Any], Any] = {}
    position, index = HEADER_LENGTH, 3
    while position < len(data):
        number, length = _TYPE_AND_LENGTH(data, position)
        padding = -length & 3
        attribute = ATTRIBUTES.get(number)
        code = f"{length}s{padding}x"
        if number == AttributeType.FINGERPRINT:
            code = "I"
        elif number in (AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256):
            pass
        elif attribute is not None:
            if attribute in template or attribute not in attributes or attribute is DATA:
                return None  # repeated, malformed, behind the integrity, or of a new length each time
            template[attribute] = None if length else attributes[attribute]  # flags and empty texts are constant
            if attribute.field:
                code = attribute.field
                integers.append((attribute, index))
            elif attribute.text:
                texts.append((attribute, index))
            elif length:
                others.append(
                    (attribute, index, _tuple_of(attribute.decode) if attribute.repeats else attribute.decode)
                )
        elif number < COMPREHENSION_OPTIONAL:
            return None
        codes.append("I" + code)
        position += 4 + length + padding
        index += 2
    unpack = struct.Struct("".join(codes)).unpack
    return Layout(
        unpack=unpack,
        words=unpack(data)[::2],
        method=method,
        cls=cls,
        template=template,
        integers=tuple(integers),
        texts=tuple(texts),
        others=tuple(others),
        fingerprint=frame.fingerprint,
        frame=frame,
    )


def _tuple_of(decode: Decoder[Any]) -> Decoder[tuple[Any, ...]]:
    return lambda value, mask: (decode(value, mask),)
