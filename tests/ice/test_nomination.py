"""When which pair is nominated (RFC 8445, section 8.1.1): the rule at the top of nomination.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice import CandidateType, NominationPolicy, PairState
from polynya.ice.nomination import Decision, regular
from polynya.ice.pairs import Pair
from tests.ice.conftest import Make
from tests.ice.harness import World, behind_nats, plain

TA = 50 * MILLISECOND
POLICY = NominationPolicy()


def pair(n: int, state: PairState, *, valid_at: int | None = None, tried_at: int | None = None, rtt: int = 0) -> Pair:
    """Pair `n`, the lower the better; times in milliseconds."""
    make = Make()
    made = Pair(n, make.local(n), make.remote(n), make.remote(n).address)
    made.prioritize(True)
    made.state = state
    made.rtt = rtt * MILLISECOND
    if valid_at is not None:
        made.valid_at = Instant(valid_at * MILLISECOND)
        made.flag(valid=True)
    if tried_at is not None:
        made.tried_at = Instant(tried_at * MILLISECOND)
    return made


def decide(*pairs: Pair, more: bool = True, policy: NominationPolicy = POLICY, **options: bool) -> Decision | None:
    return regular(policy, pairs, ta=TA, more_may_come=more, **options)


def at(decision: Decision | None) -> float:
    assert decision is not None
    return decision.at / MILLISECOND


def test_nothing_is_nominated_without_a_valid_pair() -> None:
    assert decide(pair(1, PairState.IN_PROGRESS, tried_at=0)) is None


def test_at_once_when_no_better_pair_can_come() -> None:
    """algesten/str0m#405: a dead candidate adds no delay."""
    decision = decide(
        pair(1, PairState.FAILED), pair(2, PairState.SUCCEEDED, valid_at=100, rtt=500), pair(3, PairState.IN_PROGRESS),
        more=False,
    )  # fmt: skip
    assert decision is not None
    assert (at(decision), decision.pair.id, decision.reason) == (100, 2, "no better pair can come")


def test_otherwise_after_a_round_trip_and_no_less_than_ta() -> None:
    assert at(decide(pair(1, PairState.SUCCEEDED, valid_at=100, rtt=10))) == 150
    assert at(decide(pair(1, PairState.SUCCEEDED, valid_at=100, rtt=400))) == 500


def test_a_better_pair_gets_the_time_of_one_answer_from_when_it_was_tried() -> None:
    better = pair(1, PairState.IN_PROGRESS, tried_at=250)
    assert at(decide(better, pair(2, PairState.SUCCEEDED, valid_at=100, rtt=80))) == 330


def test_a_better_pair_that_had_the_time_of_one_answer_is_not_waited_for() -> None:
    """Behind two NATs the checks between the host candidates are long sent and lost when the first pair is valid."""
    dead = pair(1, PairState.IN_PROGRESS, tried_at=0)
    assert at(decide(dead, pair(2, PairState.SUCCEEDED, valid_at=233, rtt=100), more=False)) == 233
    assert at(decide(dead, pair(2, PairState.SUCCEEDED, valid_at=233, rtt=100), more=True)) == 333
    late = pair(1, PairState.IN_PROGRESS, tried_at=200)
    assert at(decide(late, pair(2, PairState.SUCCEEDED, valid_at=233, rtt=100), more=False)) == 300


def test_a_better_pair_that_was_not_tried_is_waited_for_an_rto() -> None:
    for state in (PairState.WAITING, PairState.FROZEN):
        assert at(decide(pair(1, state), pair(2, PairState.SUCCEEDED, valid_at=100, rtt=1))) == 600


def test_a_pair_that_the_other_side_has_not_checked_is_nominated_after_those_that_it_has() -> None:
    """An agent of RFC 5245 uses no pair before its own check was answered."""
    silent = pair(1, PairState.SUCCEEDED, valid_at=100, rtt=50)
    heard = pair(2, PairState.SUCCEEDED, valid_at=150, rtt=50)
    heard.flag(readable=True)
    decision = decide(silent, heard, more=False, heard=True, final=False)
    assert (at(decision), decision and decision.pair.id) == (150, 2)
    assert at(decide(silent, more=False, heard=True, final=False)) == 600
    by_relay = relayed(2, valid_at=150, rtt=50)
    by_relay.flag(readable=True)
    decision = decide(silent, by_relay, more=False, heard=True, final=False)
    assert (at(decision), decision and decision.pair.id) == (600, 2), "a direct pair has the time of a second check"


def test_never_later_than_the_bound_after_the_first_valid_pair() -> None:
    first = pair(2, PairState.SUCCEEDED, valid_at=100, rtt=5_000)
    best = pair(1, PairState.SUCCEEDED, valid_at=900, rtt=5_000)
    assert at(decide(best, first)) == 1100
    assert decide(best, first).pair is best  # type: ignore[union-attr]


