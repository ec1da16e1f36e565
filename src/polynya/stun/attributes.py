"""Attributes of STUN and TURN: one typed object for each, which decodes and encodes its value.

    message[PRIORITY]            an int, and mypy knows it
    message.get(ERROR_CODE)      a StunError or None

`decode` takes the bytes of a value (without header and padding), and the 16 header bytes that mask XOR addresses
(cookie and transaction id). It raises DecodeError and nothing else. `pack` returns the whole attribute: header, value,
padding. It raises ValueError for an invalid value.

A message holds a tuple of all values of an attribute that `repeats`, and the first value of any other (RFC 8489,
section 14). MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are not here: `message` creates and verifies
them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

from polynya.core.addresses import IPV4, IPV6, Address, pack_host
from polynya.core.errors import DecodeError

from .registry import REASONS, AttributeType

T = TypeVar("T")

Decoder = Callable[[bytes, bytes], T]
Encoder = Callable[[T, bytes], bytes]

_HEADER: Final = struct.Struct("!HH").pack
_XOR4: Final = struct.Struct("!HHI").pack
_WORD: Final = struct.Struct("!I").unpack_from
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_MAX_TEXT: Final = 763
"""Bytes of REALM, SOFTWARE, NONCE and reason phrases: the limit of RFC 5389; RFC 8489 has 509 and fewer."""


class Attribute(Generic[T]):
    """One attribute of the registry. Compared by identity: there is one object for each."""

    __slots__ = ("decode", "encode", "field", "name", "number", "pack", "repeats", "text")

    def __init__(
        self,
        number: AttributeType,
        decode: Decoder[Any],
        encode: Encoder[Any],
        *,
        repeats: bool = False,
        field: str = "",
    ) -> None:
        self.number = int(number)
        self.name = number.name.replace("_", "-")
        self.decode = decode
        """Decodes one value; of an attribute that repeats, one of the tuple."""
        self.encode = encode
        self.repeats = repeats
        self.field = field
        """The `struct` code of a plain integer, which needs no decoder call; empty for other values."""
        self.text = False
        """Whether a value is plain UTF-8, within the checked length."""
        self.pack: Callable[[Any, bytes], bytes] = self._pack_values if repeats else self._pack_value
        """Encodes the whole attribute; of one that repeats, all of its values."""

    def _pack_value(self, value: T, mask: bytes) -> bytes:
        encoded = self.encode(value, mask)
        size = len(encoded)
        return _HEADER(self.number, size) + encoded + _PADDING[size & 3]

    def _pack_values(self, values: tuple[Any, ...], mask: bytes) -> bytes:
        return b"".join([self._pack_value(value, mask) for value in values])

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name.replace("-", "_")  # copies and pickles resolve to the object of this module


# ------------------------------------------------------------------------------------------------ values with a shape


class StunError(NamedTuple):
    """The value of ERROR-CODE."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.code} {self.reason or REASONS.get(self.code, '')}".rstrip()


class AddressError(NamedTuple):
    """The value of ADDRESS-ERROR-CODE: the reason why one of two families was not allocated (RFC 8656, 18.12)."""

    family: int
    code: int
    reason: str = ""


class PasswordAlgorithm(NamedTuple):
    """One entry of PASSWORD-ALGORITHMS; `number` is a PasswordAlgorithmNumber, or an unknown one."""

    number: int
    parameters: bytes = b""


class ChangeRequest(NamedTuple):
    """The requested change of a response's source (RFC 5780, section 7.2)."""

    address: bool = False
    port: bool = False


class TransmitCounter(NamedTuple):
    """The number of sends of a request and of its response (RFC 7982, section 3)."""

    request: int
    response: int = 0


class IcmpValue(NamedTuple):
    """An ICMP error for a relayed datagram (RFC 8656, section 18.13); `data` is the next-hop MTU or similar."""

    type: int
    code: int
    data: bytes = bytes(4)


# ------------------------------------------------------------------------------------------------------------- codecs


def _sized(value: bytes, *sizes: int) -> bytes:
    if len(value) not in sizes:
        raise DecodeError(f"an attribute's value has {' or '.join(map(str, sizes))} bytes, not {len(value)}")
    return value


