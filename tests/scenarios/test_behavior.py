"""RFC 5780, sections 4.3 to 4.5, in the virtual network: discovery reports the configured behavior of the NAT."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.lab import Firewall, Host, Network, Profile
from polynya.lab.firewall import UDP_BLOCKED
from polynya.lab.nodes import Node
from polynya.lab.programs import Listening
from polynya.nat import FilterScope, Hairpinning, NatConfig, PortAssignment, every_class
from polynya.stun.behavior import BehaviorDiscovery, BehaviorReport
from polynya.stun.origins import corners, origins
from polynya.stun.server import BindingServer

FIRST, OTHER = Address("203.0.113.1", 3478), Address("203.0.113.2", 3479)
FIRST6, OTHER6 = Address("2001:db8:100::1", 3478), Address("2001:db8:100::2", 3479)
LIMIT = Instant(120 * SECOND)


def serve(net: Network, internet: Node, first: Address = FIRST, other: Address | None = OTHER) -> None:
    """A STUN server at `first`, and at its corners with `other`."""
    listeners = (first, *corners(first, other)) if other is not None else (first,)
    hosts = dict.fromkeys(each.host for each in listeners)
    host = net.host("stun", tuple(hosts), internet, delay=20 * MILLISECOND)
    server = BindingServer()
    flows = {net.flow_ids.new(): each for each in listeners}
    if other is not None:
        server.origins = origins(flows)
    host.run(Listening(server, flows))


def discover(net: Network, host: Host, server: Address = FIRST, local: str = "") -> BehaviorReport:
    where = Address(local or host.interfaces[0].addresses[0], 0)
    machine = BehaviorDiscovery(server=server, local=where, flow_ids=net.flow_ids, random=random.Random(1))
    process = host.run(machine)
    process.call(machine.start)
    assert net.run_until(lambda: bool(process.log), LIMIT), "the discovery ends"
    assert process.sockets == {} and process.misuses == []
    [(_, report)] = process.log
    assert machine.next_timer() is None
    return report


def behind(config: NatConfig, seed: int = 1, link: Profile | None = None, other: Address | None = OTHER) -> Any:
    net = Network(seed=seed)
    internet = net.router("internet")
    serve(net, internet, other=other)
    nat = net.nat(
        "nat", outside=internet, address="198.51.100.1", inside="10.0.0.0/24", config=config, link=link, delay=0
    )  # fmt: skip
    return net, net.host("alice", "10.0.0.2", nat)


@pytest.mark.parametrize("ports", PortAssignment, ids=lambda ports: ports.name)
@pytest.mark.parametrize("config", list(every_class()), ids=lambda config: config.label)
def test_every_cell_is_discovered(config: NatConfig, ports: PortAssignment) -> None:
    """With every scope of the filter, direction of sessions and kind of hairpinning."""
    for scope in FilterScope:
        for inbound in (False, True):
            for hairpinning in Hairpinning:
                made = replace(
                    config, filter_scope=scope, inbound_sessions=inbound, ports=ports, hairpinning=hairpinning
                )
                report = discover(*behind(made))
                assert (report.translated, report.mapping, report.filtering) == (True, made.mapping, made.filtering)
                if hairpinning is Hairpinning.NONE:
                    assert report.hairpinning is False
                elif made.filtering is Behavior.EI or made.mapping is Behavior.EI:
                    assert report.hairpinning is True, made
                assert report.mapped is not None and report.mapped.host == "198.51.100.1"
                assert report.other == OTHER and not report.rewrites


@pytest.mark.parametrize("seed", range(20))
def test_lossy_links_change_nothing(seed: int) -> None:
    """One packet in ten is lost each way, some come twice or late."""
    configs = list(every_class())
    link = Profile(delay=80 * MILLISECOND, jitter=20 * MILLISECOND, loss=0.1, duplication=0.05, reordering=0.1)
    config = configs[seed % len(configs)]
    report = discover(*behind(config, seed, link))
    assert (report.mapping, report.filtering) == (config.mapping, config.filtering), report


def open_host(net: Network, **options: Any) -> Host:
    internet = net.router("internet")
    serve(net, internet, **options)
    return net.host("alice", ("192.0.2.7", "2001:db8:7::7"), internet)


def test_in_the_open_there_is_no_nat() -> None:
    net = Network()
    report = discover(net, open_host(net))
    assert (report.translated, report.mapping, report.filtering) == (False, Behavior.EI, Behavior.EI)
    assert report.mapped == report.local and report.hairpinning is None
    assert report.hairpinning_reason == "there is no NAT"


def test_ipv6_is_asked_as_well() -> None:
    net = Network()
    host = open_host(net, first=FIRST6, other=OTHER6)
    report = discover(net, host, FIRST6, "2001:db8:7::7")
    assert (report.translated, report.filtering, report.other) == (False, Behavior.EI, OTHER6)


def test_a_firewall_filters_and_translates_nothing() -> None:
    net = Network()
    internet = net.router("internet")
    serve(net, internet)
    wall = net.firewall("wall", outside=internet)
    report = discover(net, net.host("alice", "192.0.2.7", wall))
    assert (report.translated, report.mapping, report.filtering) == (False, Behavior.EI, Behavior.APD)


def test_where_udp_is_blocked_nothing_is_known() -> None:
    net = Network()
    internet = net.router("internet")
    serve(net, internet)
    wall = net.firewall("wall", outside=internet, rules=(UDP_BLOCKED,))
    report = discover(net, net.host("alice", "192.0.2.7", wall))
    assert (report.translated, report.mapping, report.filtering, report.hairpinning) == (None,) * 4
    assert report.mapping_reason == "mapping, test I: 203.0.113.1:3478 did not answer 5 sends"


@pytest.mark.parametrize("filtering", Behavior, ids=lambda each: each.name)
def test_two_ports_of_one_address_show_whether_the_port_counts(filtering: Behavior) -> None:
    net, host = behind(NatConfig(filtering=filtering), other=FIRST.with_port(3479))
    report = discover(net, host)
    assert (report.mapping, report.other) == (None, None)
    assert report.mapping_reason == "203.0.113.1:3478 has no other address"
    assert report.filtering is (Behavior.APD if filtering is Behavior.APD else None)
    assert report.filtering_reason


def test_a_server_that_serves_none_of_it_leaves_it_open() -> None:
    net, host = behind(NatConfig(), other=None)
    report = discover(net, host)
    assert (report.translated, report.mapping, report.filtering) == (True, None, None)
    assert "refused: 420" in report.filtering_reason
    assert report.hairpinning is True, "any server is enough for this test"


def test_a_socket_on_all_addresses_does_not_say_whether_there_is_a_nat() -> None:
    net, host = behind(NatConfig(mapping=Behavior.AD, filtering=Behavior.AD))
    report = discover(net, host, local="0.0.0.0")
    assert (report.translated, report.mapping, report.filtering) == (None, Behavior.AD, Behavior.AD)


def test_an_address_of_another_host_is_reported() -> None:
    net, host = behind(NatConfig())
    report = discover(net, host, local="192.0.2.99")
    assert "192.0.2.99 is not an address of alice" in report.mapping_reason and report.mapping is None


@pytest.mark.parametrize("outer", list(every_class()), ids=lambda config: config.label)
def test_of_two_nats_the_stricter_is_seen(outer: NatConfig) -> None:
    """Behind a carrier's NAT, mapping and filtering are each those of the stricter NAT."""
    order = list(Behavior)
    for inner in every_class():
        net = Network(seed=2)
        internet = net.router("internet")
        serve(net, internet)
        carrier = net.nat("carrier", outside=internet, address="198.51.100.1", inside="100.64.0.0/24", config=outer)
        home = net.nat("home", outside=carrier, address="100.64.0.2", inside="10.0.0.0/24", config=inner)
        report = discover(net, net.host("alice", "10.0.0.2", home))
        assert report.mapping is max(outer.mapping, inner.mapping, key=order.index)
        assert report.filtering is max(outer.filtering, inner.filtering, key=order.index)


def test_behind_a_nat_for_ipv4_and_a_firewall_for_ipv6() -> None:
    net = Network()
    internet = net.router("internet")
    serve(net, internet, FIRST6, OTHER6)
    inside = ("10.0.0.0/24", "2001:db8:7::/64")
    nat = net.nat("nat", outside=internet, address="198.51.100.1", inside=inside, firewall=Firewall())
    host = net.host("alice", ("10.0.0.2", "2001:db8:7::7"), nat)
    report = discover(net, host, FIRST6, "2001:db8:7::7")
    assert (report.translated, report.filtering) == (False, Behavior.APD)


def test_a_report_reads_well() -> None:
    report = discover(*behind(NatConfig(filtering=Behavior.AD)))
    assert str(report).splitlines() == [
        f"{report.local}, mapped to {report.mapped}: behind a NAT",
        f"  mapping: {Behavior.EI.value} (mapped to {report.mapped} towards both addresses of the server)",
        f"  filtering: {Behavior.AD.value} (a response from another port arrived, none from another address)",
        "  hairpinning: yes (a request came back from " + str(report.mapped).partition(":")[0]
        + report.hairpinning_reason.rpartition("198.51.100.1")[2] + ")",
    ]  # fmt: skip
