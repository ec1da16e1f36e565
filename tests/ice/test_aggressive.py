"""Peers of RFC 5245: several nominations of theirs (its section 8.1.1.2), and our early and repeated ones for them."""

from __future__ import annotations

from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, Instant
from polynya.ice import AgentState, IceConfig, SelectedPairChanged
from polynya.ice.nomination import can_follow
from polynya.ice.pairs import Pair
from polynya.stun.attributes import ICE_CONTROLLING, PRIORITY, USE_CANDIDATE, USERNAME
from polynya.stun.message import Message
from polynya.stun.registry import Class
from tests.ice.conftest import Make
from tests.ice.harness import Packet, World


def aggressive(*, options: tuple[str, ...] = (), hosts: int = 3) -> World:
    """`a` controls and its checks all carry USE-CANDIDATE, as those of aioice and of old browsers do."""
    world = World(
        a=IceConfig(controlling=True, options=options, renomination=None),
        b=IceConfig(controlling=False),
        delay=20 * MILLISECOND,
    )
    forging = False

    def forge(packet: Packet) -> bool:
        nonlocal forging
        message = packet.message
        if forging or packet.sender != "a" or message.cls is not Class.REQUEST or message.get(USE_CANDIDATE):
            return False
        attributes = {kind: message[kind] for kind in (USERNAME, PRIORITY, ICE_CONTROLLING)}  # type: ignore[index]
        key = world.a.agent.generation.credentials.remote_key
        made = Message.request(message.method, message.transaction_id, attributes | {USE_CANDIDATE: True})
        data = made.encode(integrity=key, fingerprint=True)
        moved = Packet(packet.at, packet.source, packet.destination, data, "a")
        world.later(world.delay + delays.get(packet.source, 0), lambda: world.arrive(moved))
        return True

    delays: dict[Address, int] = {}
    world.blocked = forge
    for n in range(hosts):
        flow = world.a.host(f"192.168.0.{10 + n}")
        delays[world.a.sockets[flow]] = (hosts - n) * 150 * MILLISECOND  # the best path is the slowest
    world.b.host("192.168.0.99")
    world.a.end()
    world.b.end()
    return world


def test_of_several_nominated_pairs_the_one_of_highest_priority_counts() -> None:
    world = aggressive()
    assert world.run(20, lambda: world.b.agent.state is AgentState.COMPLETED)
    world.run(10)
    nominated = [view for view in world.b.agent.pairs() if view.nominated]
    assert len(nominated) >= 2
    selected = world.b.agent.selected()
    assert selected is not None
    assert selected.remote_address.host == "192.168.0.10"
    assert selected.priority == max(view.priority for view in nominated)


def test_the_selected_pair_moves_up_as_better_ones_are_nominated() -> None:
    world = aggressive()
    world.run(20)
    chosen = [event.pair.priority for event in world.b.of(SelectedPairChanged) if event.pair and event.nominated]
    assert chosen == sorted(chosen) and len(chosen) >= 2


def test_an_agent_of_rfc_8445_means_its_latest_nomination() -> None:
    """It nominates one; another one is deliberate, whatever its priority."""
    world = aggressive(options=("ice2",))
    world.run(20)
    latest = max(world.b.agent.generation.checklists, key=lambda pair: pair.nominated_order)
    selected = world.b.agent.selected()
    assert selected is not None and selected.id == latest.id


# ------------------------------------------------------------------------------------------ towards a peer without ice2


def towards(*options: str, aggressive: bool = True, hosts: int = 1, **more: Any) -> World:
    """`a` controls, and the description of `b` has these options; their nominations need `a`'s alone."""
    world = World(
        a=IceConfig(controlling=True, aggressive=aggressive),
        b=IceConfig(controlling=False, options=options, renomination=None),
        delay=20 * MILLISECOND,
        **more,
    )
    for n in range(hosts):
        world.a.host(f"192.168.0.{10 + n}")
    world.b.host("192.168.0.99")
    world.a.end()
    world.b.end()
    return world


def nominating(world: World) -> dict[bytes, Packet]:
    """The first packet of each nominating check."""
    found: dict[bytes, Packet] = {}
    for packet in world.packets:
        if packet.message.cls is Class.REQUEST and packet.message.get(USE_CANDIDATE):
            found.setdefault(packet.message.transaction_id, packet)
    return found


def nominated_at(world: World) -> float:
    """Milliseconds until the controlled side has a nominated pair."""
    at = world.b.when(SelectedPairChanged, lambda event: event.nominated)
    return (at - world.started) / MILLISECOND


def test_our_answer_to_the_first_check_of_such_a_peer_nominates_the_pair() -> None:
    early = towards()
    assert early.connect(5) and early.same_path()
    late = towards(aggressive=False)
    assert late.connect(5) and late.same_path()
    assert nominated_at(early) < nominated_at(late) - 20
    assert len(nominating(early)) == len(nominating(late)) == 1


