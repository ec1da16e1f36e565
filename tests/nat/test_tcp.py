"""TCP connections through a NAT, by requirement of RFC 5382."""

from collections.abc import Callable

import pytest

from polynya.core.addresses import Address
from polynya.core.machine import IcmpKind
from polynya.core.packets import Protocol, TcpFlags
from polynya.nat import Behavior, NatConfig, UnsolicitedSyn
from tests.nat.conftest import INSIDE, SERVER, STRANGER, Bench

SYN, ACK, FIN, RST = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.FIN, TcpFlags.RST
Make = Callable[..., Bench]


def established(nat: Bench) -> Address:
    external = nat.out(INSIDE, SERVER, flags=SYN)
    assert external is not None
    assert nat.come(SERVER, external, flags=SYN | ACK) == INSIDE
    assert nat.out(INSIDE, SERVER, flags=ACK) == external
    return external


def test_an_established_connection_expires_after_two_hours_and_four_minutes(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    nat.after(7439)
    assert nat.come(SERVER, external, flags=ACK) == INSIDE
    nat.after(7439)
    assert nat.out(INSIDE, SERVER, flags=ACK) == external
    nat.after(7441)
    assert nat.come(SERVER, external, flags=ACK) is None


def test_a_half_open_connection_expires_after_four_minutes(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER, flags=SYN)
    nat.after(239)
    assert nat.come(SERVER, external, flags=SYN | ACK) == INSIDE
    nat.after(241)
    assert nat.come(SERVER, external, flags=SYN | ACK) is None


@pytest.mark.parametrize("closing", [[("out", FIN | ACK), ("in", FIN | ACK)], [("in", RST)], [("out", RST | ACK)]])
def test_a_closed_connection_expires_after_four_minutes(bench: Make, closing: list[tuple[str, TcpFlags]]) -> None:
    nat = bench()
    external = established(nat)
    for way, flags in closing:
        if way == "out":
            assert nat.out(INSIDE, SERVER, flags=flags) == external
        else:
            assert nat.come(SERVER, external, flags=flags) == INSIDE
    nat.after(239)
    assert nat.nat.rows()
    nat.after(2)
    assert nat.nat.rows() == []


def test_a_half_closed_connection_stays_open(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    assert nat.come(SERVER, external, flags=FIN | ACK) == INSIDE
    nat.after(3600)
    assert nat.out(INSIDE, SERVER, flags=ACK) == external


def test_the_endpoints_can_be_reused_after_a_close(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    nat.out(INSIDE, SERVER, flags=RST)
    assert established(nat) == external
    nat.after(3600)
    assert nat.come(SERVER, external, flags=ACK) == INSIDE


def test_a_simultaneous_open_establishes_a_connection(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, STRANGER, flags=SYN)
    assert nat.come(STRANGER, external, flags=SYN) == INSIDE
    assert nat.out(INSIDE, STRANGER, flags=SYN | ACK) == external
    assert nat.come(STRANGER, external, flags=SYN | ACK) == INSIDE
    assert nat.out(INSIDE, STRANGER, flags=ACK) == external
    nat.after(3600)
    assert nat.come(STRANGER, external, flags=ACK) == INSIDE


def test_an_unsolicited_syn_is_answered_by_icmp_after_six_seconds(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    assert nat.come(STRANGER, external, flags=SYN) is None
    nat.after(5.9)
    assert nat.nat.outputs() == []
    nat.after(0.2)
    [error] = nat.nat.outputs()
    assert error.protocol is Protocol.ICMP
    assert error.icmp is not None
    assert error.icmp.kind is IcmpKind.PORT_UNREACHABLE
    assert (error.source.host, error.destination.host) == (external.host, STRANGER.host)
    assert error.icmp.about is not None
    assert (error.icmp.about.source, error.icmp.about.destination) == (STRANGER, external)
    nat.after(60)
    assert nat.nat.outputs() == []


def test_a_pending_unsolicited_syn_is_removed_if_the_inside_host_connects(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER, flags=SYN)
    assert nat.come(STRANGER, external, flags=SYN) is None
    nat.after(3)
    assert nat.out(INSIDE, STRANGER, flags=SYN) == external
    nat.after(10)
    assert nat.nat.outputs() == []


def test_the_number_of_pending_unsolicited_syns_is_limited(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    for port in range(1, 1001):
        nat.come(STRANGER.with_port(port), external, flags=SYN)
    nat.after(7)
    assert len(nat.nat.outputs()) == 256


def test_variants_answer_an_unsolicited_syn_by_a_reset_or_not_at_all(bench: Make) -> None:
    for policy, answers in ((UnsolicitedSyn.RESET, 1), (UnsolicitedSyn.SILENCE, 0)):
        nat = bench(unsolicited_syn=policy)
        external = established(nat)
        nat.come(STRANGER, external, flags=SYN)
        found = nat.nat.outputs()
        nat.after(10)
        assert len(found) + len(nat.nat.outputs()) == answers
        assert all(p.tcp is not None and p.tcp.flags == RST | ACK for p in found)


def test_segments_without_a_connection_are_dropped_both_ways(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI)
    assert nat.out(INSIDE, SERVER, flags=ACK) is None
    assert nat.reason == "a TCP segment without SYN from 10.0.0.2:5000, which has no mapping for 203.0.113.1:3478"
    external = nat.out(INSIDE, SERVER, flags=SYN)
    assert nat.come(STRANGER, external, flags=ACK) is None
    assert nat.reason == "a TCP segment without SYN from 203.0.113.9:4000, which has no connection with 10.0.0.2:5000"
    assert nat.come(STRANGER, external, flags=SYN) == INSIDE


def test_udp_and_tcp_have_separate_mappings() -> None:
    nat = Bench(NatConfig())
    external = nat.out(INSIDE, SERVER, flags=SYN)
    assert external is not None
    assert nat.come(SERVER, external) is None
    assert nat.out(INSIDE, SERVER) == external
    assert nat.come(SERVER, external) == INSIDE


def test_a_mapping_expires_with_the_last_of_its_connections(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    for port in range(1, 51):
        assert nat.out(INSIDE, STRANGER.with_port(port), flags=SYN) == external
    nat.out(INSIDE, SERVER, flags=RST)
    nat.after(100)
    nat.out(INSIDE, STRANGER, flags=SYN)
    nat.after(141)
    assert nat.come(STRANGER.with_port(1), external, flags=ACK) is None
    assert nat.reason.startswith("port-restricted filtering")
    assert nat.come(STRANGER, external, flags=SYN | ACK) == INSIDE
    nat.after(241)
    assert nat.nat.rows() == []


def test_an_expired_connection_accepts_no_inbound_segment(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI)
    external = nat.out(INSIDE, STRANGER, flags=SYN)
    nat.after(200)
    assert nat.out(INSIDE, SERVER, flags=SYN) == external
    nat.after(100)
    assert nat.come(STRANGER, external, flags=ACK) is None
    assert nat.come(SERVER, external, flags=SYN | ACK) == INSIDE


def test_a_long_connection_expires_four_minutes_after_its_close(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    nat.after(1000)
    nat.out(INSIDE, SERVER, flags=ACK)
    nat.after(1000)
    assert nat.come(SERVER, external, flags=RST) == INSIDE
    nat.after(241)
    assert nat.nat.rows() == []


def test_an_acknowledgment_alone_establishes_nothing(bench: Make) -> None:
    nat = bench()
    nat.out(INSIDE, SERVER, flags=SYN)
    nat.out(INSIDE, SERVER, flags=ACK)
    nat.after(241)
    assert nat.nat.rows() == []


def test_an_early_tick_answers_no_syn(bench: Make) -> None:
    nat = bench()
    external = established(nat)
    nat.come(STRANGER, external, flags=SYN)
    nat.nat.tick(now=nat.now)
    assert nat.nat.outputs() == []


def test_expired_connections_are_removed(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER, flags=SYN)
    assert external is not None
    for port in range(1, 101):
        nat.out(INSIDE, STRANGER.with_port(port), flags=SYN)
    nat.after(200)
    nat.out(INSIDE, SERVER, flags=SYN)
    nat.after(100)
    nat.out(INSIDE, STRANGER, flags=SYN)
    mapping = nat.nat.mapping_of(Protocol.TCP, external)
    assert mapping is not None
    assert sorted(mapping.connections) == [SERVER, STRANGER]
