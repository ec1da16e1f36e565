"""The predictions of `nat.rules`: well-known cases, and properties of any correct prediction."""

from dataclasses import replace

import pytest

from polynya.nat import (
    Behavior,
    FilterScope,
    NatConfig,
    PortAssignment,
    every_class,
    full_cone,
    port_restricted_cone,
    restricted_cone,
    symmetric,
)
from polynya.nat.rules import Pair, expect

CLASSES = list(every_class(NatConfig(ports=PortAssignment.RANDOM)))
VARIANTS = [
    {},
    {"filter_scope": FilterScope.MAPPING},
    {"inbound_sessions": True},
    {"filter_scope": FilterScope.MAPPING, "inbound_sessions": True},
]
STRICTER = {Behavior.EI: Behavior.AD, Behavior.AD: Behavior.APD}


def test_the_four_types_of_rfc_3489_connect_as_is_well_known() -> None:
    for other in (full_cone(), restricted_cone(), port_restricted_cone(), symmetric(), None):
        assert expect(full_cone(), other).always
        assert expect(restricted_cone(), other).always
    assert expect(port_restricted_cone(), port_restricted_cone()).always
    assert not expect(port_restricted_cone(), symmetric()).ever
    assert not expect(symmetric(), symmetric()).ever


def test_a_public_host_connects_through_every_nat() -> None:
    for config in CLASSES:
        assert expect(None, config).always
        assert expect(config, None).always


def test_a_stateful_firewall_counts_as_a_nat_that_keeps_the_port() -> None:
    wall = NatConfig(mapping=Behavior.EI, filtering=Behavior.APD)
    assert expect(wall, wall).always
    assert not expect(wall, symmetric()).ever


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prediction_is_symmetric(variant: dict[str, object]) -> None:
    for one in every_class(NatConfig(**variant)):  # type: ignore[arg-type]
        for other in every_class(NatConfig(**variant)):  # type: ignore[arg-type]
            forth, back = expect(one, other), expect(other, one)
            assert (forth.always, forth.ever) == (back.always, back.ever)


@pytest.mark.parametrize("scope", list(FilterScope))
def test_a_stricter_filter_never_helps(scope: FilterScope) -> None:
    classes = list(every_class(NatConfig(filter_scope=scope)))
    for one in classes:
        for other in classes:
            if (strict := STRICTER.get(one.filtering)) is not None:
                assert expect(one, other).ever >= expect(replace(one, filtering=strict), other).ever


def test_permissions_of_the_mapping_alone_never_help() -> None:
    for one in CLASSES:
        for other in CLASSES:
            narrow = expect(
                replace(one, filter_scope=FilterScope.MAPPING), replace(other, filter_scope=FilterScope.MAPPING)
            )
            assert expect(one, other).always >= narrow.always


def test_the_order_matters_only_if_inbound_packets_create_sessions() -> None:
    assert all(expect(one, other).sure for one in CLASSES for other in CLASSES)
    sessions = [replace(config, inbound_sessions=True) for config in CLASSES]
    unsure = [(a.label, b.label) for a in sessions for b in sessions if not expect(a, b).sure]
    assert ("EI/APD", "AD/EI") in unsure


def test_the_working_pairs_are_named_by_the_types_of_their_candidates() -> None:
    both = Pair(side=0, local="srflx", remote="srflx"), Pair(side=1, local="srflx", remote="srflx")
    assert expect(port_restricted_cone(), port_restricted_cone()).pairs == both
    # the symmetric side is reached only at the source endpoint of its own check
    found = expect(restricted_cone(), symmetric()).pairs
    assert Pair(side=0, local="srflx", remote="prflx") in found
    assert Pair(side=1, local="prflx", remote="srflx") in found
    assert Pair(side=0, local="srflx", remote="srflx") not in found
