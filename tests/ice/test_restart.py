"""Restarts (RFC 8445, section 9): from either side, at any time, crossing."""

from __future__ import annotations

from functools import partial

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Closed
from polynya.ice import (
    AgentState,
    Description,
    Failed,
    IceConfig,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    NominationPolicy,
    RemoteRevoked,
    Restarted,
    SelectedPairChanged,
)
from polynya.stun.attributes import USERNAME
from polynya.stun.registry import Class
from tests.ice.harness import Side, World, plain


def generations(world: World) -> tuple[int, int]:
    return world.a.agent.local_description.generation, world.b.agent.local_description.generation


def settled(world: World, seconds: float = 20) -> bool:
    """Both sides completed, in one generation, on one path."""
    return world.run(
        seconds,
        lambda: (
            world.a.agent.state is world.b.agent.state is AgentState.COMPLETED
            and generations(world)[0] == generations(world)[1]
            and len(world.a.agent.generations) == len(world.b.agent.generations) == 1
        ),
    ) and world.run(0.5, world.same_path)


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restart_of_either_side_gives_both_new_credentials(who: str) -> None:
    """aiortc/aiortc#211, #1367, paullouisageneau/libjuice#130."""
    world = plain()
    assert settled(world)
    before = (world.a.agent.local_description, world.b.agent.local_description)
    side = world.a if who == "a" else world.b
    description = side.agent.restart(now=world.now)
    assert description is side.agent.local_description
    assert settled(world)
    after = (world.a.agent.local_description, world.b.agent.local_description)
    assert generations(world) == (1, 1)
    for old, new in zip(before, after, strict=True):
        assert old.ufrag != new.ufrag and old.password != new.password


def test_candidates_are_signaled_again_with_the_new_generation() -> None:
    world = plain()
    settled(world)
    world.a.agent.restart(now=world.now)
    settled(world)
    first, second = world.a.of(LocalCandidateAdded)
    assert (first.candidate.generation, second.candidate.generation) == (0, 1)
    assert second.candidate.extensions == (("ufrag", world.a.agent.local_description.ufrag),)
    assert [event.generation for event in world.a.of(LocalCandidatesEnded)] == [0, 1]


def test_the_old_pair_carries_data_until_a_new_one_is_nominated() -> None:
    world = plain()
    settled(world)
    old = world.a.agent.selected()
    assert old is not None
    world.a.agent.restart(now=world.now)
    world.b.trickle = world.a.trickle = False
    world.run(60)
    assert world.a.agent.selected() is not None
    assert world.a.agent.selected().id == old.id  # type: ignore[union-attr]
    assert not world.a.of(RemoteRevoked)
    world.a.trickle = world.b.trickle = True
    world.describe(world.a)
    for event in world.a.of(LocalCandidateAdded):
        world.signal(world.a, event)
    assert settled(world)
    assert world.a.agent.selected().id != old.id  # type: ignore[union-attr]
    pairs = [event.pair for event in world.a.of(SelectedPairChanged)]
    assert None not in pairs


def test_data_moves_from_an_old_pair_that_is_silent_before_a_new_one_is_nominated() -> None:
    """The other side has moved to another network, and settling on the best pair takes a while."""
    slow = NominationPolicy(minimum=5.0, bound=5.0)
    world = plain(a=IceConfig(controlling=True, nomination=slow), b=IceConfig(controlling=False))
    assert settled(world)
    [moving] = [local.flow for local in world.b.agent.local_candidates()]
    world.b.host("192.168.0.77")
    gone = Closed(flow=moving, reason="its address is gone from this host")
    del world.b.sockets[moving]
    world.b.agent.restart(now=world.now, gone=[gone])
    began = world.now
    assert world.b.agent.selected() is None and world.b.agent.state is AgentState.CHECKING
    assert world.run(4, lambda: world.a.path.endswith("192.168.0.77:5000"))
    selected = world.a.agent.selected()
    assert selected is not None and not selected.nominated
    assert world.now - began < SECOND
    assert settled(world)


def test_a_restart_that_loses_every_address_ends_nothing() -> None:
    """The patience of the first generation is over long ago."""
    world = plain()
    assert settled(world)
    world.run(120)
    gone = [Closed(flow=local.flow, reason="gone") for local in world.a.agent.local_candidates()]
    world.a.agent.restart(now=world.now, gone=gone)
    assert world.a.agent.state is AgentState.CHECKING and not world.a.agent.local_candidates()
    assert not world.a.of(Failed)
    world.a.sockets.clear()
    world.a.host("192.168.0.77")
    assert settled(world)


