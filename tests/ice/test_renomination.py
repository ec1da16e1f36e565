"""Renomination (draft-thatcher-ice-renomination): a better pair is nominated later, where both sides have said so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND
from polynya.ice import AgentState, IceConfig, NominationPolicy, PairView, Renomination
from polynya.ice.checks import InboundCheck, examine
from polynya.stun.attributes import ICE_CONTROLLING, NOMINATION, PRIORITY, USE_CANDIDATE, USERNAME
from polynya.stun.message import Message, Received, decode
from polynya.stun.registry import Class, Method
from tests.ice.harness import Packet, Side, World

BY_HAND = Renomination(automatic=False)


def pair_of_worlds(
    seed: int = 1,
    *,
    a: Renomination | None = Renomination(),  # noqa: B008
    b: Renomination | None = Renomination(),  # noqa: B008
    delay: int = 20 * MILLISECOND,
    **more: object,
) -> World:
    """Two hosts with two addresses each: the better path, between the first ones, is closed until it is opened."""
    world = World(
        seed,
        delay=delay,
        a=IceConfig(controlling=True, renomination=a),
        b=IceConfig(controlling=False, renomination=b),
    )
    for side, number in ((world.a, 1), (world.b, 2)):
        side.host(f"203.0.113.{number}")
        side.host(f"203.0.113.{number + 100}")
        side.end()
    return world


def close_first(world: World) -> None:
    """Only the path between the second addresses works."""
    world.blocked = lambda packet: "203.0.113.1" in hosts(packet) or "203.0.113.2" in hosts(packet)


def hosts(packet: Packet) -> tuple[str, str]:
    return packet.source.host, packet.destination.host


def on(side: Side) -> str:
    selected = side.agent.selected()
    assert selected is not None
    return selected.local.address.host


def nominations(world: World, sender: str = "a") -> list[int | None]:
    """The NOMINATION of every nominating check, in order, each transaction once."""
    seen: dict[bytes, int | None] = {}
    for packet in world.packets:
        message = packet.message
        if packet.sender == sender and message.cls is Class.REQUEST and USE_CANDIDATE in message:
            seen.setdefault(message.transaction_id, message.get(NOMINATION))
    return list(seen.values())


def valid(side: Side, test: Callable[[PairView], bool]) -> PairView:
    return next(pair for pair in side.agent.pairs() if pair.valid and test(pair))


def test_a_better_pair_that_works_later_is_nominated_in_place_of_the_first() -> None:
    """tailscale/tailscale#3624, syncthing/syncthing#2908: not stuck on the first path for ever."""
    world = pair_of_worlds()
    close_first(world)
    assert world.connect(10)
    assert on(world.a) == "203.0.113.101" and on(world.b) == "203.0.113.102"
    world.blocked = lambda _: False
    assert world.run(30, lambda: on(world.a) == "203.0.113.1" and on(world.b) == "203.0.113.2")
    assert world.same_path()
    assert world.a.agent.state is world.b.agent.state is AgentState.COMPLETED
    assert nominations(world) == [1, 2]
    for side in (world.a, world.b):
        assert [pair.nominated for pair in side.agent.pairs()].count(True) == 1


def test_both_sides_signal_renomination_by_default() -> None:
    world = World()
    assert world.a.agent.local_description.renomination
    world.a.host("203.0.113.1")
    world.b.host("203.0.113.2")
    assert world.connect(5)
    assert nominations(world) == [1], "it is numbered"


def test_data_moves_to_a_better_pair_before_the_nomination_and_at_once_after_it() -> None:
    """The better path opens while the policy still waits, or later: the nomination follows within a round trip."""
    slow = NominationPolicy(minimum=1.0, bound=1.0)
    for opened, again in ((0.2, Renomination()), (3.0, Renomination()), (0.2, None)):
        world = World(
            a=IceConfig(controlling=True, nomination=slow, renomination=again),
            b=IceConfig(controlling=False, renomination=again),
            delay=20 * MILLISECOND,
        )
        for side, number in ((world.a, 1), (world.b, 2)):
            side.host(f"203.0.113.{number}")
            side.host(f"203.0.113.{number + 100}")
        close_first(world)
        world.run(opened)
        assert on(world.a) == "203.0.113.101" and on(world.b) == "203.0.113.102"
        world.blocked = lambda _: False
        for side, best in ((world.a, "203.0.113.1"), (world.b, "203.0.113.2")):
            assert world.run(30, lambda side=side, best=best: any(  # type: ignore[misc]
                pair.valid and pair.base.host == best and pair.remote_address.host in ("203.0.113.1", "203.0.113.2")
                for pair in side.agent.pairs()
            ))  # fmt: skip
            assert world.run(0.11, lambda side=side, best=best: on(side) == best)  # type: ignore[misc]
        world.run(5)
        assert world.same_path()


