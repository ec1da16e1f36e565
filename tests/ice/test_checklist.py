"""Formation, limits, freezing and scheduling of pairs (RFC 8445, sections 6.1.2 and 6.1.4; RFC 8838, section 12)."""

from __future__ import annotations

from typing import Any

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, Instant
from polynya.ice.candidates import Candidate, CandidateType, LocalCandidate
from polynya.ice.checklist import ChecklistSet, path_address
from polynya.ice.pairs import Pair, PairEvent, PairState
from polynya.stun.transactions import Transactions
from tests.ice.conftest import Make, context

NOW = Instant(0)


def checklists(*components: int, limit: int = 100, **options: Any) -> ChecklistSet:
    return ChecklistSet(components or (1,), context(pair_limit=limit, **options), Transactions())


def add(lists: ChecklistSet, local: LocalCandidate, remote: Candidate) -> Pair:
    made = lists.pair(local, remote, "test", now=NOW)
    assert made is not None
    return made


def states(lists: ChecklistSet) -> list[str]:
    return [made.state.value for made in lists]


# ------------------------------------------------------------------------------------------------------------ formation


def test_pairs_are_made_of_what_fits(make: Make) -> None:
    """Section 6.1.2.2: same component, family and transport; link-local with link-local only."""
    assert path_address(make.local(), make.remote()) == Address("192.0.2.1", 6000)
    assert path_address(make.local(), make.remote(component=2)) is None
    assert path_address(make.local(), make.remote(host="2001:db8::1")) is None
    assert path_address(make.local(), make.remote(transport="tcp")) is None
    assert path_address(make.local(host="2001:db8::2"), make.remote(host="fe80::1")) is None
    assert path_address(make.local(host="fe80::2%eth0"), make.remote(host="2001:db8::1")) is None


def test_a_link_local_address_is_reached_by_the_zone_of_our_own(make: Make) -> None:
    """RFC 4007: the zone of the other host means nothing here."""
    made = path_address(make.local(host="fe80::2%eth0"), make.remote(host="fe80::1"))
    assert made == Address("fe80::1", 6000, "eth0")


def test_addresses_that_must_not_be_sent_to_are_not_paired(make: Make) -> None:
    """A peer cannot make us send to our own loopback, to a group, or to nowhere."""
    for host in ("127.0.0.1", "224.0.0.1", "0.0.0.0"):
        assert path_address(make.local(), make.remote(host=host)) is None
    assert path_address(make.local(), make.remote(address=Address("192.0.2.1", 0))) is None
    assert path_address(make.local(host="127.0.0.1"), make.remote(host="127.0.0.2")) is not None
    assert path_address(make.local(host="127.0.0.1"), make.remote()) is None


def test_a_path_has_one_pair(make: Make) -> None:
    """Section 6.1.2.4: pairs with the same base and remote candidate are redundant."""
    lists = checklists()
    add(lists, make.local(), make.remote())
    assert lists.pair(make.local(), make.remote(foundation="other"), "again", now=NOW) is None


def test_pairs_are_kept_in_the_order_of_their_priority(make: Make) -> None:
    lists = checklists()
    for n in (3, 1, 2):
        add(lists, make.local(n), make.remote(n))
    assert [made.local.base.host for made in lists] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_the_limit_drops_the_pairs_of_lowest_priority(make: Make) -> None:
    """Section 6.1.2.5."""
    shared = context(pair_limit=3)
    lists = ChecklistSet((1,), shared, Transactions())
    for n in (5, 1, 3):
        add(lists, make.local(n), make.remote(n))
    assert lists.pair(make.local(9), make.remote(9), "worse", now=NOW) is None
    add(lists, make.local(2), make.remote(2))
    assert [made.local.base.host for made in lists] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert shared.outbox.counters["pairs over the limit"] == 2


def test_failed_pairs_make_room_before_any_other(make: Make) -> None:
    """RFC 8838, sections 10 and 11: whatever their priority; but not the one whose consent was lost (RFC 7675, 5.1)."""
    lists = checklists(limit=3)
    lost, failed, waiting = (add(lists, make.local(n), make.remote(n)) for n in (1, 2, 3))
    lost.state = failed.state = PairState.FAILED
    lost.revoked = True
    added = add(lists, make.local(9), make.remote(9))
    assert list(lists) == [lost, waiting, added]