def test_a_restart_without_a_path_or_an_answer_fails_in_time() -> None:
    world = plain()
    assert settled(world)
    world.a.trickle = False
    gone = [Closed(flow=local.flow, reason="gone") for local in world.a.agent.local_candidates()]
    world.a.agent.restart(now=world.now, gone=gone)
    world.run(89)
    assert world.a.agent.state is AgentState.CHECKING
    world.run(2)
    assert world.a.agent.state is AgentState.FAILED
    assert world.a.agent.reason == "the other side did not answer the restart within 90 s"


def test_old_checks_are_answered_until_then() -> None:
    """Consent of the old generation goes on while the new one is not there (section 9)."""
    world = plain()
    settled(world)
    world.a.trickle = False
    world.a.agent.restart(now=world.now)
    world.run(120)
    assert world.b.agent.state is AgentState.COMPLETED
    assert world.a.agent.selected() is not None


@pytest.mark.parametrize("apart", [0, 1, 5, 30, 100])
def test_restarts_that_cross_end_on_one_generation(apart: int) -> None:
    world = plain()
    settled(world)
    world.a.agent.restart(now=world.now)
    world.later(apart * MILLISECOND, lambda: world.b.agent.restart(now=world.now) and None)
    assert settled(world)
    assert sum(len(side.of(Restarted)) for side in (world.a, world.b)) <= 4