def test_a_better_pair_has_to_stay_valid_for_a_while() -> None:
    world = pair_of_worlds(a=Renomination(settle=3.0))
    close_first(world)
    assert world.connect(10)
    world.blocked = lambda _: False
    assert world.run(
        30, lambda: any(pair.valid and pair.local.address.host == "203.0.113.1" for pair in world.a.agent.pairs())
    )
    since = world.now
    assert world.run(30, lambda: on(world.a) == "203.0.113.1")
    assert 3 * SECOND <= world.now - since <= 4 * SECOND


@pytest.mark.parametrize(("a", "b"), [(None, None), (Renomination(), None), (None, Renomination())])
def test_without_the_agreement_of_both_the_first_nomination_stays(
    a: Renomination | None, b: Renomination | None
) -> None:
    """RFC 8445, section 8.1.1: one nomination."""
    world = pair_of_worlds(a=a, b=b)
    close_first(world)
    assert world.connect(10)
    world.blocked = lambda _: False
    world.run(60)
    assert on(world.a) == "203.0.113.101" and on(world.b) == "203.0.113.102"
    assert nominations(world) == [None]
    other = pair_of_worlds(a=a, b=b)
    assert other.connect(10)
    with pytest.raises(UsageError, match="renomination"):
        other.a.agent.nominate(valid(other.a, lambda pair: not pair.nominated).id, now=other.now)


def test_by_hand_any_valid_pair_is_nominated_and_the_other_side_follows() -> None:
    world = pair_of_worlds(a=BY_HAND, b=BY_HAND)
    assert world.connect(10)
    world.run(5)
    assert on(world.a) == "203.0.113.1"
    for host in ("203.0.113.101", "203.0.113.1", "203.0.113.101"):
        pair = valid(world.a, lambda pair, host=host: pair.local.address.host == host)  # type: ignore[misc]
        world.a.agent.nominate(pair.id, now=world.now)
        assert world.run(5, lambda host=host: on(world.a) == host)  # type: ignore[misc]
        assert world.run(5, world.same_path)
    assert nominations(world) == [1, 2, 3, 4]


def test_before_the_first_nomination_a_pair_may_be_chosen_by_hand_with_anyone() -> None:
    """RFC 8445, section 8.1.1 leaves the criterion to the controlling agent."""
    slow = NominationPolicy(minimum=5.0, bound=5.0)
    world = World(a=IceConfig(controlling=True, nomination=slow, renomination=None), b=IceConfig(controlling=False))
    for side, number in ((world.a, 1), (world.b, 2)):
        side.host(f"203.0.113.{number}")
        side.host(f"203.0.113.{number + 100}")
    world.run(1)
    assert nominations(world) == []
    worst = [pair for pair in world.a.agent.pairs() if pair.valid][-1]
    world.a.agent.nominate(worst.id, now=world.now)
    with pytest.raises(UsageError, match=f"pair {worst.id} is being nominated"):
        world.a.agent.nominate(valid(world.a, lambda pair: pair.id != worst.id).id, now=world.now)
    assert world.connect(2)
    assert world.a.agent.selected().id == worst.id  # type: ignore[union-attr]
    assert world.run(5, world.same_path)
    world.run(30)
    assert nominations(world) == [None]


def test_what_cannot_be_nominated_is_refused_at_once() -> None:
    world = pair_of_worlds()
    assert world.connect(10)
    with pytest.raises(UsageError, match="only the controlling agent"):
        world.b.agent.nominate(world.b.agent.pairs()[0].id, now=world.now)
    with pytest.raises(UsageError, match="no valid pair 999"):
        world.a.agent.nominate(999, now=world.now)
    before = nominations(world)
    world.a.agent.nominate(world.a.agent.selected().id, now=world.now)  # type: ignore[union-attr]
    world.run(2)
    assert nominations(world) == before


def test_an_earlier_nomination_that_arrives_late_changes_nothing() -> None:
    """The highest number counts, not the last packet."""
    world = pair_of_worlds(a=BY_HAND, b=BY_HAND)
    assert world.connect(10)
    world.run(5)
    held: list[Packet] = []

    def hold(packet: Packet) -> bool:
        late = packet.sender == "a" and packet.message.get(NOMINATION) == 2
        held.extend([packet] if late else [])
        return late

    world.blocked = hold
    one, other = (
        valid(world.a, lambda pair: pair.local.address.host == host)  # noqa: B023
        for host in ("203.0.113.101", "203.0.113.1")
    )
    world.a.agent.nominate(one.id, now=world.now)
    world.run(0.3)
    assert held
    third = next(pair for pair in world.a.agent.pairs() if pair.valid and pair.id not in (one.id, other.id))
    world.a.agent.nominate(third.id, now=world.now)
    assert world.run(5, lambda: world.a.agent.selected().id == third.id and world.same_path())  # type: ignore[union-attr]
    world.blocked = lambda _: False
    world.arrive(held[0])
    world.drain()
    world.run(0.2)
    assert world.same_path()
    assert world.b.agent.selected().remote_address == third.base  # type: ignore[union-attr]


