"""Addresses in the responses of STUN and TURN servers that are impossible, and what each reader does with them."""

from __future__ import annotations

import random

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Open, Opened, Send
from polynya.stun.attributes import ALTERNATE_SERVER, MAPPED_ADDRESS, OTHER_ADDRESS, XOR_MAPPED_ADDRESS
from polynya.stun.behavior import BehaviorDiscovery
from polynya.stun.lifetime import MappingLifetime
from polynya.stun.message import Message, decode
from polynya.stun.probe import BindingProbe, ProbeEnded
from polynya.stun.reported import first_possible, why_impossible

FLOW = Flow(1)
SERVER = Address("198.51.100.1", 3478)
SERVER6 = Address("2001:db8::1", 3478)
MAPPED = Address("203.0.113.7", 40000)
NOW = Instant(0)

IMPOSSIBLE = [
    Address("0.0.0.0", 0),
    Address("0.0.0.0", 5000),
    Address("203.0.113.7", 0),
    Address("224.0.0.251", 5353),
    Address("239.255.255.250", 1900),
    Address("255.255.255.255", 5000),
    Address("0.1.2.3", 5000),
    Address("127.0.0.1", 5000),
    Address("::", 0),
    Address("::", 5000),
    Address("ff02::fb", 5353),
    Address("::1", 5000),
    Address("fe80::1", 5000),
    Address("::ffff:203.0.113.7", 5000),
    Address("::ffff:0.0.0.0", 5000),
]


@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_an_impossible_address_has_a_reason_that_names_it(address: Address) -> None:
    reason = why_impossible(address, by=SERVER)
    assert reason.startswith(str(address)) and len(reason) > len(str(address)) + 5


@pytest.mark.parametrize(
    ("address", "by"),
    [
        (MAPPED, SERVER),
        (Address("10.0.0.2", 5000), SERVER),
        (Address("100.64.0.2", 5000), SERVER),
        (Address("127.0.0.1", 5000), Address("127.0.0.1", 3478)),
        (Address("::1", 5000), Address("::1", 3478)),
        (Address("fe80::2", 5000), Address("fe80::1", 3478, "eth0")),
        (MAPPED, SERVER6),
    ],
    ids=str,
)
def test_a_possible_address_has_none(address: Address, by: Address) -> None:
    """The last one is an IPv4 address of packets that left over IPv6, as behind NAT64 (RFC 6146)."""
    assert why_impossible(address, by=by, mapped=True) == ""


def test_packets_over_ipv4_have_no_ipv6_source_but_a_relay_may_be_of_either_family() -> None:
    address = Address("2001:db8::7", 5000)
    assert "left over IPv4" in why_impossible(address, by=SERVER, mapped=True)
    assert why_impossible(address, by=SERVER) == ""


def test_the_first_possible_address_is_chosen_and_all_others_are_explained() -> None:
    zero, group = Address("0.0.0.0", 0), Address("224.0.0.1", 1)
    assert first_possible([zero, None, MAPPED, group]) == (
        MAPPED,
        "0.0.0.0:0 is unspecified; 224.0.0.1:1 is a multicast address",
    )
    assert first_possible([None]) == (None, "")


# ---------------------------------------------------------------------------------------------------- Binding probe


def probed(values: dict, server: Address = SERVER) -> tuple[list[ProbeEnded], BindingProbe]:  # type: ignore[type-arg]
    probe = BindingProbe(flow=FLOW, server=server, random=random.Random(1))
    probe.start(now=NOW)
    request = decode(probe.outputs()[0].data)
    away = ALTERNATE_SERVER in values
    answer = Message.error(request, 300, attributes=values) if away else Message.success(request, values)
    probe.receive(Datagram(FLOW, server, answer.encode()), now=NOW)
    return probe.events(), probe


@pytest.mark.parametrize("attribute", [XOR_MAPPED_ADDRESS, MAPPED_ADDRESS], ids=["xor", "plain"])
@pytest.mark.parametrize("address", [*IMPOSSIBLE, Address("2001:db8::7", 5000)], ids=str)
def test_a_probe_finds_no_impossible_mapped_address(address: Address, attribute) -> None:  # type: ignore[no-untyped-def]
    [ended], _ = probed({attribute: address})
    assert ended.mapped is None
    assert ended.reason.startswith(f"the mapped address is impossible: {address}")


def test_a_probe_uses_the_possible_one_of_two_mapped_addresses() -> None:
    [ended], _ = probed({XOR_MAPPED_ADDRESS: Address("0.0.0.0", 0), MAPPED_ADDRESS: MAPPED})
    assert ended.mapped == MAPPED and "0.0.0.0:0 is unspecified" in ended.reason


def test_a_probe_over_ipv6_may_find_an_ipv4_address() -> None:
    [ended], _ = probed({XOR_MAPPED_ADDRESS: MAPPED}, SERVER6)
    assert ended.mapped == MAPPED


@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_a_probe_follows_no_redirection_to_an_impossible_server(address: Address) -> None:
    [ended], probe = probed({ALTERNATE_SERVER: (address,)})
    assert ended.mapped is None and not probe.outputs()
    assert f"names an impossible one: {address}" in ended.reason


# ----------------------------------------------------------------------------------------------- behavior discovery


def discovered(machine: BehaviorDiscovery | MappingLifetime, values: dict) -> list[Send]:  # type: ignore[type-arg]
    """Answer every request with these values; return the requests."""
    now, asked = NOW, []
    machine.start(now=now)
    for _ in range(40):
        for output in machine.outputs():
            if isinstance(output, Open):
                machine.receive(Opened(flow=output.flow, local=Address("10.0.0.2", 5000)), now=now)
            elif isinstance(output, Send):
                asked.append(output)
                answer = Message.success(decode(output.data), values).encode()
                machine.receive(Datagram(output.flow, output.remote, answer), now=now)
        due = machine.next_timer()
        if due is None or due > 60 * SECOND:
            break
        now = max(now, due)
        machine.tick(now=now)
    return asked


@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_behavior_discovery_believes_no_impossible_mapped_address(address: Address) -> None:
    local = Address("10.0.0.2", 0)
    machine = BehaviorDiscovery(server=SERVER, local=local, flow_ids=FlowIds(), random=random.Random(1))
    discovered(machine, {XOR_MAPPED_ADDRESS: address})
    [report] = machine.events()
    assert report.mapped is None and report.mapping is None and str(address) in report.mapping_reason


@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_behavior_discovery_asks_no_impossible_other_address(address: Address) -> None:
    local = Address("10.0.0.2", 0)
    machine = BehaviorDiscovery(server=SERVER, local=local, flow_ids=FlowIds(), random=random.Random(1))
    asked = discovered(machine, {XOR_MAPPED_ADDRESS: MAPPED, OTHER_ADDRESS: address})
    assert {send.remote for send in asked} <= {SERVER, MAPPED} and machine.report.other is None


def test_lifetime_discovery_ends_with_the_reason() -> None:
    local = Address("10.0.0.2", 0)
    machine = MappingLifetime(server=SERVER, local=local, flow_ids=FlowIds(), random=random.Random(1))
    discovered(machine, {XOR_MAPPED_ADDRESS: Address("203.0.113.7", 0)})
    assert "203.0.113.7:0 has port 0" in machine.report.reason
