"""Which local addresses are gathered on (RFC 8445, section 5.1.1.1; RFC 8421, section 4)."""

from __future__ import annotations

import pytest

from polynya.core.machine import Interface, InterfaceAddress
from polynya.ice.config import IceConfig
from polynya.session.interfaces import choose_addresses
from polynya.session.options import SessionConfig


def interface(name: str, *hosts: str | InterfaceAddress, loopback: bool = False) -> Interface:
    addresses = tuple(
        host if isinstance(host, InterfaceAddress) else InterfaceAddress(host=host, prefix_length=64) for host in hosts
    )
    return Interface(name=name, index=1, addresses=addresses, loopback=loopback)


def chosen(*interfaces: Interface, **options: object) -> list[str]:
    return [
        host.address.host
        for host in choose_addresses(interfaces, SessionConfig(ice=IceConfig(controlling=True), **options))[0]
    ]  # type: ignore[arg-type]


def refused(*interfaces: Interface, **options: object) -> dict[str, str]:
    return {
        no.host: no.reason
        for no in choose_addresses(interfaces, SessionConfig(ice=IceConfig(controlling=True), **options))[1]
    }  # type: ignore[arg-type]


LO = interface("lo", "127.0.0.1", "::1", loopback=True)


def test_loopback_is_used_only_when_asked_for() -> None:
    assert chosen(LO) == []
    assert refused(LO) == {"127.0.0.1": "loopback is not enabled", "::1": "loopback is not enabled"}
    assert chosen(LO, loopback=True) == ["::1", "127.0.0.1"]


def test_families_are_interleaved_so_that_a_broken_one_costs_the_other_nothing() -> None:
    """RFC 8421, section 4."""
    eth = interface("eth0", "192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:2::1")
    assert chosen(eth) == ["2001:db8:1::1", "192.0.2.1", "2001:db8:2::1", "192.0.2.2"]
    assert chosen(eth, families=(4, 6)) == ["192.0.2.1", "2001:db8:1::1", "192.0.2.2", "2001:db8:2::1"]
    assert chosen(eth, families=(6,)) == ["2001:db8:1::1", "2001:db8:2::1"]


def test_a_temporary_address_hides_the_stable_one_of_its_prefix_only() -> None:
    temporary = InterfaceAddress(host="2001:db8:1::abcd", prefix_length=64, temporary=True)
    eth = interface("eth0", "2001:db8:1::1", temporary, "2001:db8:2::1")
    assert chosen(eth) == ["2001:db8:1::abcd", "2001:db8:2::1"]
    assert "temporary address" in refused(eth)["2001:db8:1::1"]


def test_link_local_addresses_are_used_where_there_is_nothing_better() -> None:
    assert chosen(interface("eth0", "fe80::1", "2001:db8::1", "169.254.1.1")) == ["2001:db8::1", "169.254.1.1"]
    [alone] = choose_addresses([interface("eth0", "fe80::1")], SessionConfig(ice=IceConfig(controlling=True)))[0]
    assert alone.address == ("fe80::1", 0, "eth0"), "a link-local address means nothing without its zone"


@pytest.mark.parametrize("host", ["::ffff:192.0.2.1", "::192.0.2.1", "fec0::1", "0.0.0.0", "224.0.0.1", "ff02::1"])
def test_addresses_that_no_packet_should_come_from_are_left_out(host: str) -> None:
    assert chosen(interface("eth0", host)) == []
    assert refused(interface("eth0", host))[host]


@pytest.mark.parametrize("flag", ["deprecated", "tentative"])
def test_deprecated_and_tentative_addresses_are_left_out(flag: str) -> None:
    eth = interface("eth0", InterfaceAddress(host="2001:db8::1", prefix_length=64, **{flag: True}))  # type: ignore[arg-type]
    assert chosen(eth) == []


def test_the_number_of_ipv6_addresses_of_an_interface_is_bounded() -> None:
    eth = interface("eth0", *(f"2001:db8:{n}::1" for n in range(5)))
    assert chosen(eth, addresses_per_interface=2) == ["2001:db8::1", "2001:db8:1::1"]


def test_filters_refuse_whole_interfaces_and_single_addresses() -> None:
    """aiortc/aioice#2, #47; magic-wormhole/magic-wormhole#388: choose the interface."""
    eth, vpn = interface("eth0", "192.0.2.1"), interface("tun0", "198.51.100.1")
    assert chosen(eth, vpn, interfaces=lambda i: i.name != "tun0") == ["192.0.2.1"]
    assert chosen(eth, vpn, addresses=lambda i, a: a.host == "198.51.100.1") == ["198.51.100.1"]
    assert refused(eth, vpn, interfaces=lambda i: i.name != "tun0") == {
        "198.51.100.1": "the interface filter refused it"
    }


def test_one_address_on_two_interfaces_is_gathered_once() -> None:
    assert chosen(interface("eth0", "192.0.2.1"), interface("eth1", "192.0.2.1")) == ["192.0.2.1"]
