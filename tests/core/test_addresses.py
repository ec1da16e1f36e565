"""Addresses: canonical text, hostile input, and scopes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polynya.core.addresses import IPV4, IPV6, Address, pack_host, scope
from polynya.core.errors import DecodeError

ports = st.integers(0, 65535)
hosts = st.ip_addresses()
zones = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)


@given(hosts, ports)
def test_packed_bytes_are_parsed_to_the_same_address(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    address = Address.from_packed(host.packed, port)
    assert address.packed == host.packed
    assert address.family == host.version
    assert Address.parse(str(address)) == address
    assert Address.of(address.host, port) == address


@given(st.ip_addresses(v=6), ports)
def test_every_spelling_of_an_ipv6_address_is_one_address(host: ipaddress.IPv6Address, port: int) -> None:
    canonical = Address.from_packed(host.packed, port)
    for spelling in (host.compressed, host.exploded, host.exploded.upper()):
        assert Address.of(spelling, port) == canonical
        assert Address.parse(f"[{spelling}]:{port}") == canonical
        assert hash(Address.of(spelling, port)) == hash(canonical)


@given(st.ip_addresses(v=6, network="fe80::/10"), ports, zones)
def test_a_zone_is_kept_in_text(host: ipaddress.IPv6Address, port: int, zone: str) -> None:
    address = Address.of(f"{host}%{zone}", port)
    assert address.zone == zone
    assert Address.parse(str(address)) == address
    assert address.with_port(1) == Address.of(f"{host}%{zone}", 1)
    assert address.packed == host.packed


def test_two_links_with_one_link_local_address_are_two_addresses() -> None:
    assert Address.of("fe80::1%eth0", 1) != Address.of("fe80::1%eth1", 1) != Address.of("fe80::1", 1)


@given(st.text(max_size=80))
@example("1.2.3.4:5\0")
@example("[::1]:\u0661")
@example("1.2.3.4:\u00b2")
@example("[::1]:65536")
@example("1.2.3.4:99999999999999999999")
@example("\ud800:1")
def test_hostile_text_gives_an_address_or_one_error(text: str) -> None:
    try:
        address = Address.parse(text, default_port=3478)
    except DecodeError:
        return
    assert Address.parse(str(address)) == address
    assert 0 <= address.port <= 65535
    assert address.packed == ipaddress.ip_address(address.host).packed


@given(st.binary(max_size=40))
def test_packed_bytes_of_another_length_are_refused(packed: bytes) -> None:
    if len(packed) in {4, 16}:
        assert Address.from_packed(packed, 9).packed == packed
    else:
        with pytest.raises(DecodeError, match=f"not {len(packed)}"):
            Address.from_packed(packed, 9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1",
        "::1",
        "192.0.2.1:",
        ":3478",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1: 1",
        "192.0.2.1:65536",
        "192.0.2.1:0x10",
        "192.0.2:1",
        "192.0.2.256:1",
        "192.0.2.01:1",
        "0300.0.2.1:1",
        "3221225985:1",
        "stun.example.org:3478",
        "[192.0.2.1:1",
        "[::1]3478",
        "[::1]]:1",
        "[::1]:1:2",
        "[]:1",
        "[::g]:1",
        "[1:2:3:4:5:6:7:8:9]:1",
        "[fe80::1%]:1",
        "[fe80::1%eth 0]:1",
        "[fe80::1%a%b]:1",
        "192.0.2.1%eth0:1",
        f"[fe80::1%{'z' * 65}]:1",
    ],
)
def test_text_without_a_valid_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        Address.parse(text)


def test_the_error_shows_the_expected_format() -> None:
    with pytest.raises(DecodeError, match=r"no port: write HOST:PORT, or \[HOST\]:PORT"):
        Address.parse("2001:db8::1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Address("192.0.2.1", 3478)),
        ("192.0.2.1:5", Address("192.0.2.1", 5)),
        ("2001:db8::1", Address("2001:db8::1", 3478)),
        ("[2001:DB8:0::1]", Address("2001:db8::1", 3478)),
        ("[2001:db8::1]:5", Address("2001:db8::1", 5)),
    ],
)
def test_a_default_port_replaces_a_missing_one(text: str, expected: Address) -> None:
    assert Address.parse(text, default_port=3478) == expected


def test_a_long_host_is_cut_in_the_error() -> None:
    with pytest.raises(DecodeError) as raised:
        Address.of("a" * 100_000, 1)
    assert len(str(raised.value)) < 200


def test_an_address_is_a_tuple() -> None:
    address = Address("192.0.2.1", 1)
    assert address == ("192.0.2.1", 1, "")
    assert (address.family, Address("::", 1).family) == (IPV4, IPV6)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("::ffff:169.254.0.1", "link-local"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.127.255.255", "private"),
        ("fc00::1", "private"),
        ("fdff::1", "private"),
        ("fec0::1", "private"),
        ("::ffff:192.168.0.1", "private"),
        ("224.0.0.251", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::fb", "multicast"),
        ("172.15.255.255", "global"),
        ("172.32.0.0", "global"),
        ("100.63.255.255", "global"),
        ("100.128.0.0", "global"),
        ("192.169.0.1", "global"),
        ("203.0.113.1", "global"),
        ("2001:db8::1", "global"),
        ("::2", "global"),
    ],
)
def test_each_address_has_its_scope(host: str, expected: str) -> None:
    assert scope(Address.of(host, 0).host) == expected


@given(hosts)
def test_the_scope_agrees_with_ipaddress(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    address = Address.from_packed(host.packed, 0)
    reach = scope(address.host)
    effective = getattr(host, "ipv4_mapped", None) or host
    assert (reach == "loopback") == effective.is_loopback
    assert (reach == "multicast") == effective.is_multicast
    assert (reach == "link-local") == effective.is_link_local
    assert (reach == "unspecified") == effective.is_unspecified


def test_packing_a_name_raises_decode_error() -> None:
    with pytest.raises(DecodeError, match="is not an IP address"):
        pack_host("localhost")
