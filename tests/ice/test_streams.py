"""Streams that come and go with a restart, components that only one side has (RFC 8445, sections 6.1.2.2 and 9)."""

from __future__ import annotations

import pytest

from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND
from polynya.ice import (
    AgentState,
    IceConfig,
    LocalCandidateAdded,
    RemoteRevoked,
    SelectedPairChanged,
)
from polynya.stun.message import Message
from polynya.stun.registry import Method
from tests.ice.harness import Nat, Side, World


def of(components: tuple[int, ...], **more: object) -> World:
    """Two agents with these components, and no candidates yet."""
    return World(
        a=IceConfig(controlling=True, components=components),
        b=IceConfig(controlling=False, components=components),
        **more,  # type: ignore[arg-type]
    )


def gather(side: Side, components: tuple[int, ...], first: int = 0) -> list[Flow]:
    host = "192.168.0.1" if side.name == "a" else "192.168.0.2"
    flows = []
    for stream, count in enumerate(components):
        for component in range(1, count + 1):
            if stream >= first:
                flows.append(side.host(host, 5000 + 10 * stream + component, stream=stream, component=component))
    return flows


def connected(components: tuple[int, ...]) -> World:
    world = of(components)
    for side in (world.a, world.b):
        gather(side, components)
        side.end()
    assert world.connect(10)
    return world


def settled(world: World) -> bool:
    return world.run(
        20,
        lambda: (
            world.a.agent.state is world.b.agent.state is AgentState.COMPLETED
            and len(world.a.agent.generations) == len(world.b.agent.generations) == 1
            and world.a.agent.local_description.generation == world.b.agent.local_description.generation
        ),
    )


