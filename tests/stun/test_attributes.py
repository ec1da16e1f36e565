"""Each attribute's value, both ways (RFC 8489, section 14; RFC 8656, section 18)."""

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.stun import attributes as a
from polynya.stun.attributes import ATTRIBUTES, Attribute
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from tests.stun.mutations import VALUES

ID = bytes(range(12))
MASK = b"\x21\x12\xa4\x42" + ID

addresses = st.builds(
    lambda address, port: Address.of(str(address), port), st.ip_addresses(), st.integers(0, 65535)
)  # fmt: skip
texts = st.text(max_size=60)
u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
codes = st.integers(300, 699)
families = st.sampled_from((4, 6))
algorithms = st.builds(a.PasswordAlgorithm, u16, st.binary(max_size=9))

STRATEGIES: dict[Attribute[Any], st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        (
            a.MAPPED_ADDRESS,
            a.SOURCE_ADDRESS,
            a.CHANGED_ADDRESS,
            a.XOR_MAPPED_ADDRESS,
            a.RESPONSE_ORIGIN,
            a.OTHER_ADDRESS,
        ),
        addresses,
    ),
    **dict.fromkeys(
        (a.ALTERNATE_SERVER, a.XOR_PEER_ADDRESS, a.XOR_RELAYED_ADDRESS),
        st.lists(addresses, min_size=1, max_size=4).map(tuple),
    ),
    **dict.fromkeys(
        (a.USERNAME, a.REALM, a.SOFTWARE, a.ALTERNATE_DOMAIN, a.ORIGIN, a.THIRD_PARTY_AUTHORIZATION, a.ICE_CLOSED),
        texts,
    ),
    **dict.fromkeys((a.NONCE, a.DATA, a.ACCESS_TOKEN, a.MOBILITY_TICKET, a.PADDING), st.binary(max_size=70)),
    **dict.fromkeys((a.PRIORITY, a.LIFETIME, a.CONNECTION_ID, a.CACHE_TIMEOUT, a.NOMINATION), u32),
    **dict.fromkeys((a.ICE_CONTROLLED, a.ICE_CONTROLLING), u64),
    **dict.fromkeys((a.USE_CANDIDATE, a.DONT_FRAGMENT), st.just(True)),
    **dict.fromkeys((a.CHANNEL_NUMBER, a.RESPONSE_PORT), u16),
    **dict.fromkeys(
        (a.REQUESTED_ADDRESS_FAMILY, a.ADDITIONAL_ADDRESS_FAMILY, a.SSODA_ADDITIONAL_ADDRESS_FAMILY), families
    ),
    a.USERHASH: st.binary(min_size=32, max_size=32),
    a.RESERVATION_TOKEN: st.binary(min_size=8, max_size=8),
    a.REQUESTED_TRANSPORT: u8,
    a.EVEN_PORT: st.booleans(),
    a.ERROR_CODE: st.builds(a.StunError, codes, texts),
    **dict.fromkeys(
        (a.ADDRESS_ERROR_CODE, a.SSODA_ADDRESS_ERROR_CODE), st.builds(a.AddressError, families, codes, texts)
    ),
    a.UNKNOWN_ATTRIBUTES: st.lists(u16, max_size=9).map(tuple),
    a.PASSWORD_ALGORITHM: algorithms,
    a.PASSWORD_ALGORITHMS: st.lists(algorithms, max_size=4).map(tuple),
    a.ICMP: st.builds(a.IcmpValue, st.integers(0, 127), st.integers(0, 511), st.binary(min_size=4, max_size=4)),
    a.CHANGE_REQUEST: st.builds(a.ChangeRequest, st.booleans(), st.booleans()),
    a.TRANSACTION_TRANSMIT_COUNTER: st.builds(a.TransmitCounter, u8, u8),
}


def test_every_attribute_is_tried() -> None:
    assert set(STRATEGIES) == set(ATTRIBUTES.values()) == set(VALUES)


@given(st.data())
def test_any_values_in_any_order_come_back(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(list(STRATEGIES)), unique=True, max_size=8))
    values = {attribute: data.draw(STRATEGIES[attribute], attribute.name) for attribute in chosen}
    encoded = Message.request(Method.ALLOCATE, ID, values).encode(fingerprint=True)
    assert len(encoded) % 4 == 0
    for _ in range(2):  # the second time by what was learned from the first
        message = decode(encoded)
        assert list(message.attributes.items()) == list(values.items())


