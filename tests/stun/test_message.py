"""RFC 8489, sections 5, 6.3 and 14: which messages are accepted, and what of them counts."""

import struct
from zlib import crc32

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.stun import layouts
from polynya.stun import message as message_module
from polynya.stun.attributes import (
    ALTERNATE_SERVER,
    DATA,
    ERROR_CODE,
    ICE_CONTROLLING,
    LIFETIME,
    MAPPED_ADDRESS,
    PRIORITY,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    StunError,
)
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import MAX_ATTRIBUTES, Message, _walk, decode, is_stun
from polynya.stun.registry import FINGERPRINT_XOR, Class, Method
from tests.stun.mutations import same
from tests.vectors import rfc5769

ID = bytes(range(12))
KEY = IntegrityKey.short_term("password")
OTHER = IntegrityKey.short_term("passwore")
CHECK = {USERNAME: "abcd:efgh", PRIORITY: 12, ICE_CONTROLLING: 34, USE_CANDIDATE: True}


def raw(body: str, kind: int = 1) -> bytes:
    """A message of attributes given in hex."""
    attributes = bytes.fromhex(body)
    return struct.pack("!HHI", kind, len(attributes), 0x2112A442) + ID + attributes


def with_fingerprint(data: bytes) -> bytes:
    data = data[:2] + (len(data) - 12).to_bytes(2, "big") + data[4:]
    return data + struct.pack("!II", 0x80280004, crc32(data) ^ FINGERPRINT_XOR)


# ------------------------------------------------------------------------------------------------- what is a message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        raw("")[:19],
        raw("") + b"\0",
        raw("") + bytes(4),
        b"\x40" + raw("")[1:],
        b"\x80" + raw("")[1:],
        raw("")[:4] + b"\x21\x12\xa4\x43" + ID,
        raw("00240004 0000")[:26],
        raw("0024"),
        raw("00240008 00000001"),
        raw("0024ffff 00000001"),
    ],
    ids=[
        "nothing",
        "a header cut short",
        "a byte too many",
        "an attribute's head too many",
        "channel bits",
        "QUIC bits",
        "another cookie",
        "a length that is not a multiple of four",
        "half an attribute's head",
        "a value that is cut short",
        "a value longer than any message",
    ],
)
def test_what_is_not_a_whole_message_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


def test_is_stun_looks_at_bits_cookie_and_length() -> None:
    check = Message.request(Method.BINDING, ID, CHECK).encode(integrity=KEY, fingerprint=True)
    assert is_stun(check)
    assert is_stun(raw(""))
    for position in (0, 2, 3, 4, 7):
        broken = bytearray(check)
        broken[position] ^= 0x80
        assert not is_stun(bytes(broken))
    assert not is_stun(check[:-1])
    assert not is_stun(b"\0" * 20)
    assert not is_stun(b"")


def test_a_method_that_is_not_known_is_a_plain_number() -> None:
    message = decode(Message(0xABC, Class.REQUEST, ID, {}).encode())
    assert (message.method, message.cls, type(message.method)) == (0xABC, Class.REQUEST, int)


def test_without_the_cookie_only_who_asks_for_it_reads_the_message() -> None:
    """RFC 3489: a transaction id of 16 bytes."""
    long_id = bytes(range(50, 66))
    data = Message.request(Method.BINDING, long_id, {SOFTWARE: "old"}).encode()
    with pytest.raises(DecodeError, match="cookie"):
        decode(data)
    message = decode(data, legacy=True)
    assert (message.legacy, message.transaction_id, message[SOFTWARE]) == (True, long_id, "old")
    assert Message.success(message, {MAPPED_ADDRESS: Address("192.0.2.1", 1)}).encode()[4:20] == long_id
    assert not decode(raw(""), legacy=True).legacy


@pytest.mark.parametrize("size", [0, 11, 13, 15, 17])
def test_a_transaction_id_of_another_size_is_the_callers_error(size: int) -> None:
    with pytest.raises(ValueError, match="transaction id"):
        Message.request(Method.BINDING, bytes(size))


