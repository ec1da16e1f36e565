"""IP packets as bytes: RFC 791, 8200, 768, 9293, 792, 4443 and the checksum of RFC 1071."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.machine import IcmpKind
from polynya.core.packets import (
    Fragment,
    IcmpMessage,
    IpPacket,
    Protocol,
    TcpFields,
    TcpFlags,
    checksum,
    decode,
    encode,
    length,
)

A4, B4 = Address("192.0.2.1", 5000), Address("203.0.113.9", 3478)
A6, B6 = Address("2001:db8::1", 5000), Address("2001:db8:1::9", 3478)
PAIRS = pytest.mark.parametrize(("source", "destination"), [(A4, B4), (A6, B6)], ids=["IPv4", "IPv6"])


def udp(source: Address, destination: Address, data: bytes = b"hello", **fields: object) -> IpPacket:
    return IpPacket(7, source, destination, Protocol.UDP, data, **fields)  # type: ignore[arg-type]


def test_the_checksum_matches_the_example_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"") == 0xFFFF
    assert checksum(b"\xff\xff") == 0
    assert checksum(b"\x01") == 0xFFFF - 0x0100


def test_a_udp_packet_has_the_bytes_that_were_computed_by_hand() -> None:
    packet = IpPacket(0, Address("127.0.0.1", 40000), Address("127.0.0.1", 9), Protocol.UDP, b"hi", dont_fragment=True)
    assert encode(packet).hex() == "4500001e0000400040113ccd7f0000017f0000019c400009000afd246869"


HEADERS = st.fixed_dictionaries({"ttl": st.integers(1, 255), "ecn": st.integers(0, 3), "dscp": st.integers(0, 63)})
PORTS = st.integers(0, 65535)


@PAIRS
@given(data=st.binary(max_size=1400), header=HEADERS, ports=st.tuples(PORTS, PORTS))
def test_udp_is_decoded_as_it_was_encoded(
    source: Address, destination: Address, data: bytes, header: dict[str, int], ports: tuple[int, int]
) -> None:
    packet = udp(source.with_port(ports[0]), destination.with_port(ports[1]), data, **header)
    wire = encode(packet)
    assert decode(wire, id=7) == packet
    assert len(wire) == length(packet)


@PAIRS
def test_tcp_is_decoded_as_it_was_encoded(source: Address, destination: Address) -> None:
    tcp = TcpFields(flags=TcpFlags.SYN | TcpFlags.ACK, sequence=0xFFFFFFFF, acknowledgment=17)
    packet = IpPacket(1, source, destination, Protocol.TCP, b"data", tcp=tcp)
    assert decode(encode(packet), id=1) == packet
    assert length(packet) == len(encode(packet))


@PAIRS
@pytest.mark.parametrize("reply", [False, True])
def test_echo_is_decoded_as_it_was_encoded(source: Address, destination: Address, reply: bool) -> None:
    icmp = IcmpMessage(identifier=77, sequence=3, reply=reply)
    packet = IpPacket(1, source.with_port(0), destination.with_port(0), Protocol.ICMP, b"ping", icmp=icmp)
    assert decode(encode(packet), id=1) == packet


@PAIRS
@pytest.mark.parametrize("kind", list(IcmpKind))
def test_an_icmp_error_contains_the_packet_that_caused_it(
    source: Address, destination: Address, kind: IcmpKind
) -> None:
    about = udp(source, destination)
    icmp = IcmpMessage(kind=kind, about=about, mtu=1280 if kind is IcmpKind.TOO_BIG else None)
    packet = IpPacket(7, destination.with_port(0), source.with_port(0), Protocol.ICMP, icmp=icmp)
    assert decode(encode(packet), id=7) == packet
    assert length(packet) == len(encode(packet))


@PAIRS
def test_an_icmp_error_is_limited_in_size(source: Address, destination: Address) -> None:
    icmp = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=udp(source, destination, bytes(1400)))
    packet = IpPacket(7, destination.with_port(0), source.with_port(0), Protocol.ICMP, icmp=icmp)
    wire = encode(packet)
    assert len(wire) == length(packet) == (576 if source.family == 4 else 1280)
    back = decode(wire)
    assert back.icmp is not None
    assert back.icmp.about is not None
    assert (back.icmp.about.source, back.icmp.about.destination) == (source, destination)


def test_an_icmp_error_with_eight_bytes_of_tcp_has_the_ports() -> None:
    about = IpPacket(7, A4, B4, Protocol.TCP, tcp=TcpFields(flags=TcpFlags.SYN, sequence=9))
    packet = IpPacket(7, B4, A4, Protocol.ICMP, icmp=IcmpMessage(kind=IcmpKind.HOST_UNREACHABLE, about=about))
    wire = encode(packet)[: 20 + 8 + 28]
    header = bytearray(wire)
    header[2:4] = len(wire).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = checksum(bytes(header[:20])).to_bytes(2, "big")
    back = decode(bytes(header), verify=False)
    assert back.icmp is not None
    assert back.icmp.about is not None
    assert (back.icmp.about.source, back.icmp.about.destination) == (A4, B4)


@PAIRS
def test_a_fragment_keeps_its_part_of_the_payload(source: Address, destination: Address) -> None:
    middle = Fragment(identification=0x1234, offset=1480, more=True)
    plain = source.with_port(0), destination.with_port(0)
    packet = IpPacket(1, *plain, Protocol.UDP, bytes(range(64)), fragment=middle)
    assert decode(encode(packet), id=1) == packet
    assert length(packet) == len(encode(packet))
    first = Fragment(identification=0x1234, offset=0, more=True)
    piece = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big") + bytes(60)
    packet = IpPacket(1, source, destination, Protocol.UDP, piece, fragment=first)
    assert decode(encode(packet), id=1) == packet


def test_wrong_checksums_are_refused_and_a_missing_one_is_accepted() -> None:
    wire = bytearray(encode(udp(A4, B4)))
    wire[-1] ^= 1
    with pytest.raises(DecodeError, match="UDP checksum"):
        decode(bytes(wire))
    assert decode(bytes(wire), verify=False).payload == b"helln"
    wire[26:28] = b"\0\0"
    assert decode(bytes(wire)).payload == b"helln"
    wire[8] ^= 1
    with pytest.raises(DecodeError, match="wrong checksum"):
        decode(bytes(wire), verify=False)


def test_addresses_of_two_families_raise_value_error() -> None:
    with pytest.raises(ValueError, match="two families"):
        encode(udp(A4, B6))


def test_other_protocols_and_nested_errors_are_refused() -> None:
    wire = bytearray(encode(udp(A6, B6)))
    wire[6] = 132
    with pytest.raises(DecodeError, match="IP protocol 132"):
        decode(bytes(wire))
    error = IpPacket(1, B4, A4, Protocol.ICMP, icmp=IcmpMessage(kind=IcmpKind.OTHER, about=udp(A4, B4)))
    again = IpPacket(1, A4, B4, Protocol.ICMP, icmp=IcmpMessage(kind=IcmpKind.OTHER, about=error))
    with pytest.raises(DecodeError, match="about an ICMP error"):
        decode(encode(again))


def test_changed_and_truncated_bytes_raise_only_decode_error() -> None:
    chance = random.Random(8)
    error = IpPacket(1, B4, A4, Protocol.ICMP, icmp=IcmpMessage(kind=IcmpKind.OTHER, about=udp(A4, B4)))
    tcp = IpPacket(1, A6, B6, Protocol.TCP, b"x", tcp=TcpFields(flags=TcpFlags.SYN))
    part = IpPacket(1, A6, B6, Protocol.UDP, bytes(16), fragment=Fragment(identification=1, offset=8, more=False))
    refused = 0
    for seed in [encode(p) for p in (udp(A4, B4), udp(A6, B6), error, tcp, part)]:
        for _ in range(2000):
            wire = bytearray(seed[: chance.randrange(len(seed) + 1)])
            for _ in range(chance.randrange(4)):
                if wire:
                    wire[chance.randrange(len(wire))] = chance.randrange(256)
            try:
                encode(decode(bytes(wire), verify=False))
            except DecodeError:
                refused += 1
    assert refused > 1000


def test_a_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    for number in range(65536):
        wire = encode(udp(A6, B6, number.to_bytes(2, "big")))
        assert wire[46:48] != b"\0\0"
        if wire[46:48] == b"\xff\xff":
            assert decode(wire).payload == number.to_bytes(2, "big")
            return
    raise AssertionError("one of all payloads of two bytes has such a sum")
