"""Numbers of STUN and TURN, each defined once (RFC 8489, 8656, 8445, 5780, 6062, 7635, 7982, 8016).

Attribute numbers below 0x8000 are comprehension-required: a request that holds an unknown one is answered with 420.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

MAGIC_COOKIE: Final = 0x2112A442
MAGIC_COOKIE_BYTES: Final = MAGIC_COOKIE.to_bytes(4, "big")
HEADER_LENGTH: Final = 20
TRANSACTION_ID_LENGTH: Final = 12
FINGERPRINT_XOR: Final = 0x5354554E

DEFAULT_PORT: Final = 3478
"""STUN and TURN over UDP and TCP."""
DEFAULT_TLS_PORT: Final = 5349
"""STUN and TURN over TLS and DTLS."""


class Method(IntEnum):
    """Methods (RFC 8489, section 18.2; RFC 8656, section 18.1; RFC 6062, section 6.1)."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009
    CONNECT = 0x00A
    CONNECTION_BIND = 0x00B
    CONNECTION_ATTEMPT = 0x00C


class Class(IntEnum):
    """The two class bits (RFC 8489, section 5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class ErrorCode(IntEnum):
    """Error codes; `reason` is the default phrase."""

    TRY_ALTERNATE = 300
    BAD_REQUEST = 400
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    MOBILITY_FORBIDDEN = 405
    UNKNOWN_ATTRIBUTE = 420
    ALLOCATION_MISMATCH = 437
    STALE_NONCE = 438
    ADDRESS_FAMILY_NOT_SUPPORTED = 440
    WRONG_CREDENTIALS = 441
    UNSUPPORTED_TRANSPORT_PROTOCOL = 442
    PEER_ADDRESS_FAMILY_MISMATCH = 443
    CONNECTION_ALREADY_EXISTS = 446
    CONNECTION_TIMEOUT_OR_FAILURE = 447
    ALLOCATION_QUOTA_REACHED = 486
    ROLE_CONFLICT = 487
    SERVER_ERROR = 500
    INSUFFICIENT_CAPACITY = 508

    @property
    def reason(self) -> str:
        return REASONS[self]


REASONS: Final[Mapping[int, str]] = {
    300: "Try Alternate",
    400: "Bad Request",
    401: "Unauthenticated",
    403: "Forbidden",
    405: "Mobility Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    446: "Connection Already Exists",
    447: "Connection Timeout or Failure",
    486: "Allocation Quota Reached",
    487: "Role Conflict",
    500: "Server Error",
    508: "Insufficient Capacity",
}


class AttributeType(IntEnum):
    """Attribute numbers. The name is the RFC's with underscores for hyphens."""

    MAPPED_ADDRESS = 0x0001
    CHANGE_REQUEST = 0x0003
    SOURCE_ADDRESS = 0x0004  # RFC 3489
    CHANGED_ADDRESS = 0x0005  # RFC 3489
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    REALM = 0x0014
    NONCE = 0x0015
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_ADDRESS_FAMILY = 0x0017
    EVEN_PORT = 0x0018
    REQUESTED_TRANSPORT = 0x0019
    DONT_FRAGMENT = 0x001A
    ACCESS_TOKEN = 0x001B
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    RESERVATION_TOKEN = 0x0022
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    PADDING = 0x0026
    RESPONSE_PORT = 0x0027
    CONNECTION_ID = 0x002A
    ADDITIONAL_ADDRESS_FAMILY = 0x8000
    ADDRESS_ERROR_CODE = 0x8001
    PASSWORD_ALGORITHMS = 0x8002
    ALTERNATE_DOMAIN = 0x8003
    ICMP = 0x8004
    SOFTWARE = 0x8022
    ALTERNATE_SERVER = 0x8023
    TRANSACTION_TRANSMIT_COUNTER = 0x8025
    CACHE_TIMEOUT = 0x8027
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A
    RESPONSE_ORIGIN = 0x802B
    OTHER_ADDRESS = 0x802C
    THIRD_PARTY_AUTHORIZATION = 0x802E
    ORIGIN = 0x802F  # draft-johnston-tram-stun-origin
    MOBILITY_TICKET = 0x8030
    SSODA_ADDITIONAL_ADDRESS_FAMILY = 0x8032  # draft-martinsen-tram-ssoda: how coturn's releases know 0x8000
    SSODA_ADDRESS_ERROR_CODE = 0x8033  # the same draft's number of 0x8001
    ICE_CLOSED = 0xF1CE  # ours, unassigned: the sender has closed its agent (docs/deviations.md)
    NOMINATION = 0xC001  # libwebrtc's; registered for something else, so only after both sides signaled `renomination`


COMPREHENSION_OPTIONAL: Final = 0x8000
"""Attribute types from here on are ignored by receivers that do not know them."""


class PasswordAlgorithmNumber(IntEnum):
    """Algorithms that derive a long-term key from user name, realm and password (RFC 8489, section 18.5)."""

    MD5 = 0x0001
    SHA256 = 0x0002


def message_type(method: int, cls: int) -> int:
    """Return the first 16 bits of a message: the class bits between those of the method (RFC 8489, section 5)."""
    return (
        (method & 0xF80) << 2
        | (method & 0x070) << 1
        | (method & 0x00F)
        | (cls & 2) << 7
        | (cls & 1) << 4
    )  # fmt: skip


def split_message_type(number: int) -> tuple[Method | int, Class]:
    """Return method and class of a message type; an unknown method is a plain number."""
    known = MESSAGE_TYPES.get(number)
    if known is not None:
        return known
    method = (number & 0x3E00) >> 2 | (number & 0x00E0) >> 1 | (number & 0x000F)
    return method, Class((number & 0x0100) >> 7 | (number & 0x0010) >> 4)


MESSAGE_TYPES: Final[Mapping[int, tuple[Method, Class]]] = {
    message_type(method, cls): (method, cls) for method in Method for cls in Class
}
"""All message types of known methods, so that decoding needs one look-up."""