def test_the_largest_message_is_built_and_read_and_no_larger_one() -> None:
    data = Message.indication(Method.SEND, ID, {DATA: bytes(MAX_ATTRIBUTES - 4)}).encode(
        integrity=KEY, sha256=KEY, fingerprint=True
    )
    assert decode(data).verify(KEY)
    with pytest.raises(ValueError, match="at most"):
        Message.indication(Method.SEND, ID, {DATA: bytes(MAX_ATTRIBUTES - 3)}).encode()


# -------------------------------------------------------------------------------------------------- which values count


def test_padding_may_hold_anything() -> None:
    assert decode(raw("00060003 616263ff"))[USERNAME] == "abc"


def test_of_a_repeated_attribute_the_first_counts() -> None:
    assert decode(raw("00240004 00000001 00240004 00000002")).attributes == {PRIORITY: 1}
    assert decode(raw("00240004 00000001 00240003 00000002")).attributes == {PRIORITY: 1}


def test_attributes_that_may_repeat_are_all_kept() -> None:
    address = "0008 0001a147 e112a643"
    expected = (Address("192.0.2.1", 32853),) * 2
    assert decode(raw(f"0012 {address} 0012 {address}"))[XOR_PEER_ADDRESS] == expected
    assert decode(raw(f"0012 {address}"))[XOR_PEER_ADDRESS] == expected[:1]
    assert decode(raw(f"0012 {address}"))[XOR_PEER_ADDRESS] == expected[:1]  # now by the learned layout
    plain = "8023 0008 00018055 c0000201"
    assert decode(raw(plain + plain))[ALTERNATE_SERVER] == expected


def test_unknown_attributes_are_listed_when_they_must_be_understood() -> None:
    message = decode(raw("7ff00000 00240004 00000001 fff00004 01020304 7ff10001 01000000"))
    assert message.unknown_required == (0x7FF0, 0x7FF1)
    assert message.attributes == {PRIORITY: 1}


def test_a_known_attribute_with_an_impossible_value_spoils_the_message() -> None:
    with pytest.raises(DecodeError, match="PRIORITY"):
        decode(raw("00240003 00000000"))
    with pytest.raises(DecodeError, match="USERNAME"):
        decode(raw("00060001 ff000000"))


def test_a_lenient_decoder_reads_the_rest_and_reports_the_error() -> None:
    """RFC 8656, sections 7.2 and 10.2: a malformed attribute is answered with 400, once it is known who asks."""
    bad = raw("0019000211000000 000d000400000258", 3)  # a REQUESTED-TRANSPORT of two bytes, and a LIFETIME
    data = bad[:2] + (16 + 36).to_bytes(2, "big") + bad[4:]
    data += bytes.fromhex("001c0020") + KEY.sha256(data)
    with pytest.raises(DecodeError, match="REQUESTED-TRANSPORT"):
        decode(data)
    for _ in range(3):  # it is not learned as a layout either
        message = decode(data, lenient=True)
        assert "REQUESTED-TRANSPORT" in message.malformed and message.verify(KEY)
        assert message.attributes == {LIFETIME: 600}
    assert decode(raw("000d000400000258", 3), lenient=True).malformed == ""


def test_an_optional_one_is_passed_over_as_if_it_were_unknown() -> None:
    """0xC001 is registered for something else than libwebrtc's NOMINATION."""
    assert decode(raw("c0010008 0102030405060708 80290004 00000000 00240004 00000001")).attributes == {PRIORITY: 1}
    good = raw("80230008 0001000a c0000201")
    assert ALTERNATE_SERVER in decode(good)
    assert ALTERNATE_SERVER not in decode(good.replace(b"\0\1\0\n", b"\0\7\0\n"))


def test_what_follows_message_integrity_is_ignored_but_for_its_successors() -> None:
    """RFC 8489, section 14.5."""
    signed = Message.request(Method.BINDING, ID, {PRIORITY: 1}).encode(integrity=KEY)
    more = signed + bytes.fromhex("00250000 7fff0000 00060004 61626364")
    message = decode(with_fingerprint(more))
    assert message.attributes == {PRIORITY: 1}
    assert message.unknown_required == ()
    assert message.has_fingerprint
    assert message.verify(KEY)


