"""The end of a connection: the notice of an agent that closes, and inquiries whether the other side is still there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Datagram
from polynya.ice import AgentState, AgentStateChanged, ConsentLost, IceConfig
from polynya.ice.checks import Credentials, farewell
from polynya.ice.consent import LIFETIME
from polynya.stun.attributes import ICE_CLOSED, USERNAME
from polynya.stun.message import Message, decode
from polynya.stun.registry import COMPREHENSION_OPTIONAL, Class, Method
from tests.ice.harness import Packet, Side, World, behind_nats, plain


def connected(world: World) -> World:
    assert world.connect(30), world.a.agent.why()
    world.run(2)
    return world


def close(world: World, side: Side) -> Instant:
    """Close one side and return the time."""
    side.agent.close(now=world.now)
    world.drain()
    return world.now


def farewells(world: World) -> list[Packet]:
    return [packet for packet in world.packets if ICE_CLOSED in packet.message]


def failed(side: Side) -> Callable[[], bool]:
    return lambda: side.agent.state is AgentState.FAILED


def deliver(world: World, side: Side, data: bytes) -> None:
    """Let a datagram arrive on the selected path of a side."""
    path = side.agent.path()
    assert path is not None
    side.agent.receive(Datagram(*path, data), now=world.now)
    world.drain()


@pytest.mark.parametrize("closing", ["a", "b"])
@pytest.mark.parametrize("make", [plain, behind_nats])
def test_the_other_side_notices_a_close_after_half_a_round_trip(make: Callable[..., World], closing: str) -> None:
    world = connected(make(delay=35 * MILLISECOND))
    leaves = world.a if closing == "a" else world.b
    stays = world.other(leaves)
    closed_at = close(world, leaves)
    assert world.run(40, until=failed(stays))
    assert world.now == closed_at + 35 * MILLISECOND
    assert stays.agent.reason == "the other side closed the connection"
    assert stays.of(ConsentLost)[-1].reason == "the other side closed the connection"
    sent = len(world.packets)
    world.run(300)
    assert len(world.packets) == sent, "neither side sends anything more"
    assert stays.agent.selected() is None


def test_the_notice_is_sent_three_times_and_signed() -> None:
    world = connected(plain())
    close(world, world.a)
    packets = farewells(world)
    assert len(packets) == 3 and len({packet.data for packet in packets}) == 1
    message = packets[0].message
    assert (message.cls, message.method) == (Class.INDICATION, Method.BINDING)
    ufrags = f"{world.b.agent.local_description.ufrag}:{world.a.agent.local_description.ufrag}"
    assert message.get(ICE_CLOSED) == message.get(USERNAME) == ufrags
    assert message.verify(Credentials(world.b.agent.local_description).local_key)
    assert ICE_CLOSED.number >= COMPREHENSION_OPTIONAL, "peers that do not know it ignore it"


@pytest.mark.parametrize("seed", range(20))
def test_one_of_three_notices_arrives_in_a_lossy_network(seed: int) -> None:
    world = connected(behind_nats(seed, loss=0.2, jitter=30 * MILLISECOND))
    arrives: list[bool] = []
    world.blocked = lambda packet: ICE_CLOSED in packet.message and len(arrives) < 2 and not arrives.append(True)
    closed_at = close(world, world.b)
    lost = sum(ICE_CLOSED in packet.message for packet, _ in world.dropped) == 3
    assert world.run(60, until=failed(world.a))
    assert lost or world.now <= closed_at + world.delay + world.jitter


def test_every_component_is_notified_and_an_agent_without_a_path_sends_nothing() -> None:
    config = IceConfig(components=(2,))
    world = World(a=replace(config, controlling=True), b=replace(config, controlling=False))
    for side, n in ((world.a, 1), (world.b, 2)):
        for component in (1, 2):
            side.host(f"192.168.0.{n}", 5000 + component, component=component)
        side.end()
    connected(world)
    close(world, world.a)
    assert len(farewells(world)) == 6
    assert world.run(1, until=failed(world.b))
    assert world.b.agent.reason == "the other side closed the connection"

    alone = plain()
    close(alone, alone.a)
    assert farewells(alone) == []


def test_a_lite_agent_notifies_and_is_notified() -> None:
    for closing in ("a", "b"):
        world = connected(plain(b=IceConfig(controlling=False, lite=True)))
        leaves = world.a if closing == "a" else world.b
        close(world, leaves)
        assert world.run(1, until=failed(world.other(leaves)))


def forged(world: World, *, to: Side) -> dict[str, bytes]:
    """Notices for one side that must not end its connection."""
    ours, theirs = to.agent.local_description, world.other(to).agent.local_description
    name = f"{ours.ufrag}:{theirs.ufrag}"
    real = Credentials(theirs)
    real.set_remote(ours)
    guessed = Credentials(theirs)
    guessed.set_remote(replace(ours, password="x" * 24))
    stranger = Credentials(replace(theirs, ufrag="evil"))
    stranger.set_remote(ours)
    own = Credentials(ours)
    own.set_remote(theirs)
    good = farewell(real, bytes(12))
    other_name = Message.indication(Method.BINDING, bytes(12), {USERNAME: name, ICE_CLOSED: f"{ours.ufrag}:evil"})
    no_name = Message.indication(Method.BINDING, bytes(12), {USERNAME: name})
    no_user = Message.indication(Method.BINDING, bytes(12), {ICE_CLOSED: name})
    unsigned = Message.indication(Method.BINDING, bytes(12), {USERNAME: name, ICE_CLOSED: name})
    request = Message.request(Method.BINDING, bytes(12), {USERNAME: name, ICE_CLOSED: name})
    return {
        "another password": farewell(guessed, bytes(12)),
        "another ufrag": farewell(stranger, bytes(12)),
        "our own notice returned": farewell(own, bytes(12)),
        "unsigned": unsigned.encode(fingerprint=True),
        "another generation in the attribute": other_name.encode(integrity=real.remote_key, fingerprint=True),
        "without the attribute": no_name.encode(integrity=real.remote_key, fingerprint=True),
        "without USERNAME": no_user.encode(integrity=real.remote_key, fingerprint=True),
        "a request": request.encode(integrity=real.remote_key, fingerprint=True),
        "a changed bit": good[:24] + bytes([good[24] ^ 1]) + good[25:],
    }


@pytest.mark.parametrize("to", ["a", "b"])
def test_forged_notices_do_nothing(to: str) -> None:
    world = connected(plain())
    side = world.a if to == "a" else world.b
    for name, data in forged(world, to=side).items():
        deliver(world, side, data)
        world.run(1)
        assert side.agent.state is AgentState.COMPLETED, name
    world.run(60)
    assert side.agent.state is AgentState.COMPLETED
    assert not side.of(ConsentLost)


def test_a_notice_of_an_earlier_generation_does_nothing() -> None:
    """An attacker has recorded the notice of generation 0, which was never needed: it went on as generation 1."""
    world = connected(plain())
    old = Credentials(world.b.agent.local_description)
    old.set_remote(world.a.agent.local_description)
    recorded = farewell(old, bytes(12))
    world.a.agent.restart(now=world.now)
    world.run(10)
    assert world.a.agent.state is AgentState.COMPLETED and world.a.agent.generations == (world.a.agent.generation,)
    deliver(world, world.a, recorded)
    assert world.a.agent.state is AgentState.COMPLETED

    other = connected(plain(2))
    close(other, other.b)
    deliver(world, world.a, farewells(other)[0].data)
    assert world.a.agent.state is AgentState.COMPLETED, "nor does one of another connection"


def test_a_notice_during_a_restart_ends_both_generations() -> None:
    """The other side has not seen the new description yet: its notice has the credentials of the old generation."""
    world = connected(plain(signaling=200 * MILLISECOND))
    world.a.agent.restart(now=world.now)
    closed_at = close(world, world.b)
    world.blocked = lambda packet: packet.sender == "a"
    assert world.run(1, until=failed(world.a)), world.a.agent.state
    assert world.now == closed_at + world.delay


def test_after_a_close_late_checks_and_candidates_change_nothing_but_a_new_peer_does() -> None:
    world = connected(plain())
    agent = world.a.agent
    check = next(packet for packet in world.packets if packet.sender == "b" and packet.message.cls is Class.REQUEST)
    flow = next(iter(world.a.sockets))
    path = agent.path()
    candidate = agent.remote_candidates()[0]
    close(world, world.b)
    assert world.run(1, until=failed(world.a))
    assert path is not None
    agent.receive(Datagram(flow, path[1], check.data), now=world.now)
    agent.receive(Datagram(flow, path[1]._replace(port=9), check.data), now=world.now)
    agent.add_remote(replace(candidate, address=candidate.address._replace(port=7)), now=world.now)
    world.run(10)
    assert agent.state is AgentState.FAILED
    assert decode(check.data).cls is Class.REQUEST

    again = World(5, a=IceConfig(controlling=True), b=IceConfig(controlling=False))
    again.b.host("192.168.0.3")
    newcomer = again.b.agent.local_description
    agent.set_remote(newcomer, now=world.now)
    assert agent.state is AgentState.CHECKING, "a program that starts again is a new peer"


# ------------------------------------------------------------------------------------------------------ by signaling


def test_a_peer_that_left_by_signaling_ends_the_connection_when_its_last_data_has_had_its_time() -> None:
    world = connected(plain(delay=30 * MILLISECOND))
    world.blocked = lambda packet: packet.sender == "b"
    at = world.now
    world.a.agent.peer_left("it left", now=at)
    assert world.a.agent.state is AgentState.COMPLETED
    assert world.run(1, until=failed(world.a))
    assert world.now == at + 60 * MILLISECOND
    assert world.a.of(AgentStateChanged)[-1].reason == "it left"


def test_the_time_for_the_last_data_is_bounded() -> None:
    world = connected(plain(delay=2 * SECOND))
    at = world.now
    world.a.agent.peer_left("it left", now=at)
    assert world.run(1, until=failed(world.a))
    assert world.now == at + 250 * MILLISECOND


def test_an_agent_without_a_path_fails_at_once_when_its_peer_leaves() -> None:
    world = plain()
    world.blocked = lambda _: True
    world.run(1)
    at = world.now
    world.a.agent.peer_left("it left", now=at)
    assert world.a.agent.state is AgentState.FAILED and world.now == at


def test_a_silent_peer_is_lost_two_seconds_after_three_checks() -> None:
    world = connected(plain())
    world.blocked = lambda packet: True
    at, sent = world.now, len(world.packets)
    world.a.agent.ask_consent(now=at)
    assert world.run(40, until=failed(world.a))
    assert world.now == at + 2 * SECOND
    asked = [packet for packet in world.packets[sent:] if packet.sender == "a"]
    assert len(asked) >= 3 and "3 consent checks within 2 s" in world.a.agent.reason


@pytest.mark.parametrize("seed", range(10))
def test_a_peer_that_answers_one_of_three_checks_stays(seed: int) -> None:
    world = connected(behind_nats(seed, delay=150 * MILLISECOND))
    blocked: list[bool] = []
    world.blocked = lambda packet: packet.sender == "a" and len(blocked) < 2 and not blocked.append(True)
    world.a.agent.ask_consent(now=world.now)
    world.run(60)
    assert world.a.agent.state is AgentState.COMPLETED and not world.a.of(ConsentLost)


def test_an_answered_inquiry_sends_no_further_checks() -> None:
    world = connected(plain())
    sent = len(world.packets)
    world.a.agent.ask_consent(now=world.now)
    world.a.agent.ask_consent(now=world.now)
    world.run(1)
    assert len([packet for packet in world.packets[sent:] if packet.sender == "a"]) == 1
    world.run(LIFETIME / SECOND * 2)
    assert world.a.agent.state is AgentState.COMPLETED


def test_a_peer_that_is_there_again_is_not_asked_any_more() -> None:
    world = connected(plain())
    world.blocked = lambda packet: True
    world.a.agent.ask_consent(now=world.now)
    world.run(1.5)
    world.a.agent.stop_asking(now=world.now)
    world.run(10)
    assert world.a.agent.state is AgentState.COMPLETED
    world.blocked = lambda packet: False
    world.run(60)
    assert world.a.agent.state is AgentState.COMPLETED


def test_of_two_paths_the_one_that_answers_stays() -> None:
    world = World()
    for side, n in ((world.a, 1), (world.b, 2)):
        side.host(f"192.168.0.{n}")
        side.host(f"192.168.1.{n}")
        side.end()
    connected(world)
    world.run(20)
    used = world.a.path.split(" ")[1]
    world.blocked = lambda packet: used[:9] in str(packet.source)
    at = world.now
    world.a.agent.ask_consent(now=at)
    assert world.run(4, until=lambda: used not in world.a.path)
    assert world.now <= at + 2 * SECOND
    world.run(5)
    assert world.a.agent.state is AgentState.COMPLETED


def test_without_consent_nothing_is_asked() -> None:
    world = connected(plain(a=IceConfig(controlling=True, consent=False)))
    sent = len(world.packets)
    world.blocked = lambda _: True
    world.a.agent.ask_consent(now=world.now)
    world.run(5)
    assert world.a.agent.state is AgentState.COMPLETED
    assert not [
        packet for packet in world.packets[sent:] if packet.message.cls is Class.REQUEST and packet.sender == "a"
    ]