def test_descriptions_that_overtake_each_other_lose_no_nomination() -> None:
    """Found by exploration (seed 34): the check that nominates came before its description, an older one in between."""
    world = plain(signaling=1000 * MILLISECOND)
    assert settled(world)
    world.b.agent.restart(now=world.now)
    world.run(0.877)
    world.b.agent.restart(now=world.now)
    assert settled(world)
    assert generations(world) == (2, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_role_that_changes_during_a_restart_does_not_stop_it(who: str, seed: int) -> None:
    """Found by exploration (seeds 1467, 2234): all pairs had succeeded, and only old checks still showed the role."""
    slow = NominationPolicy(minimum=1.0)
    world = World(
        seed, a=IceConfig(controlling=True, nomination=slow), b=IceConfig(controlling=False, nomination=slow)
    )  # fmt: skip
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    assert settled(world)
    world.b.agent.restart(now=world.now)
    world.run(0.5)
    assert world.a.agent.state is world.b.agent.state is AgentState.CONNECTED
    side = world.a if who == "a" else world.b
    side.agent.set_controlling(not side.agent.controlling, now=world.now)
    assert settled(world, 40)
    assert world.a.agent.controlling is not world.b.agent.controlling


@pytest.mark.parametrize("seed", range(4))
def test_a_nomination_that_came_while_the_role_was_another_is_repeated(seed: int) -> None:
    """Found by exploration (seeds 203465, 207532, 208981, 209625): the check that nominates was kept for a description
    that came after a change of role, which a 487 then undid; only the one that nominates knew of the nomination."""
    world = World(seed, signaling=1000 * MILLISECOND, a=IceConfig(controlling=False), b=IceConfig(controlling=True))
    world.a.agent.role.tie_breaker, world.b.agent.role.tie_breaker = 1, 2
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    assert settled(world)
    world.a.agent.restart(now=world.now)
    assert world.run(3, lambda: generations(world)[1] == 1 and world.b.agent.state is AgentState.COMPLETED)
    world.run(0.1)
    assert world.a.agent.remote_description is None
    world.a.agent.set_controlling(True, now=world.now)
    assert settled(world)
    assert not world.a.agent.controlling and world.b.agent.controlling


def test_restarts_before_anything_is_known_end_too() -> None:
    world = plain(signaling=100 * MILLISECOND)
    world.a.agent.restart(now=world.now)
    world.a.agent.restart(now=world.now)
    world.b.agent.restart(now=world.now)
    assert settled(world)
    assert generations(world) == (2, 2)


def test_a_late_description_from_before_the_restart_changes_nothing() -> None:
    world = plain()
    settled(world)
    old = world.b.agent.local_description
    world.a.agent.restart(now=world.now)
    settled(world)
    world.a.agent.set_remote(old, now=world.now)
    world.run(2)
    assert generations(world) == (1, 1)
    assert world.same_path()


def test_the_same_description_twice_is_no_restart() -> None:
    world = plain()
    settled(world)
    world.a.agent.set_remote(world.b.agent.local_description, now=world.now)
    assert not world.a.of(Restarted)


def test_new_credentials_of_a_side_that_does_not_count_are_a_restart() -> None:
    """Other libraries signal no number: their generation stays 0."""
    world = plain()
    settled(world)
    foreign = Description(ufrag="another", password="anotherpasswordanother")
    world.a.agent.set_remote(foreign, now=world.now)
    world.drain()
    assert [event.reason for event in world.a.of(Restarted)] == ["the other side restarted"]
    world.a.agent.set_remote(Description(ufrag="third", password="thirdpasswordthirdpass"), now=world.now)
    assert world.a.agent.local_description.generation == 2


def test_a_failed_agent_can_be_restarted() -> None:
    world = plain(a=IceConfig(controlling=True, patience=0), b=IceConfig(controlling=False, patience=0))
    world.blocked = lambda _: True
    world.run(60)
    assert world.a.agent.state is world.b.agent.state is AgentState.FAILED
    world.blocked = lambda _: False
    world.a.agent.restart(now=world.now)
    assert settled(world)


def test_after_consent_is_lost_a_restart_brings_the_path_back() -> None:
    """RFC 7675, section 5.1: only new credentials may be used there."""
    world = plain()
    settled(world)
    world.blocked = lambda _: True
    world.run(60)
    assert world.a.agent.state is AgentState.FAILED
    world.blocked = lambda _: False
    world.run(10)
    assert world.a.agent.state is AgentState.FAILED
    world.a.agent.restart(now=world.now)
    assert settled(world)


class Talk:
    """Every millisecond each side sends data on its selected pair: who of the two did not take what came, and when."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refused: list[tuple[str, Instant]] = []
        self._say()

    def _say(self) -> None:
        world = self.world
        for side in (world.a, world.b):
            ends = world.ends(side)
            if ends is not None:
                world.later(world.delay, partial(self.arrive, world.other(side), ends))
        world.later(MILLISECOND, self._say)

    def arrive(self, side: Side, ends: tuple[Flow, Address]) -> None:
        if side.agent.accepts(*ends) is None or ends not in side.accepted:
            self.refused.append((side.name, self.world.now))


@pytest.mark.parametrize("who", ["a", "b", "both"])
@pytest.mark.parametrize("lossy", [False, True], ids=["no loss", "loss"])
def test_what_is_on_its_way_over_the_old_pair_is_taken_though_the_new_one_is_nominated(who: str, lossy: bool) -> None:
    """RFC 8445, section 9: the old pair carries data until the new one is nominated, which the sides learn one by one.

    Found over real sockets: of the datagrams that flowed through a restart one was refused, which had been sent while
    the answer to the nomination was on its way. With loss that answer may take seconds.
    """
    world = World(3, delay=100 * MILLISECOND)
    world.a.host("192.168.0.1")
    world.a.host("192.168.1.1")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert settled(world)
    before = world.ends(world.a)
    began = world.now
    world.loss = 0.2 if lossy else 0.0
    # The way that was good is closed to the new generation's checks, so that it ends on the other one.
    closed = world.a.sockets[world.a.agent.selected().flow]  # type: ignore[union-attr]
    old = {world.a.agent.local_description.ufrag, world.b.agent.local_description.ufrag}
    world.blocked = lambda packet: (
        packet.message.cls is Class.REQUEST
        and closed in (packet.source, packet.destination)
        and (packet.message.get(USERNAME) or "").partition(":")[0] not in old
    )
    talk = Talk(world)
    for side in (world.a, world.b) if who == "both" else (world.a if who == "a" else world.b,):
        side.agent.restart(now=world.now)
    assert settled(world, 60) and generations(world) == (1, 1)
    assert world.ends(world.a) != before
    world.run(5)
    assert talk.refused == [], f"data was refused {[(name, (at - began) / SECOND) for name, at in talk.refused][:5]}"


def test_the_old_paths_are_refused_after_the_time_of_a_consent() -> None:
    """RFC 7675, section 5.1: by then the other side has ceased to send on them."""
    world = World(3)
    world.a.host("192.168.0.1")
    world.a.host("192.168.1.1")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert settled(world)
    closed = world.a.sockets[world.a.agent.selected().flow]  # type: ignore[union-attr]
    world.a.agent.restart(now=world.now)
    world.blocked = lambda packet: closed in (packet.source, packet.destination)
    assert settled(world)
    replaced = world.now
    assert world.run(60, lambda: bool(world.b.of(RemoteRevoked)))
    assert [event.remote for event in world.b.of(RemoteRevoked)] == [closed]
    assert 29 <= (world.now - replaced) / SECOND <= 30
    assert world.same_path()