def _integer(number: AttributeType, field: str = "I") -> Attribute[int]:
    size = struct.calcsize("!" + field)
    pack = struct.Struct("!I" + field).pack
    header = number << 16 | size

    def pack_integer(value: int, _: bytes) -> bytes:
        try:
            return pack(header, value)
        except struct.error:
            raise ValueError(f"{number.name} holds 0..{256**size - 1}, not {value!r}") from None

    attribute: Attribute[int] = Attribute(
        number,
        lambda value, _: int.from_bytes(_sized(value, size), "big"),
        lambda value, _: value.to_bytes(size, "big"),
        field=field,
    )
    attribute.pack = pack_integer
    return attribute


def _flag(number: AttributeType) -> Attribute[bool]:
    """Return an attribute without a value, which is set by its presence."""
    packed = _HEADER(number, 0)

    def pack_flag(value: bool, _: bytes) -> bytes:
        if value is not True:
            raise ValueError(f"{number.name} is True or left out, not {value!r}")
        return packed

    attribute: Attribute[bool] = Attribute(
        number, lambda value, _: _sized(value, 0) == b"", lambda value, mask: pack_flag(value, mask)[4:]
    )
    attribute.pack = pack_flag
    return attribute


def _text(number: AttributeType, limit: int = _MAX_TEXT, *, lenient: bool = False) -> Attribute[str]:
    """Return an attribute of at most `limit` bytes of UTF-8; `lenient` accepts wrong encoding in text for people."""

    def decode(value: bytes, _: bytes) -> str:
        if len(value) > limit:
            raise DecodeError(f"{number.name} has {len(value)} bytes, more than {limit}")
        try:
            return value.decode()
        except UnicodeDecodeError:
            if lenient:
                return value.decode("utf-8", "replace")
            raise DecodeError(f"{number.name} is not UTF-8") from None

    def pack_text(value: str, _: bytes) -> bytes:
        encoded = value.encode()
        size = len(encoded)
        if size > limit:
            raise ValueError(f"{number.name} has {size} bytes, more than {limit}")
        return _HEADER(plain_number, size) + encoded + _PADDING[size & 3]

    plain_number = int(number)
    attribute: Attribute[str] = Attribute(number, decode, lambda value, _: value.encode())
    attribute.pack = pack_text
    attribute.text = not lenient
    return attribute


def _opaque(number: AttributeType, low: int = 0, high: int = 0xFFFF) -> Attribute[bytes]:
    def check(value: bytes) -> str:
        return "" if low <= len(value) <= high else f"{number.name} has {low}..{high} bytes, not {len(value)}"

    def decode(value: bytes, _: bytes) -> bytes:
        if problem := check(value):
            raise DecodeError(problem)
        return value

    def encode(value: bytes, _: bytes) -> bytes:
        if problem := check(value):
            raise ValueError(problem)
        return value

    def pack_opaque(value: bytes, _: bytes) -> bytes:
        size = len(value)
        if not low <= size <= high:
            raise ValueError(check(value))
        return _HEADER(plain_number, size) + value + _PADDING[size & 3]

    plain_number = int(number)
    attribute: Attribute[bytes] = Attribute(number, decode, encode)
    attribute.pack = pack_opaque
    return attribute


def _leading(number: AttributeType, size: int, *, shorter: bool = False) -> Attribute[int]:
    """Return a number of `size` bytes at the start of four. Some senders omit the unused rest (`shorter`)."""
    sizes = (4, size) if shorter else (4,)
    return Attribute(
        number,
        lambda value, _: int.from_bytes(_sized(value, *sizes)[:size], "big"),
        lambda value, _: value.to_bytes(size, "big").ljust(4, b"\0"),
    )


_FAMILY_VERSIONS: Final = {1: IPV4, 2: IPV6}
_FAMILY_NUMBERS: Final = {IPV4: b"\x01", IPV6: b"\x02"}


def _family(number: AttributeType) -> Attribute[int]:
    """Return an address family attribute: 4, 6, or 0 for others, which a server answers with 440, not with 400."""
    return Attribute(
        number,
        lambda value, _: _FAMILY_VERSIONS.get(_sized(value, 4)[0], 0),
        lambda value, _: _family_number(value) + b"\0\0\0",
    )


