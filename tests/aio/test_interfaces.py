"""The interfaces of this host, and of a network namespace with every kind of address."""

from __future__ import annotations

import json
import sys
import time

import pytest

from polynya.aio import interfaces, netlink
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


def test_a_truncated_line_is_skipped() -> None:
    assert parse_if_inet6("fe80\n\n20010db8000000000000000000000001 04 40") == {}


def test_loopback_is_listed_as_loopback() -> None:
    [loopback] = [interface for interface in list_interfaces() if interface.loopback]
    assert InterfaceAddress(host="127.0.0.1", prefix_length=8) in loopback.addresses
    assert loopback.index >= 1


def test_a_listing_takes_little_time() -> None:
    list_interfaces()
    began = time.process_time()
    for _ in range(10):
        list_interfaces()
    assert (time.process_time() - began) / 10 < 0.01, "seconds of CPU; a usual host needs 0.0001"


@pytest.mark.parametrize(
    ("flags", "preferred", "expected"),
    [
        (0x80, True, {}),
        (0x01, True, {"temporary": True}),
        (0x20, True, {"deprecated": True}),
        (0x80, False, {"deprecated": True}),
        (0x40, True, {"tentative": True}),
        (0x44, True, {}),
        (0x08, True, {"tentative": True}),
        (0xC8 | 0x04, True, {"tentative": True}),
    ],
    ids=[
        "permanent",
        "temporary",
        "deprecated",
        "preferred lifetime 0",
        "tentative",
        "optimistic",
        "duplicate",
        "optimistic and a duplicate",
    ],
)
def test_the_kernels_flags_are_translated(flags: int, preferred: bool, expected: dict[str, bool]) -> None:
    """RFC 4862, section 5.5.4 (deprecated); RFC 4429 (an optimistic address may be used); RFC 8981 (temporary)."""
    address = netlink.ipv6_address("2001:db8::1", 64, flags, preferred=preferred)
    assert address == InterfaceAddress(host="2001:db8::1", prefix_length=64, **expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs netlink")
def test_without_netlink_the_listing_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes forbid netlink, Android's for example."""
    expected = list_interfaces()

    def forbidden() -> list[Interface]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(interfaces.netlink, "list_interfaces", forbidden)
    assert list_interfaces() == expected


LIST = """
import dataclasses, json
from polynya.aio.interfaces import list_interfaces, list_without_netlink
def without_order(interfaces):
    return {(each.name, each.index, each.mtu, each.loopback, each.point_to_point): set(each.addresses)
            for each in interfaces}
listed, portable = list_interfaces(), list_without_netlink()
assert without_order(listed) == without_order(portable), (listed, portable)
print(json.dumps([dataclasses.asdict(interface) for interface in listed]))
"""


@pytest.mark.root
@pytest.mark.peer("ip")
def test_states_labels_mtu_and_flags_are_those_of_the_kernel() -> None:
    with namespace("interfaces") as here:
        here.ip("link", "add", "up0", "mtu", "1420", "type", "veth", "peer", "name", "down0")
        here.ip("tuntap", "add", "tun0", "mode", "tun")
        here.ip("link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
        here.run("sysctl", "-qw", "net.ipv6.conf.wire0.use_tempaddr=2", "net.ipv6.conf.wire0.accept_dad=0")
        for name in ("up0", "down0", "wire0", "wire1"):
            here.ip("link", "set", name, "addrgenmode", "none")
        for name in ("up0", "tun0", "wire0", "wire1"):
            here.ip("link", "set", name, "up")
        here.ip("address", "add", "192.0.2.1/24", "dev", "up0")
        here.ip("address", "add", "192.0.2.2/24", "dev", "up0", "label", "up0:1")
        here.ip("address", "add", "198.51.100.1/24", "dev", "down0")
        here.ip("address", "add", "10.9.0.1", "peer", "10.9.0.2/32", "dev", "tun0")
        here.ip("address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        here.ip("address", "add", "2001:db8::2/64", "dev", "up0", "nodad", "preferred_lft", "0")
        # Its peer is down, so duplicate address detection never ends.
        here.ip("address", "add", "2001:db8::3/64", "dev", "up0")
        here.ip("address", "add", "2001:db8:1::1/64", "dev", "wire0", "nodad", "mngtmpaddr", "valid_lft", "7200",
                "preferred_lft", "3600")  # fmt: skip
        listed = {}
        for fields in json.loads(here.run(sys.executable, "-c", LIST).stdout):
            fields["addresses"] = tuple(InterfaceAddress(**address) for address in fields["addresses"])
            listed[fields["name"]] = Interface(**fields)

    assert sorted(listed) == ["lo", "tun0", "up0", "wire0"], (
        "interfaces that are down or have no address are not listed, and labels are no interfaces"
    )
    up, tun = listed["up0"], listed["tun0"]
    assert (up.mtu, up.loopback, up.point_to_point) == (1420, False, False)
    assert (tun.loopback, tun.point_to_point) == (False, True)
    by_host = {address.host: address for address in up.addresses}
    assert by_host["192.0.2.1"] == InterfaceAddress(host="192.0.2.1", prefix_length=24)
    assert by_host["192.0.2.2"] == InterfaceAddress(host="192.0.2.2", prefix_length=24)
    assert by_host["2001:db8::1"] == InterfaceAddress(host="2001:db8::1", prefix_length=64)
    assert by_host["2001:db8::2"] == InterfaceAddress(host="2001:db8::2", prefix_length=64, deprecated=True)
    assert by_host["2001:db8::3"] == InterfaceAddress(host="2001:db8::3", prefix_length=64, tentative=True)
    in_prefix = [address for address in listed["wire0"].addresses if address.host.startswith("2001:db8:1:")]
    assert {address.host == "2001:db8:1::1": address.temporary for address in in_prefix} == {True: False, False: True}