def relayed(n: int, **times: int) -> Pair:
    """A valid pair by a relay of ours."""
    made = pair(n, PairState.SUCCEEDED, **times)
    made.local = replace(made.local, candidate=replace(made.local.candidate, type=CandidateType.RELAYED))
    assert made.relayed
    return made


def test_a_direct_pair_has_the_time_of_a_second_check_before_a_relay_is_nominated() -> None:
    """schollz/croc#104: everything was relayed, since the first check had only opened a filter."""
    direct = pair(1, PairState.IN_PROGRESS, tried_at=250)
    assert at(decide(direct, relayed(2, valid_at=100, rtt=80))) == 250 + 80 + 500
    assert at(decide(direct, relayed(2, valid_at=100, rtt=5_000))) == 1600, "no later than the bound for that"
    assert at(decide(pair(1, PairState.FAILED), relayed(2, valid_at=100, rtt=80))) == 180


def test_if_another_pair_can_be_nominated_later_a_relay_waits_for_one_answer_only() -> None:
    direct = pair(1, PairState.IN_PROGRESS, tried_at=250)
    assert at(decide(direct, relayed(2, valid_at=100, rtt=80), final=False)) == 250 + 80
    assert at(decide(direct, relayed(2, valid_at=400, rtt=80), final=False, more=False)) == 400


def test_where_the_round_trip_is_not_known_it_is_no_more_than_the_wait_for_the_answer() -> None:
    best = pair(2, PairState.SUCCEEDED, tried_at=100, valid_at=900)
    best.rtt = None  # it was sent twice, and the answer may be to either
    assert at(decide(pair(1, PairState.IN_PROGRESS, tried_at=950), best)) == 1750


def test_the_best_valid_pair_is_nominated_not_the_first() -> None:
    decision = decide(
        pair(1, PairState.SUCCEEDED, valid_at=200), pair(2, PairState.SUCCEEDED, valid_at=100), more=False
    )
    assert decision is not None and decision.pair.id == 1


def test_a_relay_only_agent_waits_for_nothing() -> None:
    """pion/ice#324, livekit/livekit#4835: relay-only sessions waited for other candidates."""
    decision = decide(
        pair(1, PairState.WAITING), pair(2, PairState.SUCCEEDED, valid_at=100, rtt=300),
        policy=NominationPolicy.immediate(),
    )  # fmt: skip
    assert at(decision) == 100


def test_terms_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="zero or more"):
        NominationPolicy(bound=-1)


def nominated_after_valid(world: World) -> float:
    """Seconds from the controlling side's first valid pair to its nominated one."""
    from polynya.ice import SelectedPairChanged

    first = world.a.when(SelectedPairChanged)
    return (world.a.when(SelectedPairChanged, lambda event: event.nominated) - first) / SECOND


def test_two_hosts_without_alternatives_nominate_within_one_more_round_trip() -> None:
    world = plain(delay=20 * MILLISECOND)
    assert world.connect(5)
    assert nominated_after_valid(world) == pytest.approx(0.040, abs=0.006)


def test_a_dead_better_candidate_delays_the_nomination_by_a_round_trip_at_most() -> None:
    """algesten/str0m#405: each dead candidate added delay. The unreachable host pairs here are better than the rest."""
    world = behind_nats(delay=20 * MILLISECOND)
    assert world.connect(5)
    assert nominated_after_valid(world) < 0.2


def test_a_one_way_path_is_not_chosen() -> None:
    """espressif/esp-webrtc-solution#179: a pair chosen on an inbound request alone hung on a one-way path.

    The best path carries packets from b to a only; both sides have to end on the other.
    """
    world = World()
    world.blocked = lambda packet: packet.source.host == "192.168.0.1" and packet.sender == "a"
    world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    assert world.a.path == "host 192.168.0.11:5000 -> host 192.168.0.2:5000"
    assert world.same_path()
    one_way = [view for view in world.b.agent.pairs() if view.remote_address.host == "192.168.0.1"]
    assert not any(view.valid for view in one_way)


def test_the_controlled_side_uses_the_nominated_pair_after_its_own_check_only() -> None:
    """RFC 8445, section 7.3.1.5: a pair that was nominated before its check was answered is so afterwards."""
    world = plain()
    assert world.connect(5)
    for side in (world.a, world.b):
        assert all(view.valid for view in side.agent.pairs() if view.nominated)
    selected = world.trace
    flagged = [event for event in selected if event.kind == "pair-flags" and event.fields["nominated"]]
    assert flagged and all(event.fields["valid"] and event.fields["writable"] for event in flagged)