def selected(world: World) -> list[tuple[int, int]]:
    """Where both sides have a nominated pair, each the other's mirror image."""
    found = []
    for key in [(stream, component) for stream in range(4) for component in (1, 2)]:
        mine, theirs = world.a.agent.selected(*key), world.b.agent.selected(*key)
        assert (mine is None) is (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.nominated and theirs.nominated
            assert (mine.base, mine.remote_address) == (theirs.remote_address, theirs.base)
            found.append(key)
    return found


# ------------------------------------------------------------------------------------------------- added and removed


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restart_adds_a_stream(who: str) -> None:
    world = connected((1,))
    side = world.a if who == "a" else world.b
    world.agreed = (1, 2)
    side.agent.restart(now=world.now, components=(1, 2), more_to_come=True)
    gather(side, (1, 2), first=1)
    side.end()
    world.run(0.05)
    gather(world.other(side), (1, 2), first=1)
    assert settled(world)
    assert selected(world) == [(0, 1), (1, 1), (1, 2)]
    assert None not in [event.pair for event in side.of(SelectedPairChanged)]


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_restart_removes_a_stream_and_what_belongs_to_it_ends_at_once(who: str) -> None:
    world = connected((1, 1, 1))
    side = world.a if who == "a" else world.b
    flow = side.agent.selected(1, 1).flow  # type: ignore[union-attr]
    events = len(side.events)
    world.agreed = (1, 0, 1)
    side.agent.restart(now=world.now, components=(1, 0, 1))
    world.drain()
    fresh = [event for _, event in side.events[events:]]
    lost = [event for event in fresh if isinstance(event, SelectedPairChanged) and event.pair is None]
    assert [(event.stream, event.reason) for event in lost] == [(1, "its stream was removed")]
    streams = [event.local.stream for event in fresh if isinstance(event, LocalCandidateAdded)]
    assert streams == [0, 2]
    assert settled(world)
    assert selected(world) == [(0, 1), (2, 1)]
    assert not [path for path in side.accepted if path[0] == flow]
    assert [event for event in side.of(RemoteRevoked) if event.flow == flow]
    assert all(pair.stream != 1 for pair in side.agent.pairs())
    sent = len(world.packets)
    world.run(60)
    gone = side.sockets[flow]
    assert not [packet for packet in world.packets[sent:] if gone in (packet.source, packet.destination)]


def test_a_shorter_list_removes_the_streams_at_its_end() -> None:
    world = connected((1, 1))
    world.agreed = (1,)
    world.a.agent.restart(now=world.now, components=(1,))
    assert settled(world)
    assert selected(world) == [(0, 1)]


def test_a_removed_stream_comes_back_in_a_later_restart() -> None:
    world = connected((1, 1))
    world.agreed = (1, 0)
    world.a.agent.restart(now=world.now, components=(1, 0))
    assert settled(world)
    for side in (world.a, world.b):
        side.sockets = {flow: address for flow, address in side.sockets.items() if address.port != 5011}
    world.agreed = (1, 1)
    world.a.agent.restart(now=world.now, components=(1, 1), more_to_come=True)
    gather(world.a, (1, 1), first=1)
    world.a.end()
    world.run(0.05)
    gather(world.b, (1, 1), first=1)
    assert settled(world)
    assert selected(world) == [(0, 1), (1, 1)]


def test_the_other_streams_carry_data_meanwhile() -> None:
    world = connected((1, 1))
    pair = world.a.agent.selected(0, 1)
    world.a.trickle = world.b.trickle = False
    world.a.agent.restart(now=world.now, components=(1, 0))
    world.run(60)
    kept = world.a.agent.selected(0, 1)
    assert pair is not None and kept is not None and kept.id == pair.id
    assert world.a.agent.selected(1, 1) is None


def test_a_stream_that_the_other_side_refuses_is_not_waited_for() -> None:
    """RFC 8839, section 4.2.3: refused in the answer to the first description, or to a restart."""
    world = of((1, 1), signal=False)
    gather(world.a, (1, 1))
    gather(world.b, (1,))
    for side in (world.a, world.b):
        side.end()
    world.b.agent.set_remote(world.a.agent.local_description, now=world.now, components=(1, 0))
    world.a.agent.set_remote(world.b.agent.local_description, now=world.now, components=(1, 0))
    assert world.connect(5)
    assert selected(world) == [(0, 1)]
    world.agreed = None
    world.a.agent.restart(now=world.now, components=(1, 1), more_to_come=True)
    gather(world.a, (1, 1), first=1)
    world.a.end()
    world.agreed = (1, 0)
    world.drain()
    world.b.agent.set_remote(world.a.agent.local_description, now=world.now, components=(1, 0))
    assert settled(world)
    assert selected(world) == [(0, 1)]


def test_a_check_for_a_removed_stream_is_dropped() -> None:
    world = connected((1, 1))
    world.blocked = lambda _: True
    late = next(packet for packet in world.packets if packet.sender == "b" and packet.source.port == 5011)
    assert isinstance(late.message, Message) and late.message.method is Method.BINDING
    world.a.agent.restart(now=world.now, components=(1, 0))
    world.arrive(late)
    world.drain()
    assert world.a.agent.counters["messages dropped"] >= 1


@pytest.mark.parametrize("components", [(), (0,), (0, 0), (257,), (-1, 1)])
def test_streams_that_cannot_be_are_refused_at_once(components: tuple[int, ...]) -> None:
    world = of((1,))
    with pytest.raises(ConfigurationError, match="1 to 256 components"):
        world.a.agent.restart(now=world.now, components=components)
    with pytest.raises(ConfigurationError, match="1 to 256 components"):
        world.a.agent.set_remote(world.b.agent.local_description, now=world.now, components=components)
    assert world.a.agent.local_description.generation == 0


def test_an_address_of_a_removed_stream_is_refused() -> None:
    world = connected((1, 1))
    world.a.agent.restart(now=world.now, components=(1, 0))
    with pytest.raises(UsageError, match="no stream 1 with a component 1"):
        world.a.host("192.168.0.1", 6000, stream=1)


# --------------------------------------------------------------------------------- components that only one side has


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_component_that_one_side_has_no_candidates_for_is_none(who: str) -> None:
    """RFC 8445, section 6.1.2.2: the number of components is the smaller of the two (RTP and RTCP on one port)."""
    world = of((2,))
    one = world.a if who == "a" else world.b
    gather(one, (1,))
    gather(world.other(one), (2,))
    one.end()
    world.other(one).end()
    assert world.connect(5)
    assert selected(world) == [(0, 1)]


def test_until_candidates_have_ended_the_component_is_waited_for() -> None:
    world = of((2,), signaling=10 * MILLISECOND)
    gather(world.a, (2,))
    gather(world.b, (1,))
    world.a.end()
    world.run(5)
    assert world.a.agent.state is AgentState.CHECKING
    world.b.host("192.168.0.2", 5002, component=2)
    world.b.end()
    assert world.connect(5)
    assert selected(world) == [(0, 1), (0, 2)]


# -------------------------------------------------------------------------------------------------------- lite and lite


def lite(seed: int = 1, *, roles: tuple[bool, bool] = (True, False), addresses: int = 1) -> World:
    world = World(
        seed, a=IceConfig(lite=True, controlling=roles[0]), b=IceConfig(lite=True, controlling=roles[1])
    )  # fmt: skip
    for side, number in ((world.a, 1), (world.b, 2)):
        for n in range(addresses):
            side.host(f"203.0.113.{number + 10 * n}")
        side.host(f"2001:db8::{number}")
    return world


@pytest.mark.parametrize("addresses", [1, 3])
@pytest.mark.parametrize("roles", [(True, False), (False, True), (True, True), (False, False)])
def test_two_lite_agents_choose_one_pair_without_any_check(roles: tuple[bool, bool], addresses: int) -> None:
    """RFC 8445, sections 6.1.1 and 8.2; which of them controls makes no difference to what they choose."""
    world = lite(roles=roles, addresses=addresses)
    world.run(5)
    assert world.a.agent.state is AgentState.CHECKING
    for side in (world.a, world.b):
        side.end()
    assert world.connect(5)
    assert world.same_path()
    assert (world.a.agent.controlling, world.b.agent.controlling) == roles
    mine = world.a.agent.selected()
    assert mine is not None and mine.valid and not mine.writable
    assert mine.reason == "both sides are lite: chosen without a check"
    assert world.packets == []
    world.run(120)
    assert world.a.agent.state is AgentState.COMPLETED
    assert {packet.message.cls.name for packet in world.packets} == {"INDICATION"}  # keepalives


def test_a_lite_agent_that_would_control_gives_way_to_a_full_one() -> None:
    """RFC 8445, section 6.1.1."""
    world = World(a=IceConfig(lite=True, controlling=True), b=IceConfig(controlling=False))
    for side, number in ((world.a, 1), (world.b, 2)):
        side.host(f"203.0.113.{number}")
        side.end()
    assert world.connect(5)
    assert not world.a.agent.controlling and world.b.agent.controlling
    with pytest.raises(UsageError, match="controlled by a full one"):
        world.a.agent.set_controlling(True, now=world.now)
    with pytest.raises(UsageError, match="controlled by a full one"):
        world.b.agent.set_controlling(False, now=world.now)


def test_two_lite_agents_restart() -> None:
    world = lite(addresses=2)
    for side in (world.a, world.b):
        side.end()
    assert world.connect(5)
    world.b.agent.restart(now=world.now)
    assert settled(world)
    assert world.same_path()
    assert world.a.agent.local_description.generation == 1


def test_two_lite_agents_without_a_common_family_fail() -> None:
    world = World(a=IceConfig(lite=True, controlling=True), b=IceConfig(lite=True, controlling=False))
    world.a.host("203.0.113.1")
    world.b.host("2001:db8::2")
    for side in (world.a, world.b):
        side.end()
    world.run(60)
    assert world.a.agent.state is world.b.agent.state is AgentState.FAILED


def test_no_component_waits_for_a_check_of_another_that_cannot_work() -> None:
    """Found by exploration (seed 410843): behind a symmetric NAT what works is peer-reflexive, a foundation of its own.

    The others of the first foundation used to be Frozen until its transaction had run out, 39.5 s later.
    """
    components = (2, 1)
    world = World(
        a=IceConfig(components=components),
        b=IceConfig(controlling=False, components=components),
        nat_a=Nat("198.51.100.1", symmetric=True),
        nat_b=Nat("198.51.100.2", filtering=False),
    )
    for side, host in ((world.a, "10.1.0.2"), (world.b, "10.2.0.2")):
        for port, (stream, component) in enumerate(((0, 1), (0, 2), (1, 1)), start=5000):
            side.reflexive(
                side.host(host, port, stream=stream, component=component), stream=stream, component=component
            )
        side.end()
    assert world.connect(5)
    assert world.elapsed() < 2.5
