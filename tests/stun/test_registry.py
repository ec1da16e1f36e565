"""The numbers, held against the registries' lists (IANA, STUN parameters) and against facts.md's."""

import pytest

from polynya.stun import attributes
from polynya.stun.registry import (
    COMPREHENSION_OPTIONAL,
    REASONS,
    AttributeType,
    Class,
    ErrorCode,
    Method,
    message_type,
    split_message_type,
)

# Copied from the registry a second time, so that a slip in the code is not repeated here.
ATTRIBUTES = """
    0001 MAPPED-ADDRESS 0003 CHANGE-REQUEST 0004 SOURCE-ADDRESS 0005 CHANGED-ADDRESS 0006 USERNAME
    0008 MESSAGE-INTEGRITY 0009 ERROR-CODE 000A UNKNOWN-ATTRIBUTES 000C CHANNEL-NUMBER 000D LIFETIME
    0012 XOR-PEER-ADDRESS 0013 DATA 0014 REALM 0015 NONCE 0016 XOR-RELAYED-ADDRESS 0017 REQUESTED-ADDRESS-FAMILY
    0018 EVEN-PORT 0019 REQUESTED-TRANSPORT 001A DONT-FRAGMENT 001B ACCESS-TOKEN 001C MESSAGE-INTEGRITY-SHA256
    001D PASSWORD-ALGORITHM 001E USERHASH 0020 XOR-MAPPED-ADDRESS 0022 RESERVATION-TOKEN 0024 PRIORITY
    0025 USE-CANDIDATE 0026 PADDING 0027 RESPONSE-PORT 002A CONNECTION-ID 8000 ADDITIONAL-ADDRESS-FAMILY
    8001 ADDRESS-ERROR-CODE 8002 PASSWORD-ALGORITHMS 8003 ALTERNATE-DOMAIN 8004 ICMP 8022 SOFTWARE
    8023 ALTERNATE-SERVER 8025 TRANSACTION-TRANSMIT-COUNTER 8027 CACHE-TIMEOUT 8028 FINGERPRINT
    8029 ICE-CONTROLLED 802A ICE-CONTROLLING 802B RESPONSE-ORIGIN 802C OTHER-ADDRESS
    802E THIRD-PARTY-AUTHORIZATION 802F ORIGIN 8030 MOBILITY-TICKET 8032 SSODA-ADDITIONAL-ADDRESS-FAMILY
    8033 SSODA-ADDRESS-ERROR-CODE C001 NOMINATION F1CE ICE-CLOSED
"""
METHODS = """
    1 BINDING 3 ALLOCATE 4 REFRESH 6 SEND 7 DATA 8 CREATE_PERMISSION 9 CHANNEL_BIND A CONNECT B CONNECTION_BIND
    C CONNECTION_ATTEMPT
"""
ERRORS = {
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
MADE_BY_THE_CODEC = {"MESSAGE-INTEGRITY", "MESSAGE-INTEGRITY-SHA256", "FINGERPRINT"}


def pairs(listing: str) -> dict[int, str]:
    words = listing.split()
    return {int(number, 16): name for number, name in zip(words[::2], words[1::2], strict=True)}


def test_attributes_are_the_registrys() -> None:
    listed = pairs(ATTRIBUTES)
    assert {int(number): number.name.replace("_", "-") for number in AttributeType} == listed
    typed = {number: attribute.name for number, attribute in attributes.ATTRIBUTES.items()}
    assert typed == {number: name for number, name in listed.items() if name not in MADE_BY_THE_CODEC}


def test_methods_and_errors_are_the_registrys() -> None:
    assert {int(method): method.name for method in Method} == pairs(METHODS)
    assert {int(code): code.reason for code in ErrorCode} == ERRORS == REASONS


@pytest.mark.parametrize(
    ("method", "cls", "number"),
    [
        (Method.BINDING, Class.REQUEST, 0x0001),
        (Method.BINDING, Class.INDICATION, 0x0011),
        (Method.BINDING, Class.SUCCESS, 0x0101),
        (Method.BINDING, Class.ERROR, 0x0111),
        (Method.ALLOCATE, Class.ERROR, 0x0113),
        (Method.SEND, Class.INDICATION, 0x0016),
        (0xFFF, Class.REQUEST, 0x3EEF),
        (0xFFF, Class.ERROR, 0x3FFF),
        (0x080, Class.SUCCESS, 0x0300),
    ],
)
def test_message_types_interleave_method_and_class(method: int, cls: Class, number: int) -> None:
    """RFC 8489, section 5, figure 3."""
    assert message_type(method, cls) == number
    assert split_message_type(number) == (method, cls)


def test_every_message_type_is_one_method_and_one_class() -> None:
    for number in range(0x4000):
        assert message_type(*split_message_type(number)) == number


def test_comprehension_follows_from_the_number() -> None:
    assert AttributeType.USE_CANDIDATE < COMPREHENSION_OPTIONAL <= AttributeType.SOFTWARE