def _family_number(family: int) -> bytes:
    if family not in _FAMILY_NUMBERS:
        raise ValueError(f"an address family is 4 or 6, not {family!r}")
    return _FAMILY_NUMBERS[family]


@lru_cache(maxsize=1024)
def _host_of(packed: bytes) -> str:
    """Return the text of a host. Hosts repeat, so their texts are shared."""
    return Address.from_packed(packed, 0).host


def _decode_address(value: bytes, _: bytes) -> Address:
    if len(value) < 8 or len(value) != {1: 8, 2: 20}.get(value[1]):
        raise DecodeError(f"{value[:20].hex()} is not an address of family 1 or 2")
    return Address(_host_of(value[4:]), value[2] << 8 | value[3])


def _encode_address(value: Address, _: bytes) -> bytes:
    packed = value.packed
    return (b"\0\x01" if len(packed) == 4 else b"\0\x02") + value.port.to_bytes(2, "big") + packed


def _masked(value: bytes, mask: bytes) -> bytes:
    """Return an address value with port and host XORed by header bytes 4 to 20 (RFC 8489, section 14.2)."""
    size = len(value) - 4
    host = int.from_bytes(value[4:], "big") ^ int.from_bytes(mask[:size], "big")
    return bytes((0, value[1], value[2] ^ mask[0], value[3] ^ mask[1])) + host.to_bytes(size, "big")


def _decode_xor_address(value: bytes, mask: bytes) -> Address:
    if len(value) not in (8, 20):
        raise DecodeError(f"{value[:20].hex()} is not an address of family 1 or 2")
    return _decode_address(_masked(value, mask), mask)


def _encode_xor_address(value: Address, mask: bytes) -> bytes:
    host, port, _ = value
    packed = pack_host(host)
    if len(packed) == 4:
        return _XOR4(1, port ^ (mask[0] << 8 | mask[1]), _WORD(packed)[0] ^ _WORD(mask)[0])
    return _masked(_encode_address(value, mask), mask)


def _address(number: AttributeType) -> Attribute[Address]:
    return Attribute(number, _decode_address, _encode_address)


def _xor_address(number: AttributeType) -> Attribute[Address]:
    return Attribute(number, _decode_xor_address, _encode_xor_address)


def _decode_code(value: bytes) -> tuple[int, str]:
    """Return the error code and the reason phrase, whose encoding may be wrong."""
    if not 4 <= len(value) <= 4 + _MAX_TEXT:
        raise DecodeError(f"an error code has 4..{4 + _MAX_TEXT} bytes, not {len(value)}")
    hundreds, rest = value[2] & 7, value[3]
    if not 3 <= hundreds <= 6 or rest > 99:
        raise DecodeError(f"{hundreds * 100 + rest} is not an error code")
    return hundreds * 100 + rest, value[4:].decode("utf-8", "replace")