def test_after_a_nomination_that_came_to_nothing_the_old_pair_is_nominated_again() -> None:
    """Its answer may be what was lost, and the other side may have followed: both have to end on one pair."""
    world = pair_of_worlds(a=BY_HAND, b=BY_HAND)
    assert world.connect(10)
    world.run(5)
    world.blocked = lambda packet: packet.sender == "b" and "203.0.113.101" in hosts(packet)
    pair = valid(world.a, lambda pair: (pair.base.host, pair.remote_address.host) == ("203.0.113.101", "203.0.113.102"))
    world.a.agent.nominate(pair.id, now=world.now)
    assert world.run(5, lambda: on(world.b) == "203.0.113.102")
    assert on(world.a) == "203.0.113.1"
    assert world.run(60, lambda: nominations(world) == [1, 2, 3])
    assert world.run(2, world.same_path)
    assert on(world.a) == "203.0.113.1"


def test_a_lite_agent_follows() -> None:
    world = World(
        a=IceConfig(controlling=True, renomination=BY_HAND),
        signal=False,
        b=IceConfig(controlling=False, lite=True, renomination=BY_HAND),
    )
    world.describe(world.a)
    world.describe(world.b)
    for side, number in ((world.a, 1), (world.b, 2)):
        side.host(f"203.0.113.{number}")
        side.host(f"203.0.113.{number + 100}")
        side.end()
    assert world.connect(10)
    world.run(5)
    other = valid(world.a, lambda pair: not pair.nominated)
    world.a.agent.nominate(other.id, now=world.now)
    assert world.run(5, lambda: world.a.agent.selected().id == other.id)  # type: ignore[union-attr]
    assert world.run(5, world.same_path)
    world.run(120)  # consent checks repeat the nomination that holds, and no other
    assert world.same_path()
    assert world.a.agent.selected().id == other.id  # type: ignore[union-attr]


def test_a_restart_begins_to_count_again() -> None:
    world = pair_of_worlds(a=BY_HAND, b=BY_HAND)
    assert world.connect(10)
    world.run(5)
    world.a.agent.nominate(valid(world.a, lambda pair: not pair.nominated).id, now=world.now)
    world.run(5)
    world.b.agent.restart(now=world.now)
    world.run(10)
    assert nominations(world) == [1, 2, 1]
    assert world.same_path()


def test_each_component_counts_for_itself() -> None:
    config = {"components": (2,), "renomination": BY_HAND}
    world = World(a=IceConfig(controlling=True, **config), b=IceConfig(controlling=False, **config))  # type: ignore[arg-type]
    for side, number in ((world.a, 1), (world.b, 2)):
        for component in (1, 2):
            side.host(f"203.0.113.{number}", 5000 + component, component=component)
        side.end()
    assert world.connect(10)
    assert nominations(world) == [1, 1]


def test_the_settling_time_is_a_duration() -> None:
    with pytest.raises(ValueError, match="zero or more"):
        Renomination(settle=-1)


def test_the_number_of_a_nomination_has_24_bits() -> None:
    """draft-thatcher-ice-renomination, section 4: what stands above them says nothing."""
    world = pair_of_worlds(a=BY_HAND, b=BY_HAND)
    assert world.connect(10)
    [nominated] = [view for view in world.a.agent.pairs() if view.nominated]
    keys = world.b.agent.generation.credentials
    for number, counts in ((0xFF000001, 1), (0xFF000002, 2)):
        message = Message.request(
            Method.BINDING,
            number.to_bytes(12, "big"),
            {USERNAME: f"{keys.local_ufrag}:{keys.remote_ufrag}", PRIORITY: 1, ICE_CONTROLLING: 1, NOMINATION: number},
        )
        data = message.encode(integrity=keys.local_key, fingerprint=True)
        verdict = examine(Received(Flow(1), nominated.base, decode(data), data), keys)
        assert isinstance(verdict, InboundCheck)
        assert verdict.nomination == counts


@pytest.mark.parametrize("late", range(30, 130, 5))
@pytest.mark.parametrize("who", ["a", "b"])
def test_two_nominations_under_way_at_once_are_no_endless_row(who: str, late: int) -> None:
    """Found by exploration (seed 702896): each answer ended the later one, and was itself not the last any more."""
    world = World(
        a=IceConfig(controlling=True, renomination=Renomination()),
        b=IceConfig(controlling=True, renomination=Renomination()),
        delay=20 * MILLISECOND,
    )
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    world.run(late / 1000)
    side = world.a if who == "a" else world.b
    side.agent.set_controlling(not side.agent.controlling, now=world.now)
    assert world.connect(3), (str(world.a.agent.why()), str(world.b.agent.why()))
    assert world.same_path()
    assert len(world.packets) < 40