def test_an_agent_with_ice2_never_sees_an_early_nomination() -> None:
    world = towards("ice2")
    assert world.connect(5)
    [packet] = nominating(world).values()
    answered = [p.at for p in world.packets if p.sender == "b" and p.message.cls is Class.SUCCESS]
    assert packet.at >= answered[0] + world.delay, "our own check was answered first"


def test_one_pair_of_a_component_at_a_time_carries_use_candidate() -> None:
    world = towards(hosts=4)
    assert world.connect(5) and world.same_path()
    world.run(10)
    assert len({packet.source for packet in nominating(world).values()}) == 1


def test_an_early_nomination_without_an_answer_is_withdrawn() -> None:
    """The best path carries packets from the peer to us only; the next best one is nominated after one round trip."""
    world = towards(hosts=2)
    world.blocked = lambda packet: packet.sender == "a" and packet.source.host == "192.168.0.10"
    assert world.connect(5) and world.same_path()
    assert world.a.path.startswith("host 192.168.0.11")
    assert nominated_at(world) < 200
    hosts = [packet.source.host for packet in nominating(world).values()]
    assert hosts == ["192.168.0.10", "192.168.0.11"]
    world.blocked = lambda _: False
    world.run(10)
    assert world.same_path()


def through_a_relay(**more: Any) -> World:
    """Only `a`'s relay works, until the direct path is opened."""
    world = World(
        a=IceConfig(controlling=True, **more),
        b=IceConfig(controlling=False, options=(), renomination=None),
        delay=20 * MILLISECOND,
    )
    world.blocked = lambda packet: "192.168.0.10" in (packet.source.host, packet.destination.host)
    world.a.host("192.168.0.10")
    world.a.relay("192.168.0.11")
    world.b.host("192.168.0.99")
    world.a.end()
    world.b.end()
    assert world.connect(5) and world.same_path()
    assert world.a.path == "relay 192.168.0.11:5000 -> host 192.168.0.99:5000"
    return world


def test_a_direct_pair_that_works_later_is_nominated_again() -> None:
    world = through_a_relay()
    assert nominated_at(world) < 300, "a relay waits for one answer of a direct pair"
    world.blocked = lambda _: False
    assert world.run(5, lambda: world.a.path.startswith("host"))
    assert world.run(1, world.same_path)
    world.run(30)
    assert world.same_path() and world.a.path.startswith("host")
    assert [packet.source.host for packet in nominating(world).values()] == ["192.168.0.11", "192.168.0.10"]


def test_without_the_option_the_first_nomination_is_final() -> None:
    world = through_a_relay(aggressive=False)
    assert nominated_at(world) > 500, "a direct pair has the time of a second check"
    world.blocked = lambda _: False
    world.run(30)
    assert world.same_path() and world.a.path.startswith("relay")
    assert len(nominating(world)) == 1


@pytest.mark.parametrize(
    ("first", "last", "follows"),
    [(0, 0, True), (90, 90, False), (90, 300, True), (140, 300, True)],
    ids=["checked before", "checked at the same time", "checked again", "checked afterwards"],
)
def test_a_peer_follows_only_to_a_pair_whose_check_it_has_not_stopped(first: int, last: int, follows: bool) -> None:
    """aioice stops its checks under way when a pair is nominated: a nomination of such a pair has no effect there."""
    make = Make()
    direct, nominated = (Pair(n, make.local(n), make.remote(n), make.remote(n).address) for n in (1, 2))
    nominated.nominating_sent(1, now=Instant(100 * MILLISECOND))
    nominated.response_received(20 * MILLISECOND)
    direct.response_received(60 * MILLISECOND)
    for at in (first, last):
        direct.request_received(now=Instant(at * MILLISECOND))
    assert can_follow(direct, nominated) is follows


def test_of_two_nominated_pairs_the_one_in_use_was_nominated_last() -> None:
    """aioice uses the pair that was nominated last, other agents the best: both have to mean the same pair."""
    world = towards(hosts=2)
    slow = ("192.168.0.10", "192.168.0.99")
    held: list[Packet] = []

    def hold(packet: Packet) -> bool:
        """Let the answers on the best path arrive after another pair was nominated."""
        late = (packet.destination.host, packet.source.host) == slow and packet.message.cls is Class.SUCCESS
        held.extend([packet] if late else [])
        return late

    world.blocked = hold
    assert world.connect(5)
    assert world.a.path.startswith("host 192.168.0.11")
    world.blocked = lambda _: False
    for packet in held:
        world.arrive(packet)
    world.drain()
    assert world.run(5, lambda: world.a.path.startswith("host 192.168.0.10"))
    world.run(1)
    assert world.same_path()
    *_, last = nominating(world).values()
    assert last.source.host == "192.168.0.10"