@lru_cache(maxsize=256)
def _encode_code(code: int, reason: str) -> bytes:
    encoded = reason.encode()
    if not 300 <= code <= 699 or len(encoded) > _MAX_TEXT:
        raise ValueError(f"an error code is within 300..699 with a reason of at most {_MAX_TEXT} bytes, not {code}")
    return bytes((code // 100, code % 100)) + encoded


def _decode_address_error(value: bytes, _: bytes) -> AddressError:
    code, reason = _decode_code(value)
    return AddressError(_FAMILY_VERSIONS.get(value[0], 0), code, reason)


def _encode_address_error(value: AddressError, _: bytes) -> bytes:
    return _family_number(value.family) + b"\0" + _encode_code(value.code, value.reason)


def _decode_unknown_attributes(value: bytes, _: bytes) -> tuple[int, ...]:
    if len(value) & 1:
        raise DecodeError("UNKNOWN-ATTRIBUTES is a list of 16-bit numbers")
    return struct.unpack(f"!{len(value) // 2}H", value)


def _decode_algorithms(value: bytes, _: bytes) -> tuple[PasswordAlgorithm, ...]:
    algorithms = []
    position = 0
    while position < len(value):
        if position + 4 > len(value):
            raise DecodeError("PASSWORD-ALGORITHMS ends within an entry")
        number, size = struct.unpack_from("!HH", value, position)
        position += 4
        if position + size > len(value):
            raise DecodeError("PASSWORD-ALGORITHMS ends within an entry's parameters")
        algorithms.append(PasswordAlgorithm(number, value[position : position + size]))
        position += size + 3 & ~3
    return tuple(algorithms)


@lru_cache(maxsize=64)
def _pack_algorithms(value: tuple[PasswordAlgorithm, ...]) -> bytes:
    """Encode algorithms. A server offers the same ones to all clients, so the result is cached."""
    return b"".join(
        _HEADER(number, len(parameters)) + parameters + _PADDING[len(parameters) & 3] for number, parameters in value
    )


def _encode_algorithms(value: tuple[PasswordAlgorithm, ...], _: bytes) -> bytes:
    return _pack_algorithms(value)


def _decode_algorithm(value: bytes, mask: bytes) -> PasswordAlgorithm:
    algorithms = _decode_algorithms(value, mask)
    if len(algorithms) != 1:
        raise DecodeError(f"PASSWORD-ALGORITHM holds one algorithm, not {len(algorithms)}")
    return algorithms[0]


def _decode_change_request(value: bytes, _: bytes) -> ChangeRequest:
    flags = _sized(value, 4)[3]
    return ChangeRequest(bool(flags & 4), bool(flags & 2))


def _decode_icmp(value: bytes, _: bytes) -> IcmpValue:
    joined = int.from_bytes(_sized(value, 8)[2:4], "big")
    return IcmpValue(joined >> 9, joined & 0x1FF, value[4:])  # 7 bits of type, 9 of code


def _encode_icmp(value: IcmpValue, _: bytes) -> bytes:
    if not 0 <= value.type <= 127 or not 0 <= value.code <= 511 or len(value.data) != 4:
        raise ValueError(f"{value} does not fit the ICMP attribute: 7 bits, 9 bits and 4 bytes")
    return bytes(2) + (value.type << 9 | value.code).to_bytes(2, "big") + value.data


# --------------------------------------------------------------------------------------------------------- attributes

_A = AttributeType

# RFC 8489, and 3489 for old peers
MAPPED_ADDRESS: Final = _address(_A.MAPPED_ADDRESS)
SOURCE_ADDRESS: Final = _address(_A.SOURCE_ADDRESS)
CHANGED_ADDRESS: Final = _address(_A.CHANGED_ADDRESS)
XOR_MAPPED_ADDRESS: Final = _xor_address(_A.XOR_MAPPED_ADDRESS)
USERNAME: Final = _text(_A.USERNAME, 513)
USERHASH: Final = _opaque(_A.USERHASH, 32, 32)
REALM: Final = _text(_A.REALM)
NONCE: Final = _opaque(_A.NONCE, 0, _MAX_TEXT)
SOFTWARE: Final = _text(_A.SOFTWARE, lenient=True)
ERROR_CODE: Final[Attribute[StunError]] = Attribute(
    _A.ERROR_CODE,
    lambda value, _: StunError(*_decode_code(value)),
    lambda value, _: b"\0\0" + _encode_code(*value),
)
UNKNOWN_ATTRIBUTES: Final[Attribute[tuple[int, ...]]] = Attribute(
    _A.UNKNOWN_ATTRIBUTES, _decode_unknown_attributes, lambda value, _: struct.pack(f"!{len(value)}H", *value)
)
PASSWORD_ALGORITHM: Final[Attribute[PasswordAlgorithm]] = Attribute(
    _A.PASSWORD_ALGORITHM, _decode_algorithm, lambda value, mask: _encode_algorithms((value,), mask)
)
PASSWORD_ALGORITHMS: Final[Attribute[tuple[PasswordAlgorithm, ...]]] = Attribute(
    _A.PASSWORD_ALGORITHMS, _decode_algorithms, _encode_algorithms
)
ALTERNATE_SERVER: Final[Attribute[tuple[Address, ...]]] = Attribute(
    _A.ALTERNATE_SERVER, _decode_address, _encode_address, repeats=True
)
ALTERNATE_DOMAIN: Final = _text(_A.ALTERNATE_DOMAIN, 255)
ORIGIN: Final = _text(_A.ORIGIN)

# ICE
PRIORITY: Final = _integer(_A.PRIORITY)
USE_CANDIDATE: Final = _flag(_A.USE_CANDIDATE)
ICE_CONTROLLED: Final = _integer(_A.ICE_CONTROLLED, "Q")
ICE_CONTROLLING: Final = _integer(_A.ICE_CONTROLLING, "Q")
NOMINATION: Final = _integer(_A.NOMINATION)
ICE_CLOSED: Final = _text(_A.ICE_CLOSED, 513)
"""The two ufrags of the generation that ends, as in USERNAME."""

# TURN
CHANNEL_NUMBER: Final = _leading(_A.CHANNEL_NUMBER, 2)
LIFETIME: Final = _integer(_A.LIFETIME)
"""Seconds."""
XOR_PEER_ADDRESS: Final[Attribute[tuple[Address, ...]]] = Attribute(
    _A.XOR_PEER_ADDRESS, _decode_xor_address, _encode_xor_address, repeats=True
)
XOR_RELAYED_ADDRESS: Final[Attribute[tuple[Address, ...]]] = Attribute(
    _A.XOR_RELAYED_ADDRESS, _decode_xor_address, _encode_xor_address, repeats=True
)
DATA: Final = _opaque(_A.DATA)
REQUESTED_ADDRESS_FAMILY: Final = _family(_A.REQUESTED_ADDRESS_FAMILY)
ADDITIONAL_ADDRESS_FAMILY: Final = _family(_A.ADDITIONAL_ADDRESS_FAMILY)
EVEN_PORT: Final[Attribute[bool]] = Attribute(
    _A.EVEN_PORT, lambda value, _: _sized(value, 1)[0] >= 0x80, lambda value, _: b"\x80" if value else b"\0"
)
"""Whether to reserve the next higher port, too."""
REQUESTED_TRANSPORT: Final = _leading(_A.REQUESTED_TRANSPORT, 1)
"""The protocol number: 17 for UDP, 6 for TCP."""
DONT_FRAGMENT: Final = _flag(_A.DONT_FRAGMENT)
RESERVATION_TOKEN: Final = _opaque(_A.RESERVATION_TOKEN, 8, 8)
ADDRESS_ERROR_CODE: Final[Attribute[AddressError]] = Attribute(
    _A.ADDRESS_ERROR_CODE, _decode_address_error, _encode_address_error
)
SSODA_ADDITIONAL_ADDRESS_FAMILY: Final = _family(_A.SSODA_ADDITIONAL_ADDRESS_FAMILY)
SSODA_ADDRESS_ERROR_CODE: Final[Attribute[AddressError]] = Attribute(
    _A.SSODA_ADDRESS_ERROR_CODE, _decode_address_error, _encode_address_error
)
ICMP: Final[Attribute[IcmpValue]] = Attribute(_A.ICMP, _decode_icmp, _encode_icmp)
CONNECTION_ID: Final = _integer(_A.CONNECTION_ID)
ACCESS_TOKEN: Final = _opaque(_A.ACCESS_TOKEN)
THIRD_PARTY_AUTHORIZATION: Final = _text(_A.THIRD_PARTY_AUTHORIZATION)
MOBILITY_TICKET: Final = _opaque(_A.MOBILITY_TICKET)

# behavior discovery, transmit counter
CHANGE_REQUEST: Final[Attribute[ChangeRequest]] = Attribute(
    _A.CHANGE_REQUEST, _decode_change_request, lambda value, _: bytes((0, 0, 0, value.address << 2 | value.port << 1))
)
PADDING: Final = _opaque(_A.PADDING)
RESPONSE_PORT: Final = _leading(_A.RESPONSE_PORT, 2, shorter=True)
CACHE_TIMEOUT: Final = _integer(_A.CACHE_TIMEOUT)
"""Seconds."""
RESPONSE_ORIGIN: Final = _address(_A.RESPONSE_ORIGIN)
OTHER_ADDRESS: Final = _address(_A.OTHER_ADDRESS)
TRANSACTION_TRANSMIT_COUNTER: Final[Attribute[TransmitCounter]] = Attribute(
    _A.TRANSACTION_TRANSMIT_COUNTER,
    lambda value, _: TransmitCounter(*_sized(value, 4)[2:]),
    lambda value, _: bytes((0, 0, value.request, value.response)),
)

ATTRIBUTES: Final[dict[int, Attribute[Any]]] = {
    value.number: value for value in tuple(vars().values()) if isinstance(value, Attribute)
}
"""All attributes by number."""