@given(st.data())
def test_any_bytes_are_a_value_or_a_decode_error(data: st.DataObject) -> None:
    attribute = data.draw(st.sampled_from(list(STRATEGIES)))
    value = data.draw(st.binary(max_size=40))
    try:
        decoded = attribute.decode(value, MASK)
    except DecodeError:
        return
    assert decoded is not None


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (a.PRIORITY, "000001"),
        (a.PRIORITY, "0000000001"),
        (a.ICE_CONTROLLING, "00000001"),
        (a.USE_CANDIDATE, "00000000"),
        (a.CHANNEL_NUMBER, "4000"),
        (a.EVEN_PORT, ""),
        (a.RESERVATION_TOKEN, "00"),
        (a.REQUESTED_ADDRESS_FAMILY, "01"),
        (a.MAPPED_ADDRESS, "0001"),
        (a.MAPPED_ADDRESS, "0003000ac0000201"),
        (a.MAPPED_ADDRESS, "0002000ac0000201"),
        (a.MAPPED_ADDRESS, "0001000ac000020100"),
        (a.XOR_MAPPED_ADDRESS, "0001000ac00002"),
        (a.XOR_MAPPED_ADDRESS, "0001000a" + 32 * "0"),
        (a.ERROR_CODE, "000004"),
        (a.ERROR_CODE, "00000200"),
        (a.ERROR_CODE, "00000700"),
        (a.ERROR_CODE, "00000464"),
        (a.UNKNOWN_ATTRIBUTES, "000100"),
        (a.PASSWORD_ALGORITHMS, "0002"),
        (a.PASSWORD_ALGORITHMS, "0002000561626364"),
        (a.PASSWORD_ALGORITHM, ""),
        (a.PASSWORD_ALGORITHM, "0002000000010000"),
        (a.USERNAME, 514 * "61"),
        (a.NONCE, 764 * "61"),
        (a.USERHASH, 31 * "61"),
        (a.ICMP, "00000304"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invalid_value_is_a_decode_error(attribute: Attribute[Any], value: str) -> None:
    with pytest.raises(DecodeError):
        attribute.decode(bytes.fromhex(value), MASK)


@pytest.mark.parametrize(
    ("attribute", "value", "encoded"),
    [
        (a.CHANNEL_NUMBER, 0x4001, "000c0004 40010000"),
        (a.LIFETIME, 600, "000d0004 00000258"),
        (a.REQUESTED_TRANSPORT, 17, "00190004 11000000"),
        (a.REQUESTED_ADDRESS_FAMILY, 6, "00170004 02000000"),
        (a.EVEN_PORT, True, "00180001 80000000"),
        (a.EVEN_PORT, False, "00180001 00000000"),
        (a.DONT_FRAGMENT, True, "001a0000"),
        (a.ERROR_CODE, a.StunError(487, "Role Conflict"), "00090011 00000457 526f6c6520436f6e666c696374 000000"),
        (a.UNKNOWN_ATTRIBUTES, (0x24, 0x7FFF, 1), "000a0006 00247fff 00010000"),
        (a.PASSWORD_ALGORITHMS, (a.PasswordAlgorithm(2), a.PasswordAlgorithm(1)), "80020008 00020000 00010000"),
        (a.PASSWORD_ALGORITHM, a.PasswordAlgorithm(2), "001d0004 00020000"),
        (a.CHANGE_REQUEST, a.ChangeRequest(address=True, port=True), "00030004 00000006"),
        (a.ADDRESS_ERROR_CODE, a.AddressError(6, 440), "80010004 02000428"),
        (a.ICMP, a.IcmpValue(3, 4, b"\0\0\5\xdc"), "80040008 00000604 000005dc"),
        (a.TRANSACTION_TRANSMIT_COUNTER, a.TransmitCounter(2, 1), "80250004 00000201"),
        (a.MAPPED_ADDRESS, Address("192.0.2.1", 32853), "00010008 00018055 c0000201"),
        (a.XOR_MAPPED_ADDRESS, Address("192.0.2.1", 32853), "00200008 0001a147 e112a643"),
        (
            a.XOR_PEER_ADDRESS,
            (Address("192.0.2.1", 32853), Address("192.0.2.1", 32853)),
            "00120008 0001a147 e112a643 00120008 0001a147 e112a643",
        ),
        (a.USERNAME, "\u2603", "00060003 e2988300"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values_are_laid_out_as_the_rfcs_say(attribute: Attribute[Any], value: object, encoded: str) -> None:
    assert attribute.pack(value, MASK).hex() == encoded.replace(" ", "")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (a.PRIORITY, -1),
        (a.PRIORITY, 2**32),
        (a.ICE_CONTROLLED, 2**64),
        (a.USE_CANDIDATE, False),
        (a.USERNAME, "x" * 514),
        (a.NONCE, bytes(764)),
        (a.USERHASH, bytes(31)),
        (a.RESERVATION_TOKEN, bytes(9)),
        (a.ERROR_CODE, a.StunError(299)),
        (a.ERROR_CODE, a.StunError(700)),
        (a.REQUESTED_ADDRESS_FAMILY, 5),
        (a.ADDRESS_ERROR_CODE, a.AddressError(0, 440)),
        (a.ICMP, a.IcmpValue(128, 0)),
        (a.ICMP, a.IcmpValue(3, 512)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_that_does_not_fit_is_the_callers_error(attribute: Attribute[Any], value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Message.request(Method.BINDING, ID, {attribute: value}).encode()


def test_an_unknown_family_decodes_so_that_440_can_answer() -> None:
    assert a.REQUESTED_ADDRESS_FAMILY.decode(b"\x03\0\0\0", MASK) == 0


def test_a_response_port_of_two_bytes_is_read_too() -> None:
    """Some clients leave the unused half out."""
    assert a.RESPONSE_PORT.decode(b"\x10\x92", MASK) == a.RESPONSE_PORT.decode(b"\x10\x92\0\0", MASK) == 4242


def test_texts_for_people_may_be_badly_encoded() -> None:
    assert a.SOFTWARE.decode(b"caf\xe9", MASK) == "caf\ufffd"
    assert a.ERROR_CODE.decode(b"\0\0\4\0caf\xe9", MASK) == a.StunError(400, "caf\ufffd")
    with pytest.raises(DecodeError, match="not UTF-8"):
        a.USERNAME.decode(b"caf\xe9", MASK)


def test_an_attribute_stays_itself_when_a_message_is_copied() -> None:
    assert copy.deepcopy(a.PRIORITY) is a.PRIORITY
    assert pickle.loads(pickle.dumps(a.XOR_PEER_ADDRESS)) is a.XOR_PEER_ADDRESS
