"""The interfaces of this host, and of one that is made for the purpose."""

from __future__ import annotations

import json
import sys
import time

import pytest

from polynya.aio.interfaces import list_interfaces, parse_if_inet6
from polynya.core.machine import Interface, InterfaceAddress
from tests.real.netns import namespace

IF_INET6 = """\
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000001 04 40 00 01     eth0
20010db8000000000000000000000002 04 40 00 20     eth0
20010db8000000000000000000000003 04 40 00 40     eth0
fe8000000000000000fc00fffe000001 05 40 20 c0     eth1
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_the_flags_of_an_address_are_those_of_its_interface() -> None:
    flags = parse_if_inet6(IF_INET6)
    assert flags["eth0", "fe80::fc:ff:fe00:1"] == 0x80
    assert flags["eth1", "fe80::fc:ff:fe00:1"] == 0xC0
    assert flags["lo", "::1"] == 0x80
    assert [flags["eth0", f"2001:db8::{n}"] for n in (1, 2, 3)] == [0x01, 0x20, 0x40]


def test_a_line_that_is_cut_short_is_passed_over() -> None:
    assert parse_if_inet6("fe80\n\n20010db8000000000000000000000001 04 40") == {}


def test_loopback_is_listed_as_what_it_is() -> None:
    [loopback] = [interface for interface in list_interfaces() if interface.loopback]
    assert InterfaceAddress(host="127.0.0.1", prefix_length=8) in loopback.addresses
    assert loopback.index >= 1


def test_a_listing_is_quick() -> None:
    list_interfaces()
    began = time.process_time()
    for _ in range(10):
        list_interfaces()
    assert (time.process_time() - began) / 10 < 0.01, "seconds of CPU; a usual host needs 0.0005"


LIST = """
import dataclasses, json
from polynya.aio.interfaces import list_interfaces
print(json.dumps([dataclasses.asdict(interface) for interface in list_interfaces()]))
"""


@pytest.mark.root
@pytest.mark.peer("ip")
def test_states_labels_mtu_and_flags_are_told_as_the_kernel_has_them() -> None:
    with namespace("interfaces") as here:
        here.ip("link", "add", "up0", "mtu", "1420", "type", "veth", "peer", "name", "down0")
        here.ip("tuntap", "add", "tun0", "mode", "tun")
        for name in ("up0", "tun0"):
            here.ip("link", "set", name, "up")
        here.ip("address", "add", "192.0.2.1/24", "dev", "up0")
        here.ip("address", "add", "192.0.2.2/24", "dev", "up0", "label", "up0:1")
        here.ip("address", "add", "198.51.100.1/24", "dev", "down0")
        here.ip("address", "add", "10.9.0.1", "peer", "10.9.0.2/32", "dev", "tun0")
        here.ip("address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        here.ip("address", "add", "2001:db8::2/64", "dev", "up0", "nodad", "preferred_lft", "0")
        told = {}
        for fields in json.loads(here.run(sys.executable, "-c", LIST).stdout):
            fields["addresses"] = tuple(InterfaceAddress(**address) for address in fields["addresses"])
            told[fields["name"]] = Interface(**fields)

    assert sorted(told) == ["lo", "tun0", "up0"], "what is down is not listed, nor is a label"
    up, tun = told["up0"], told["tun0"]
    assert (up.mtu, up.loopback, up.point_to_point) == (1420, False, False)
    assert (tun.loopback, tun.point_to_point) == (False, True)
    by_host = {address.host: address for address in up.addresses}
    assert by_host["192.0.2.1"] == InterfaceAddress(host="192.0.2.1", prefix_length=24)
    assert by_host["192.0.2.2"] == InterfaceAddress(host="192.0.2.2", prefix_length=24)
    assert by_host["2001:db8::1"] == InterfaceAddress(host="2001:db8::1", prefix_length=64)
    assert by_host["2001:db8::2"] == InterfaceAddress(host="2001:db8::2", prefix_length=64, deprecated=True)
