"""The RFCs' own test vectors, read, verified and built again byte for byte."""

import pytest

from polynya.core.addresses import Address
from polynya.stun.attributes import (
    ICE_CONTROLLED,
    NONCE,
    PASSWORD_ALGORITHM,
    PRIORITY,
    REALM,
    SOFTWARE,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    PasswordAlgorithm,
)
from polynya.stun.integrity import IntegrityKey, userhash
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method, PasswordAlgorithmNumber
from tests.vectors import rfc5769, rfc8489

SHORT_TERM = IntegrityKey.short_term(rfc5769.PASSWORD)


def test_the_sample_request_of_rfc_5769_is_understood() -> None:
    message = decode(rfc5769.REQUEST)
    assert (message.method, message.cls) == (Method.BINDING, Class.REQUEST)
    assert message.transaction_id == rfc5769.TRANSACTION_ID
    assert message.attributes == {
        SOFTWARE: rfc5769.SOFTWARE,
        PRIORITY: rfc5769.PRIORITY,
        ICE_CONTROLLED: rfc5769.TIE_BREAKER,
        USERNAME: rfc5769.USERNAME,
    }
    assert message.has_fingerprint
    assert message.verify(SHORT_TERM)
    assert not message.verify(IntegrityKey.short_term("another"))


@pytest.mark.parametrize(
    ("data", "mapped"),
    [(rfc5769.RESPONSE_IPV4, rfc5769.MAPPED_IPV4), (rfc5769.RESPONSE_IPV6, rfc5769.MAPPED_IPV6)],
    ids=["IPv4", "IPv6"],
)
def test_the_sample_responses_of_rfc_5769_are_understood(data: bytes, mapped: tuple[str, int]) -> None:
    message = decode(data)
    assert (message.method, message.cls) == (Method.BINDING, Class.SUCCESS)
    assert message[XOR_MAPPED_ADDRESS] == Address(*mapped)
    assert message[SOFTWARE] == rfc5769.RESPONSE_SOFTWARE
    assert message.verify(SHORT_TERM)


def test_the_long_term_request_of_rfc_5769_is_built_byte_for_byte() -> None:
    key = IntegrityKey.long_term(
        rfc5769.LONG_TERM_USERNAME, rfc5769.LONG_TERM_REALM, rfc5769.LONG_TERM_PASSWORD
    )  # fmt: skip
    assert decode(rfc5769.LONG_TERM_REQUEST).verify(key)
    request = Message.request(
        Method.BINDING,
        rfc5769.LONG_TERM_TRANSACTION_ID,
        {
            USERNAME: rfc5769.LONG_TERM_USERNAME,
            NONCE: rfc5769.LONG_TERM_NONCE,
            REALM: rfc5769.LONG_TERM_REALM,
        },
    )
    assert request.encode(integrity=key) == rfc5769.LONG_TERM_REQUEST


@pytest.mark.parametrize("data", [rfc5769.REQUEST, rfc5769.RESPONSE_IPV4, rfc5769.RESPONSE_IPV6])
def test_what_is_built_again_differs_in_padding_only(data: bytes) -> None:
    """RFC 5769 pads with spaces; padding may hold anything, and ours is zero."""
    message = decode(data)
    again = Message(message.method, message.cls, message.transaction_id, message.attributes)
    built = again.encode(integrity=SHORT_TERM, fingerprint=True)
    assert decode(built).attributes == message.attributes
    assert len(built) == len(data)
    assert built[:20] == data[:20]


def test_the_request_of_rfc_8489_is_built_byte_for_byte() -> None:
    """Appendix B.1 with erratum 6268: USERHASH, PASSWORD-ALGORITHM and MESSAGE-INTEGRITY-SHA256."""
    key = IntegrityKey.long_term(rfc8489.USERNAME, rfc8489.REALM, rfc8489.PASSWORD, PasswordAlgorithmNumber.SHA256)
    message = decode(rfc8489.REQUEST)
    assert message.verify(key)
    assert userhash(rfc8489.USERNAME, rfc8489.REALM) == rfc8489.USERHASH
    attributes = {
        USERHASH: rfc8489.USERHASH,
        NONCE: rfc8489.NONCE,
        REALM: rfc8489.REALM,
        PASSWORD_ALGORITHM: PasswordAlgorithm(PasswordAlgorithmNumber.SHA256),
    }
    assert message.attributes == attributes
    assert Message.request(Method.BINDING, rfc8489.TRANSACTION_ID, attributes).encode(sha256=key) == rfc8489.REQUEST
