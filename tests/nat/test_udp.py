"""Mapping, filtering, ports, pooling, hairpinning and timers, by requirement of RFC 4787."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.instants import SECOND
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol
from polynya.nat import (
    PRESETS,
    Behavior,
    FilterScope,
    Hairpinning,
    NatConfig,
    Pooling,
    PortAssignment,
    every_class,
    full_cone,
    port_restricted_cone,
    restricted_cone,
    symmetric,
)
from tests.nat.conftest import EXTERNAL, INSIDE, OTHER_INSIDE, SERVER, SERVER_OTHER_PORT, STRANGER, Bench

RANDOM = NatConfig(ports=PortAssignment.RANDOM)
Make = Callable[..., Bench]


# ------------------------------------------------------------------------------------------- REQ-1 and 8: behaviors


@pytest.mark.parametrize("filtering", list(Behavior))
@pytest.mark.parametrize(
    ("mapping", "same_host", "other_host"),
    [(Behavior.EI, True, True), (Behavior.AD, True, False), (Behavior.APD, False, False)],
)
def test_a_mapping_is_shared_by_its_behavior(
    mapping: Behavior, filtering: Behavior, same_host: bool, other_host: bool
) -> None:
    nat = Bench(replace(RANDOM, mapping=mapping, filtering=filtering))
    first = nat.out(INSIDE, SERVER)
    assert first == nat.out(INSIDE, SERVER)
    assert (first == nat.out(INSIDE, SERVER_OTHER_PORT)) is same_host
    assert (first == nat.out(INSIDE, STRANGER)) is other_host
    assert nat.out(OTHER_INSIDE, SERVER) != first
    assert nat.out(INSIDE.with_port(5001), SERVER) != first


@pytest.mark.parametrize("mapping", list(Behavior))
@pytest.mark.parametrize(
    ("filtering", "same_host", "other_host"),
    [(Behavior.EI, True, True), (Behavior.AD, True, False), (Behavior.APD, False, False)],
)
def test_a_filter_accepts_by_its_behavior(
    mapping: Behavior, filtering: Behavior, same_host: bool, other_host: bool
) -> None:
    nat = Bench(replace(RANDOM, mapping=mapping, filtering=filtering))
    external = nat.out(INSIDE, SERVER)
    assert external is not None
    assert nat.come(SERVER, external) == INSIDE
    assert nat.come(SERVER_OTHER_PORT, external) == (INSIDE if same_host else None)
    assert nat.come(STRANGER, external) == (INSIDE if other_host else None)


def test_the_reason_of_a_drop_names_the_missing_permission() -> None:
    nat = Bench(port_restricted_cone())
    external = nat.out(INSIDE, SERVER)
    assert external is not None
    nat.come(STRANGER, external)
    assert nat.reason == "port-restricted filtering: nothing was sent to 203.0.113.9:4000 from 10.0.0.2:5000"
    nat.come(STRANGER, external.with_port(9))
    assert nat.reason == "no mapping: 198.51.100.1:9 is mapped to no inside endpoint"
    nat = Bench(restricted_cone(filter_scope=FilterScope.MAPPING))
    external = nat.out(INSIDE, SERVER)
    assert external is not None
    nat.come(STRANGER, external)
    assert nat.reason == (
        "address-restricted filtering: nothing was sent to 203.0.113.9 from 10.0.0.2:5000 through 198.51.100.1:5000"
    )


@pytest.mark.parametrize(("scope", "let_in"), [(FilterScope.ENDPOINT, True), (FilterScope.MAPPING, False)])
def test_permissions_belong_to_the_endpoint_or_to_the_mapping(scope: FilterScope, let_in: bool) -> None:
    nat = Bench(symmetric(filter_scope=scope))
    to_server, to_stranger = nat.out(INSIDE, SERVER), nat.out(INSIDE, STRANGER)
    assert to_server is not None
    assert to_stranger is not None
    assert nat.come(STRANGER, to_stranger) == INSIDE
    assert nat.come(STRANGER, to_server) == (INSIDE if let_in else None)


@pytest.mark.parametrize(("sessions", "same"), [(False, False), (True, True)])
def test_an_inbound_packet_creates_a_session_if_configured(sessions: bool, same: bool) -> None:
    nat = Bench(NatConfig(mapping=Behavior.APD, filtering=Behavior.EI, inbound_sessions=sessions))
    external = nat.out(INSIDE, SERVER)
    assert external is not None
    assert nat.come(STRANGER, external) == INSIDE
    assert (nat.out(INSIDE, STRANGER) == external) is same


def test_an_inbound_session_replaces_no_mapping() -> None:
    nat = Bench(NatConfig(mapping=Behavior.APD, filtering=Behavior.EI, inbound_sessions=True))
    to_server, to_stranger = nat.out(INSIDE, SERVER), nat.out(INSIDE, STRANGER)
    assert to_server is not None
    assert nat.come(STRANGER, to_server) == INSIDE
    assert nat.out(INSIDE, STRANGER) == to_stranger


def test_the_nine_classes_are_nine_and_the_presets_are_among_them() -> None:
    assert len({config.label for config in every_class()}) == 9
    assert [PRESETS[name].label for name in PRESETS] == ["EI/EI", "EI/AD", "EI/APD", "APD/APD"]
    assert full_cone().label == "EI/EI"


# --------------------------------------------------------------------------------- REQ-2: pooling, REQ-3 and 4: ports


def test_paired_pooling_gives_a_host_one_address_and_arbitrary_does_not() -> None:
    pool = tuple(f"198.51.100.{i}" for i in range(1, 9))

    def hosts(pooling: Pooling) -> set[str]:
        nat = Bench(symmetric(pooling=pooling), pool)
        return {found.host for i in range(40) if (found := nat.out(INSIDE, STRANGER.with_port(1000 + i)))}

    assert len(hosts(Pooling.PAIRED)) == 1
    assert len(hosts(Pooling.ARBITRARY)) > 3


def test_ports_are_preserved_unless_another_host_has_them() -> None:
    nat = Bench(NatConfig())
    assert nat.out(INSIDE, SERVER) == Address(EXTERNAL, 5000)
    second = nat.out(OTHER_INSIDE, SERVER)
    assert second is not None
    assert second.port != 5000
    assert second.port >= 1024


def test_well_known_ports_stay_well_known() -> None:
    nat = Bench(NatConfig())
    for host in ("10.0.0.2", "10.0.0.3", "10.0.0.4"):
        external = nat.out(Address(host, 500), SERVER)
        assert external is not None
        assert external.port < 1024


def test_contiguous_ports_skip_taken_ports() -> None:
    nat = Bench(NatConfig(ports=PortAssignment.CONTIGUOUS, mapping=Behavior.APD, port_range=(2000, 2003)))
    found = [nat.out(INSIDE, STRANGER.with_port(i)) for i in range(1, 5)]
    assert [a.port if a else None for a in found] == [2000, 2001, 2002, 2003]
    assert nat.out(INSIDE, STRANGER.with_port(6)) is None
    assert nat.reason == "no port of 198.51.100.1 is free for 10.0.0.2:5000"
    nat.after(121)
    again = nat.out(INSIDE, STRANGER)
    assert again is not None
    assert again.port == 2000


@pytest.mark.parametrize("ports", list(PortAssignment))
@pytest.mark.parametrize("inside", [5000, 5001])
def test_parity_is_preserved_if_configured(ports: PortAssignment, inside: int) -> None:
    nat = Bench(NatConfig(ports=ports, preserve_parity=True, mapping=Behavior.APD))
    found = [nat.out(INSIDE.with_port(inside), STRANGER.with_port(i)) for i in range(1, 30)]
    assert {a.port % 2 for a in found if a} == {inside % 2}
    assert len(set(found)) == 29


def test_random_ports_come_from_the_seed() -> None:
    def ports(seed: int) -> list[int]:
        nat = Bench(symmetric(), seed=seed)
        return [a.port for i in range(20) if (a := nat.out(INSIDE, STRANGER.with_port(1 + i)))]

    assert ports(1) == ports(1)
    assert ports(1) != ports(2)


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(1, 5)), max_size=60))
def test_no_external_endpoint_is_mapped_to_two_inside_ones(seed: int, sends: list[tuple[int, int, int]]) -> None:
    for config in every_class(NatConfig(ports=PortAssignment.RANDOM, port_range=(1024, 1151))):
        nat = Bench(config, seed=seed)
        owner: dict[Address, Address] = {}
        for host, port, peer in sends:
            inside = Address(f"10.0.0.{2 + host}", 5000 + port)
            external = nat.out(inside, Address(f"203.0.113.{peer}", 9))
            assert external is not None
            assert owner.setdefault(external, inside) == inside


# ------------------------------------------------------------------------------------------ REQ-5 and 6: the timers


def test_a_mapping_expires_after_two_minutes_unless_renewed(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER)
    nat.after(119.9)
    assert nat.come(SERVER, external) == INSIDE
    nat.out(INSIDE, SERVER)
    nat.after(119.9)
    assert nat.come(SERVER, external) == INSIDE
    nat.after(0.1)
    assert nat.come(SERVER, external) is None
    assert nat.nat.rows() == []


def test_an_expired_mapping_is_ignored_even_without_a_tick(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER)
    nat.now += 120 * SECOND  # type: ignore[assignment]
    assert nat.come(SERVER, external) is None
    assert nat.reason.startswith("no mapping")


def test_only_outbound_packets_renew_unless_inbound_refresh_is_on(bench: Make) -> None:
    for inbound, alive in ((False, None), (True, INSIDE)):
        nat = bench(inbound_refresh=inbound)
        external = nat.out(INSIDE, SERVER)
        nat.after(100)
        assert nat.come(SERVER, external) == INSIDE
        nat.after(100)
        assert nat.come(SERVER, external) == alive


def test_without_outbound_refresh_a_busy_mapping_expires(bench: Make) -> None:
    nat = bench(outbound_refresh=False)
    external = nat.out(INSIDE, SERVER)
    nat.after(100)
    assert nat.out(INSIDE, SERVER) == external
    nat.after(100)
    assert nat.come(SERVER, external) is None


def test_a_permission_expires_on_its_own_with_the_reason(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER)
    nat.after(60)
    nat.out(INSIDE, STRANGER)
    nat.now += 61 * SECOND  # type: ignore[assignment]
    assert nat.come(STRANGER, external) == INSIDE
    assert nat.come(SERVER, external) is None
    assert nat.reason == (
        "port-restricted filtering: the permission for 203.0.113.1:3478 at 10.0.0.2:5000 expired 1 s ago"
    )


def test_an_expired_permission_is_created_again_even_without_outbound_refresh(bench: Make) -> None:
    nat = bench(outbound_refresh=False, inbound_refresh=True)
    external = nat.out(INSIDE, SERVER)
    nat.out(INSIDE, STRANGER)
    nat.after(100)
    assert nat.come(SERVER, external) == INSIDE
    nat.now += 30 * SECOND  # type: ignore[assignment]
    assert nat.come(STRANGER, external) is None
    assert nat.out(INSIDE, STRANGER) == external
    assert nat.come(STRANGER, external) == INSIDE


def test_an_empty_table_has_no_timer(bench: Make) -> None:
    nat = bench()
    assert nat.nat.next_timer() is None
    nat.out(INSIDE, SERVER)
    assert nat.nat.next_timer() == 120 * SECOND
    nat.after(121)
    assert nat.nat.next_timer() is None


# ------------------------------------------------------------------------------------------------ REQ-9: hairpinning


def test_hairpinned_packets_have_the_external_source(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI)
    one, other = nat.out(INSIDE, SERVER), nat.out(OTHER_INSIDE, SERVER)
    assert nat.hairpin(INSIDE, other) == (one, OTHER_INSIDE)
    assert nat.hairpin(OTHER_INSIDE, one) == (other, INSIDE)


def test_hairpinning_with_the_internal_source_keeps_the_inside_address(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI, hairpinning=Hairpinning.INTERNAL_SOURCE)
    nat.out(INSIDE, SERVER)
    other = nat.out(OTHER_INSIDE, SERVER)
    assert nat.hairpin(INSIDE, other) == (INSIDE, OTHER_INSIDE)


def test_without_hairpinning_the_drop_has_a_reason(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI, hairpinning=Hairpinning.NONE)
    other = nat.out(OTHER_INSIDE, SERVER)
    assert nat.hairpin(INSIDE, other) is None
    assert nat.reason.startswith("hairpinning is off: 198.51.100.1:5000")


def test_a_hairpin_is_filtered_by_the_external_source(bench: Make) -> None:
    nat = bench()
    one, other = nat.out(INSIDE, SERVER), nat.out(OTHER_INSIDE, SERVER)
    assert nat.hairpin(INSIDE, other) is None
    assert nat.hairpin(OTHER_INSIDE, one) == (other, INSIDE)
    assert nat.hairpin(INSIDE, other) == (one, OTHER_INSIDE)


# ------------------------------------------------------------------------------------------------------------- limits


def test_a_full_table_names_its_limit(bench: Make) -> None:
    nat = bench(mapping=Behavior.APD, max_mappings=3, max_mappings_per_host=2)
    assert nat.out(INSIDE, STRANGER.with_port(1))
    assert nat.out(INSIDE, STRANGER.with_port(2))
    assert nat.out(INSIDE, STRANGER.with_port(3)) is None
    assert nat.reason == "10.0.0.2 has reached the limit of 2 mappings per host"
    assert nat.out(OTHER_INSIDE, STRANGER)
    assert nat.out(OTHER_INSIDE, SERVER) is None
    assert nat.reason == "the table is full: it has 3 mappings"
    nat.after(121)
    assert nat.out(OTHER_INSIDE, SERVER)


def test_a_family_without_an_external_address_is_not_translated(bench: Make) -> None:
    nat = bench()
    assert nat.out(Address("fd00::2", 5000), Address("2001:db8::1", 9)) is None
    assert nat.reason == "this NAT has no external address of the family of [2001:db8::1]:9"
    six = Bench(NatConfig(), (EXTERNAL, "2001:db8:1::1"))
    assert six.out(Address("fd00::2", 5000), Address("2001:db8::1", 9)) == Address("2001:db8:1::1", 5000)
    assert six.out(INSIDE, SERVER) == Address(EXTERNAL, 5000)


@pytest.mark.parametrize("bad", [{"port_range": (0, 9)}, {"udp_timeout": 0}, {"max_mappings": 0}])
def test_invalid_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"port_range|udp_timeout|max_mappings"):
        NatConfig(**bad)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- REQ-12: ICMP, RFC 5508 echo


def test_an_icmp_error_from_outside_reaches_the_inside_host_and_removes_no_mapping(bench: Make) -> None:
    nat = bench()
    sent = nat.packet(INSIDE, SERVER)
    nat.nat.outbound(sent, now=nat.now)
    external = sent.source
    error = nat.error_in(sent)
    assert error is not None
    assert error.destination.host == INSIDE.host
    assert error.icmp is not None
    assert error.icmp.about is not None
    assert (error.icmp.about.source, error.icmp.about.destination) == (INSIDE, SERVER)
    assert nat.come(SERVER, external) == INSIDE


def test_an_icmp_error_about_an_unknown_packet_is_dropped(bench: Make) -> None:
    nat = bench()
    assert nat.error_in(nat.packet(Address(EXTERNAL, 9), SERVER), IcmpKind.TTL_EXCEEDED) is None
    assert nat.reason == "an ICMP error about a packet from 198.51.100.1:9, which is mapped to no inside endpoint"


def test_an_icmp_error_renews_nothing(bench: Make) -> None:
    nat = bench(inbound_refresh=True)
    sent = nat.packet(INSIDE, SERVER)
    nat.nat.outbound(sent, now=nat.now)
    external = sent.source
    nat.after(119)
    assert nat.error_in(nat.packet(external, SERVER)) is not None
    nat.after(2)
    assert nat.come(SERVER, external) is None


def test_an_icmp_error_from_inside_shows_only_external_addresses(bench: Make) -> None:
    nat = bench()
    external = nat.out(INSIDE, SERVER)
    assert external is not None
    arrived = nat.packet(SERVER, INSIDE)
    icmp = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=arrived)
    verdict = nat.nat.outbound(
        IpPacket(2, INSIDE.with_port(0), SERVER.with_port(0), Protocol.ICMP, icmp=icmp), now=nat.now
    )
    assert verdict.packet is not None
    assert verdict.packet.source == Address(EXTERNAL, 0)
    assert arrived.destination == external


def test_an_echo_is_mapped_by_its_identifier_for_a_minute(bench: Make) -> None:
    nat = bench()

    def ping(host: str) -> IpPacket:
        icmp = IcmpMessage(identifier=77, sequence=1)
        packet = IpPacket(1, Address(host, 0), Address("203.0.113.1", 0), Protocol.ICMP, icmp=icmp)
        verdict = nat.nat.outbound(packet, now=nat.now)
        assert verdict.packet is not None
        return verdict.packet

    def pong(identifier: int) -> str | None:
        icmp = IcmpMessage(identifier=identifier, sequence=1, reply=True)
        answer = IpPacket(2, Address("203.0.113.1", 0), Address(EXTERNAL, 0), Protocol.ICMP, icmp=icmp)
        verdict = nat.nat.inbound(answer, now=nat.now)
        return None if verdict.packet is None else verdict.packet.destination.host

    one, other = ping("10.0.0.2"), ping("10.0.0.3")
    assert one.icmp is not None
    assert other.icmp is not None
    assert one.icmp.identifier != other.icmp.identifier
    assert pong(one.icmp.identifier) == "10.0.0.2"
    assert pong(other.icmp.identifier) == "10.0.0.3"
    nat.after(61)
    assert pong(one.icmp.identifier) is None


def test_an_echo_request_from_outside_is_dropped(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI)
    echo = IpPacket(1, SERVER.with_port(0), Address(EXTERNAL, 0), Protocol.ICMP, icmp=IcmpMessage(identifier=5))
    assert nat.nat.inbound(echo, now=nat.now).reason == "an echo request from outside, which selects no inside host"


# -------------------------------------------------------------------------------------------------------------- trace


def test_the_trace_has_every_row_that_was_added_or_removed() -> None:
    nat = Bench(symmetric(filter_scope=FilterScope.MAPPING))
    external = nat.out(INSIDE, SERVER)
    mapping = {
        "entry": "mapping", "protocol": "udp", "internal": "10.0.0.2:5000", "external": str(external),
        "remote": "203.0.113.1:3478",
    }  # fmt: skip
    permission = {
        "entry": "permission", "protocol": "udp", "external": str(external), "remote": "203.0.113.1:3478",
    }  # fmt: skip
    assert nat.nat.rows() == [mapping, permission]
    assert nat.diffs() == [([mapping], []), ([permission], [])]
    nat.after(121)
    added = [row for rows, _ in nat.diffs() for row in rows]
    removed = [row for _, rows in nat.diffs() for row in rows]
    assert sorted(map(str, added)) == sorted(map(str, removed))


# ------------------------------------------------------------------------------------------------------------- corners


def test_an_inbound_packet_renews_its_own_permission_alone(bench: Make) -> None:
    nat = bench(outbound_refresh=False, inbound_refresh=True)
    external = nat.out(INSIDE, SERVER)
    nat.out(INSIDE, STRANGER)
    nat.after(100)
    assert nat.come(SERVER, external) == INSIDE
    nat.after(10)
    assert nat.out(INSIDE, STRANGER) == external
    nat.after(20)
    assert nat.come(STRANGER, external) is None


def test_an_expired_mapping_removes_its_permissions_even_without_a_tick() -> None:
    nat = Bench(symmetric(filter_scope=FilterScope.MAPPING))
    external = nat.out(INSIDE, SERVER)
    nat.now += 121 * SECOND  # type: ignore[assignment]
    assert nat.come(SERVER, external) is None
    assert nat.nat.rows() == []
    assert [row["entry"] for row in nat.diffs()[-1][1]] == ["mapping", "permission"]


def test_contiguous_ports_continue_after_the_last_one() -> None:
    nat = Bench(NatConfig(ports=PortAssignment.CONTIGUOUS, mapping=Behavior.APD, port_range=(2000, 2999)))
    for i in range(1, 4):
        nat.out(INSIDE, STRANGER.with_port(i))
    nat.after(121)
    assert nat.out(INSIDE, STRANGER) == Address(EXTERNAL, 2003)


def inside_error(nat: Bench, about: IpPacket) -> IpPacket | None:
    """Send an ICMP error from an inside host about an inbound packet."""
    icmp = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=about)
    back = IpPacket(2, about.destination.with_port(0), about.source.with_port(0), Protocol.ICMP, icmp=icmp)
    verdict = nat.nat.outbound(back, now=nat.now)
    nat.reason = verdict.reason
    return verdict.packet


def test_an_error_about_a_packet_without_a_session_uses_the_only_mapping(bench: Make) -> None:
    nat = bench(mapping=Behavior.APD, filtering=Behavior.EI)
    external = nat.out(INSIDE, SERVER)
    about = nat.packet(STRANGER, INSIDE)
    assert inside_error(nat, about) is not None
    assert about.destination == external
    nat.out(INSIDE, SERVER_OTHER_PORT)
    assert inside_error(nat, nat.packet(STRANGER, INSIDE)) is None
    assert nat.reason == "an ICMP error about a packet to 10.0.0.2:5000, which has no mapping"


def test_an_error_about_a_hairpinned_packet_reaches_its_inside_sender(bench: Make) -> None:
    nat = bench(filtering=Behavior.EI)
    one, other = nat.out(INSIDE, SERVER), nat.out(OTHER_INSIDE, SERVER)
    sent = nat.packet(INSIDE, other)
    nat.nat.outbound(sent, now=nat.now)
    assert (sent.source, sent.destination) == (one, OTHER_INSIDE)
    error = inside_error(nat, sent)
    assert error is not None
    assert (error.source.host, error.destination.host) == (EXTERNAL, INSIDE.host)
    assert (sent.source, sent.destination) == (INSIDE, other)


def test_the_table_shows_mappings_and_permissions_with_their_expiry(bench: Make) -> None:
    nat = bench()
    nat.out(INSIDE, SERVER)
    nat.after(20)
    assert nat.nat.table(now=nat.now).splitlines() == [
        "entry       protocol  local          external           destination       expires in",
        "mapping     udp       10.0.0.2:5000  198.51.100.1:5000  any               100.0 s",
        "permission  udp       10.0.0.2:5000  -                  203.0.113.1:3478  100.0 s",
    ]
