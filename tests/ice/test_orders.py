"""Both sides end on one pair in every order of packets (RFC 8445, section 8.1.1): all orders are tried, none is drawn.

Each search is over one small world and ends when nothing new can happen. The number of points is asserted, so that a
change that quietly makes a search smaller is seen.
"""

from __future__ import annotations

from typing import Any

import pytest

from polynya.ice import IceConfig, NominationPolicy, Renomination
from polynya.ice.checklist import ChecklistSet
from tests.ice.orders import Budget, Found, Orders, search

pytestmark = pytest.mark.slow


def config(controlling: bool, **more: Any) -> IceConfig:
    once = {"nomination": NominationPolicy.immediate(), "renomination": None}
    return IceConfig(controlling=controlling, consent=False, **(once | more))


def every(budget: Budget, a: IceConfig, b: IceConfig, **world: Any) -> Found:
    return search(lambda: Orders(budget, a, b, **world), limit=20_000)


@pytest.mark.parametrize(
    ("a", "b", "least"),
    [(True, False, 300), (True, True, 700), (False, False, 400)],
    ids=["one controls", "both controlling", "both controlled"],
)
def test_every_order_of_packets_ends_on_one_pair(a: bool, b: bool, least: int) -> None:
    """Conflicts of roles (section 7.3.1.1) are decided in every order, too."""
    found = every(Budget(), config(a), config(b))
    assert found.faults == []
    assert found.points > least


@pytest.mark.parametrize(
    ("budget", "least"),
    [(Budget(losses=1), 700), (Budget(duplicates=1, overtakes=1), 2000), (Budget(late=1, overtakes=0), 800)],
    ids=["one is lost", "one comes twice", "a timer fires before them"],
)
def test_so_it_does_whatever_becomes_of_one_packet(budget: Budget, least: int) -> None:
    found = every(budget, config(True), config(False))
    assert found.faults == []
    assert found.points > least


def test_a_lite_agent_is_found_in_every_order() -> None:
    """Section 7.3.2."""
    found = every(Budget(losses=1), config(True), config(False, lite=True))
    assert found.faults == []
    assert found.points > 30


@pytest.mark.parametrize(("aggressive", "least"), [(True, 200), (False, 300)], ids=["early", "regular"])
def test_a_peer_of_rfc_5245_makes_no_difference(aggressive: bool, least: int) -> None:
    """An early nomination needs fewer packets."""
    found = every(Budget(), *(config(controls, options=(), aggressive=aggressive) for controls in (True, False)))
    assert found.faults == []
    assert found.points > least


def test_candidates_that_trickle_come_before_and_after_everything_else() -> None:
    """RFC 8838: the description, a candidate and the end of each side, among the checks."""
    found = every(Budget(overtakes=1), config(True), config(False), trickle=True)
    assert found.faults == []
    assert found.points > 500


def test_of_two_pairs_both_sides_take_the_same_one() -> None:
    """pion/ice#28: two sides that ended on different pairs."""
    found = every(Budget(overtakes=0), config(True), config(False), hosts=(1, 2))
    assert found.faults == []
    assert found.points > 4000


def test_a_change_of_role_at_any_moment_leaves_both_on_one_pair() -> None:
    """Section 6.1.1: by hand, before, between and after the nomination."""
    found = every(Budget(turns=1, overtakes=0), config(True), config(False))
    assert found.faults == []
    assert found.points > 2000


@pytest.mark.parametrize("conflict", [False, True])
def test_so_it_does_where_nominations_are_numbered(conflict: bool) -> None:
    """draft-thatcher-ice-renomination: the new controlling agent counts from 1 again, and the other side accepts it."""
    at_once = Renomination(settle=0)
    found = every(
        Budget(turns=1, overtakes=0), config(True, renomination=at_once), config(conflict, renomination=at_once)
    )
    assert found.faults == []
    assert found.points > 3000


def test_a_restart_at_any_moment_ends_on_one_pair() -> None:
    """Section 9."""
    found = every(Budget(restarts=("b",), overtakes=0), config(True), config(False))
    assert found.faults == []
    assert found.points > 4000


def test_a_nomination_that_changes_is_followed_in_every_order() -> None:
    """draft-thatcher-ice-renomination, section 4."""
    at_once = Renomination(settle=0)
    found = every(
        Budget(overtakes=0), config(True, renomination=at_once), config(False, renomination=at_once), hosts=(1, 2)
    )
    assert found.faults == []
    assert found.points > 4000


def test_the_search_finds_a_fault_that_needs_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control: an agent that forgets a nomination that comes before its own check was answered."""
    whole = ChecklistSet.nominate

    def forgetful(self: ChecklistSet, pair: Any, reason: str, **rest: Any) -> None:
        if reason != "the other side had nominated it":
            whole(self, pair, reason, **rest)

    monkeypatch.setattr(ChecklistSet, "nominate", forgetful)
    found = every(Budget(), config(True), config(False))
    assert len(found.faults) == 1 and "there is no end" in found.faults[0]