def test_what_follows_the_sha256_integrity_is_ignored_but_for_the_fingerprint() -> None:
    """RFC 8489, section 14.6: a MESSAGE-INTEGRITY there is ignored too."""
    signed = Message.request(Method.BINDING, ID, {PRIORITY: 1}).encode(sha256=KEY)
    message = decode(with_fingerprint(signed + bytes.fromhex("00080014") + bytes(20) + bytes.fromhex("00250000")))
    assert message.attributes == {PRIORITY: 1}
    assert (message.has_integrity, message.has_integrity_sha256) == (False, True)
    assert message.verify(KEY)


# ----------------------------------------------------------------------------------------- FINGERPRINT and integrity


def test_a_wrong_fingerprint_is_a_decode_error() -> None:
    data = Message.request(Method.BINDING, ID, CHECK).encode(fingerprint=True)
    assert decode(data).has_fingerprint
    for position in (1, 9, 25, len(data) - 1):
        broken = bytearray(data)
        broken[position] ^= 1
        with pytest.raises(DecodeError):
            decode(bytes(broken))


def test_a_fingerprint_is_last() -> None:
    with pytest.raises(DecodeError, match="last"):
        decode(with_fingerprint(raw(""))[:2] + b"\0\x0c" + with_fingerprint(raw(""))[4:] + bytes.fromhex("00250000"))
    with pytest.raises(DecodeError, match="last"):
        decode(raw("80280008 0000000000000000"))


@pytest.mark.parametrize("fingerprint", [False, True])
@pytest.mark.parametrize("how", [{"integrity": KEY}, {"sha256": KEY}, {"integrity": KEY, "sha256": KEY}])
def test_a_signature_holds_until_a_bit_changes(how: dict, fingerprint: bool) -> None:
    data = Message.request(Method.BINDING, ID, {USERNAME: "abcd:efgh"}).encode(**how, fingerprint=fingerprint)
    assert decode(data).verify(KEY)
    assert not decode(data).verify(OTHER)
    end = len(data) - (8 if fingerprint else 0)
    for position in range(8, end):
        broken = bytearray(data[:end])
        broken[position] ^= 1
        broken[2:4] = (end - 20).to_bytes(2, "big")
        try:
            message = decode(bytes(broken))
        except DecodeError:
            continue
        sha1_is_not_what_counts = "sha256" in how and position >= end - 36 - 24
        if not sha1_is_not_what_counts or position >= end - 32:
            assert not message.verify(KEY), position


def test_a_message_that_is_not_signed_is_not_verified() -> None:
    message = decode(raw(""))
    assert not message.has_integrity
    assert not message.verify(KEY)
    assert not message.verify_sha1(KEY)
    assert not Message.request(Method.BINDING, ID).verify(KEY)


@pytest.mark.parametrize("size", [16, 20, 24, 28, 32])
def test_a_truncated_sha256_integrity_is_verified_as_far_as_it_goes(size: int) -> None:
    """RFC 8489, section 14.6: 16 to 32 bytes, in steps of four; the length that is signed counts the truncated one."""
    head = raw("00240004 00000001")
    covered = head[:2] + (8 + 4 + size).to_bytes(2, "big") + head[4:]
    data = covered + struct.pack("!HH", 0x1C, size) + KEY.sha256(covered)[:size]
    assert decode(data).verify(KEY)
    assert not decode(data).verify(OTHER)


@pytest.mark.parametrize("size", [0, 4, 12, 36, 18])
def test_a_sha256_integrity_of_another_size_is_a_decode_error(size: int) -> None:
    with pytest.raises(DecodeError, match="SHA256"):
        decode(raw(f"001c{size:04x}" + "00" * (size + (-size & 3))))


def test_the_stronger_of_two_signatures_decides() -> None:
    """RFC 8489, section 9.1.3; `verify_sha1` is for whom SHA-1 was agreed with."""
    data = Message.request(Method.BINDING, ID).encode(integrity=KEY, sha256=OTHER)
    message = decode(data)
    assert message.verify(OTHER)
    assert not message.verify(KEY)
    assert message.verify_sha1(KEY)


# -------------------------------------------------------------------------------------------------------- what is built