def test_the_limit_never_drops_what_is_under_way_or_valid_and_an_authenticated_check_gets_its_pair(make: Make) -> None:
    lists = checklists(limit=2)
    best, worst = add(lists, make.local(1), make.remote(1)), add(lists, make.local(8), make.remote(8))
    worst.state = PairState.SUCCEEDED
    assert lists.pair(make.local(9), make.remote(9), "heard", now=NOW, force=True) is not None
    assert worst in list(lists) and best not in list(lists)
    for made in lists:
        made.state = PairState.IN_PROGRESS
    assert lists.pair(make.local(7), make.remote(7), "heard", now=NOW, force=True) is not None
    assert len(list(lists)) == 3


def test_the_limit_is_shared_by_the_checklists(make: Make) -> None:
    lists = checklists(1, 1, limit=4)
    for n in range(1, 6):
        lists.pair(make.local(n), make.remote(n), "", now=NOW)
    assert len(lists.lists[0].pairs) == 2
    one_was_removed = checklists(2, 0, limit=4)
    for n in range(1, 6):
        one_was_removed.pair(make.local(n), make.remote(n), "", now=NOW)
    assert len(one_was_removed.lists[0].pairs) == 4


# ------------------------------------------------------------------------------------------------------------- freezing


def test_one_pair_of_each_foundation_begins(make: Make) -> None:
    """Section 6.1.2.6: lowest component first, then highest priority; in the order of the checklists."""
    lists = checklists(2, 1)
    made = [
        add(lists, make.local(1, stream=1, foundation="f"), make.remote(1, foundation="g")),
        add(lists, make.local(1, component=2, foundation="f"), make.remote(1, component=2, foundation="g")),
        add(lists, make.local(2, foundation="f"), make.remote(1, foundation="g")),
        add(lists, make.local(1, foundation="f"), make.remote(1, foundation="g")),
        add(lists, make.local(3, stream=1, foundation="h"), make.remote(3, foundation="g")),
    ]
    assert [one.state for one in made] == [
        PairState.FROZEN,
        PairState.FROZEN,
        PairState.FROZEN,
        PairState.WAITING,
        PairState.WAITING,
    ]


def test_a_foundation_that_several_hosts_share_delays_none_of_them(make: Make) -> None:
    """mediasoup signals one foundation for all its candidates: thirty dead better ones took 15 s."""
    lists = checklists()
    made = [add(lists, make.local(), make.remote(n, foundation="udpcandidate")) for n in range(1, 32)]
    assert {one.state for one in made} == {PairState.WAITING}
    assert (
        add(lists, make.local(), make.remote(1, foundation="udpcandidate", address=Address("192.0.2.1", 7))).state
        is PairState.FROZEN
    )


def test_a_success_unfreezes_its_foundation_in_every_checklist(make: Make) -> None:
    """Section 7.2.5.3.3."""
    lists = checklists(2, 1)
    first = add(lists, make.local(1, foundation="f"), make.remote(1, foundation="g"))
    second = add(lists, make.local(1, component=2, foundation="f"), make.remote(1, component=2, foundation="g"))
    third = add(lists, make.local(1, stream=1, foundation="f"), make.remote(1, foundation="g"))
    lists.succeeded(first, "answered", now=NOW, packet=0)
    assert second.state is third.state is PairState.WAITING


def test_a_late_pair_of_a_foundation_that_works_waits_for_nothing(make: Make) -> None:
    """RFC 8838, section 12."""
    lists = checklists(2)
    add(lists, make.local(1, foundation="f"), make.remote(1, foundation="g")).state = PairState.SUCCEEDED
    late = add(lists, make.local(1, component=2, foundation="f"), make.remote(1, component=2, foundation="g"))
    assert late.state is PairState.WAITING


def test_a_failed_foundation_goes_on_with_its_next_pair(make: Make) -> None:
    """Section 6.1.4.2: a Frozen pair is unfrozen when nothing of its foundation is waiting or under way."""
    lists = checklists()
    first = add(lists, make.local(1, foundation="f"), make.remote(1, foundation="g"))
    second = add(lists, make.local(2, foundation="f"), make.remote(1, foundation="g"))
    assert lists.next_check(now=NOW) == (first, False)
    lists.move(first, PairEvent.CHECK_SENT, "", now=NOW)
    assert lists.next_check(now=NOW) is None and not lists.has_work(now=NOW)
    lists.move(first, PairEvent.FAILED, "", now=NOW)
    assert lists.has_work(now=NOW)
    assert lists.next_check(now=NOW) == (second, False)
    assert second.state is PairState.WAITING


