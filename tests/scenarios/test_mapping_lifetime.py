"""RFC 5780, section 4.6, in the virtual network: discovery reports the configured mapping lifetime of the NAT."""

from __future__ import annotations

import random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.lab import Host, Network, Profile
from polynya.nat import NatConfig, Pooling, PortAssignment, every_class
from polynya.stun.lifetime import LifetimeReport, MappingLifetime, State
from tests.scenarios.test_behavior import FIRST, OTHER, behind, serve

LIMIT = Instant(3 * 3600 * SECOND)


def measure(net: Network, host: Host, **options: Any) -> LifetimeReport:
    local = Address(host.interfaces[0].addresses[0], 0)
    machine = MappingLifetime(
        server=FIRST, local=local, flow_ids=net.flow_ids, random=random.Random(1), **options
    )  # fmt: skip
    process = host.run(machine)
    process.call(machine.start)
    assert net.run_until(lambda: bool(process.log), LIMIT), "the discovery ends"
    assert machine.state is State.ENDED and process.sockets == {} and process.misuses == []
    assert machine.next_timer() is None
    [(_, report)] = process.log
    return report


def holds(report: LifetimeReport, lifetime: float, resolution: float = 10) -> bool:
    """Whether the lifetime, in seconds, is within the reported range; a round trip adds to the idle time."""
    survived, gone = report.survived, report.gone_after
    if survived is None or gone is None:
        return False
    return survived < lifetime <= gone + 1 and gone - survived <= resolution


@pytest.mark.parametrize("seconds", [5, 30, 47, 120, 301])
@pytest.mark.parametrize("refreshed", [False, True], ids=["from inside only", "from outside too"])
def test_the_lifetime_is_found(seconds: int, refreshed: bool) -> None:
    """Responses renew some mappings, so each trial begins with a packet from inside."""
    report = measure(*behind(NatConfig(udp_timeout=seconds * SECOND, inbound_refresh=refreshed)))
    assert holds(report, seconds), report


@pytest.mark.parametrize("config", list(every_class(NatConfig(udp_timeout=75 * SECOND))), ids=lambda each: each.label)
def test_the_lifetime_is_found_behind_every_nat(config: NatConfig) -> None:
    assert holds(measure(*behind(config)), 75)


def test_with_ports_at_random_and_one_address_of_the_server() -> None:
    """The mapping after an expired one has another port; a second address is not needed."""
    config = NatConfig(udp_timeout=33 * SECOND, ports=PortAssignment.RANDOM)
    assert holds(measure(*behind(config, other=FIRST.with_port(OTHER.port))), 33)


@pytest.mark.parametrize("seed", range(5))
def test_lossy_links_change_nothing(seed: int) -> None:
    link = Profile(delay=80 * MILLISECOND, jitter=20 * MILLISECOND, loss=0.1, duplication=0.05)
    assert holds(measure(*behind(NatConfig(udp_timeout=60 * SECOND), seed, link)), 60)


def test_a_mapping_that_outlives_the_longest_time_is_reported_so() -> None:
    report = measure(*behind(NatConfig(udp_timeout=3600 * SECOND)), longest=300 * SECOND)
    assert (report.survived, report.gone_after) == (300, None)


def test_the_resolution_is_as_requested() -> None:
    report = measure(*behind(NatConfig(udp_timeout=45 * SECOND)), resolution=SECOND)
    assert holds(report, 45, 1)


def test_a_server_that_answers_to_no_other_port_says_so() -> None:
    report = measure(*behind(NatConfig(), other=None))
    assert (report.survived, report.gone_after) == (None, None) and "420" in report.reason


def test_two_flows_with_two_external_addresses_give_no_result() -> None:
    """The response goes to the address of the request, which has no idle mapping."""
    net = Network(seed=3)
    internet = net.router("internet")
    serve(net, internet)
    config = NatConfig(pooling=Pooling.ARBITRARY)
    outside = [f"198.51.100.{number}" for number in range(1, 9)]
    nat = net.nat("nat", outside=internet, address=outside, inside="10.0.0.0/24", config=config)
    report = measure(net, net.host("alice", "10.0.0.2", nat))
    assert report.survived is None and "does not arrive" in report.reason


def test_an_address_of_another_host_is_reported() -> None:
    net, host = behind(NatConfig())
    machine = MappingLifetime(
        server=FIRST, local=Address("192.0.2.99", 0), flow_ids=net.flow_ids, random=random.Random(1)
    )  # fmt: skip
    process = host.run(machine)
    process.call(machine.start)
    net.run(Instant(SECOND))
    [(_, report)] = process.log
    assert "not an address of alice" in report.reason


def test_times_are_positive() -> None:
    net = Network()
    with pytest.raises(ValueError, match="more than zero"):
        MappingLifetime(server=FIRST, local=OTHER, flow_ids=net.flow_ids, random=random.Random(1), longest=0)


def test_a_report_reads_well() -> None:
    report = measure(*behind(NatConfig(udp_timeout=47 * SECOND)))
    assert str(report) == (
        "mapping lifetime towards 203.0.113.1:3478: idle for 40 s, gone after 50 s "
        "(the mapping expires between the two times)"
    )