def test_answers_carry_the_requests_id_and_method() -> None:
    request = Message.request(Method.ALLOCATE, ID)
    success = Message.success(request, {SOFTWARE: "x"})
    assert (success.method, success.cls, success.transaction_id) == (Method.ALLOCATE, Class.SUCCESS, ID)
    error = Message.error(request, 420, attributes={UNKNOWN_ATTRIBUTES: (1,)})
    assert error.cls is Class.ERROR
    assert error.attributes == {ERROR_CODE: StunError(420, "Unknown Attribute"), UNKNOWN_ATTRIBUTES: (1,)}
    assert Message.error(request, 420, "")[ERROR_CODE] == StunError(420, "")


def test_attributes_are_read_by_their_object() -> None:
    message = decode(rfc5769.REQUEST)
    assert USERNAME in message
    assert message.get(XOR_MAPPED_ADDRESS) is None
    with pytest.raises(KeyError):
        message[XOR_MAPPED_ADDRESS]
    assert repr(message).startswith("<BINDING REQUEST b7e7a701bc34d686fa87dfae SOFTWARE='STUN test client'")


def test_a_built_message_does_not_share_its_callers_dict() -> None:
    values = {PRIORITY: 1}
    message = Message.request(Method.BINDING, ID, values)
    values[PRIORITY] = 2
    assert message[PRIORITY] == 1


# ------------------------------------------------------------------------------------------------------------ layouts


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> layouts.Layouts:
    """A table of layouts that has learned nothing."""
    table = layouts.Layouts()
    monkeypatch.setattr(message_module, "_layouts", table)
    monkeypatch.setattr(message_module, "_layout_of", table.by_key.get)
    return table


def test_what_was_learned_reads_messages_as_the_long_way_does(fresh: layouts.Layouts) -> None:
    for number in range(3):
        check = Message.request(Method.BINDING, bytes((number,)) * 12, {**CHECK, PRIORITY: number})
        for data in (
            check.encode(integrity=KEY, fingerprint=True),
            Message.success(check, {XOR_MAPPED_ADDRESS: Address("2001:db8::1", number)}).encode(integrity=KEY),
        ):
            assert same(decode(data), _walk(data, legacy=False))
    assert len(fresh.by_key) == 2


def test_the_same_key_with_other_attributes_is_read_the_long_way(fresh: layouts.Layouts) -> None:
    one, other = raw("00240004 00000001 00250000"), raw("00240004 00000001 001a0000")
    assert list(decode(one).attributes) == [PRIORITY, USE_CANDIDATE]
    assert USE_CANDIDATE not in decode(other)
    assert len(fresh.by_key) == 1


def test_a_length_that_lies_is_refused_whatever_was_learned(fresh: layouts.Layouts) -> None:
    data = raw("00240004 00000001")
    decode(data)
    assert fresh.by_key
    for wrong in (data + bytes(4), data[:-4]):
        with pytest.raises(DecodeError):
            decode(wrong)


def test_a_text_that_is_not_utf_8_is_refused_whatever_was_learned(fresh: layouts.Layouts) -> None:
    decode(raw("00060004 61626364"))
    assert fresh.by_key
    with pytest.raises(DecodeError, match="UTF-8"):
        decode(raw("00060004 616263ff"))


def test_a_flood_of_odd_messages_changes_the_table_slowly_and_never_outgrows_it(fresh: layouts.Layouts) -> None:
    for number in range(layouts.CAPACITY):
        decode(raw(f"{0x9000 + number:04x}0000"))
    before = list(fresh.by_key)
    assert len(before) == layouts.CAPACITY
    for number in range(layouts.CAPACITY):
        decode(raw(f"{0xA000 + number:04x}0000"))
    replaced = layouts.CAPACITY // 16
    assert len(fresh.by_key) == layouts.CAPACITY
    assert list(fresh.by_key)[:-replaced] == before[replaced:]


def test_large_messages_and_data_are_not_learned(fresh: layouts.Layouts) -> None:
    decode(Message.indication(Method.SEND, ID, {DATA: b"abcd"}).encode())
    decode(Message.indication(Method.BINDING, ID, {SOFTWARE: "x" * 600}).encode())
    decode(raw(""))
    assert not fresh.by_key