# ------------------------------------------------------------------------------------------------------------- schedule


def test_a_check_that_is_under_way_for_an_rto_blocks_no_other(make: Make) -> None:
    """A deviation from section 6.1.4.2: one that cannot work runs for 39.5 s."""
    lists = checklists()
    first = add(lists, make.local(1, foundation="f"), make.remote(1, foundation="g"))
    second = add(lists, make.local(2, foundation="f"), make.remote(1, foundation="g"))
    assert lists.next_check(now=NOW) == (first, False)
    first.apply(PairEvent.CHECK_SENT, "sent", now=NOW)
    first.checked_at = NOW
    before, after = Instant(NOW + 499 * MILLISECOND), Instant(NOW + 500 * MILLISECOND)
    assert not lists.has_work(now=before) and lists.next_check(now=before) is None
    assert lists.has_work(now=after) and lists.next_check(now=after) == (second, False)


def test_triggered_checks_go_first_in_the_order_they_came(make: Make) -> None:
    """Section 6.1.4.2."""
    lists = checklists()
    made = [add(lists, make.local(n), make.remote(n)) for n in range(1, 5)]
    for one in (made[3], made[2], made[3]):
        lists.lists[0].trigger(one)
    assert lists.next_check(now=NOW) == (made[3], True)
    assert lists.next_check(now=NOW) == (made[2], True)
    assert lists.next_check(now=NOW) == (made[0], False)


def test_checklists_take_turns_and_an_idle_one_uses_up_no_slot(make: Make) -> None:
    lists = checklists(1, 1, 1)
    made = [add(lists, make.local(n + stream, stream=stream), make.remote(n)) for stream in (0, 2) for n in (1, 2)]
    order = []
    while (found := lists.next_check(now=NOW)) is not None:
        order.append(made.index(found[0]))
        lists.move(found[0], PairEvent.CHECK_SENT, "", now=NOW)
    assert order == [0, 2, 1, 3]


def test_a_nomination_sets_aside_what_is_open_for_its_component_only(make: Make) -> None:
    """Section 8.1.2."""
    lists = checklists(2)
    chosen, other = add(lists, make.local(2), make.remote(2)), add(lists, make.local(1), make.remote(1))
    elsewhere = add(lists, make.local(3, component=2), make.remote(3, component=2))
    lists.move(chosen, PairEvent.ANSWERED, "", now=NOW)
    chosen.flag(valid=True, nominated=True)
    lists.lists[0].trigger(other)
    lists.set_aside(chosen, now=NOW)
    assert (other.state, elsewhere.state) == (PairState.FROZEN, PairState.WAITING)
    assert lists.lists[0].triggered == []
    assert lists.next_check(now=NOW) == (elsewhere, False)


def test_an_aggressive_peer_may_still_nominate_a_better_pair(make: Make) -> None:
    """RFC 5245, section 8.1.2: only what is worse than the nominated pair is given up."""
    lists = checklists(controlling=False)
    lists.several = True
    best, chosen, worst = (add(lists, make.local(n), make.remote(n)) for n in (1, 2, 3))
    lists.move(chosen, PairEvent.ANSWERED, "", now=NOW)
    lists.set_aside(chosen, now=NOW)
    assert (best.state, worst.state) == (PairState.WAITING, PairState.FROZEN)


def test_a_change_of_role_sorts_the_pairs_again(make: Make) -> None:
    """Section 7.3.1.1: the last bit of a priority is the controlling side's."""
    shared = context()
    lists = ChecklistSet((1,), shared, Transactions())
    better_remote = add(lists, make.local(2), make.remote(1))
    better_local = add(lists, make.local(1), make.remote(2))
    assert list(lists) == [better_local, better_remote]
    shared.role.controlling = False
    lists.prioritize()
    assert list(lists) == [better_remote, better_local]


def test_server_reflexive_remotes_rank_below_hosts(make: Make) -> None:
    lists = checklists()
    low = add(lists, make.local(1), make.remote(1, type=CandidateType.SERVER_REFLEXIVE))
    high = add(lists, make.local(2), make.remote(9))
    assert list(lists) == [high, low]
    assert states(lists) == ["waiting", "waiting"]
