"""Role conflicts, both ways (RFC 8445, sections 7.2.5.1 and 7.3.1.1)."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from polynya.core.instants import MILLISECOND
from polynya.ice import AgentState, IceConfig, RoleChanged
from polynya.ice.roles import Conflict, Role
from polynya.stun.attributes import ERROR_CODE, ICE_CONTROLLED, ICE_CONTROLLING
from polynya.stun.message import Message
from polynya.stun.registry import Class, Method
from tests.ice.harness import Packet, World, plain

ID = bytes(12)


def role(controlling: bool, tie_breaker: int) -> Role:
    made = Role(controlling, Random(1))
    made.tie_breaker = tie_breaker
    return made


def request(controlling: bool | None, tie_breaker: int = 0) -> Message:
    attributes = {} if controlling is None else {ICE_CONTROLLING if controlling else ICE_CONTROLLED: tie_breaker}
    return Message.request(Method.BINDING, ID, attributes)


@pytest.mark.parametrize(
    ("ours", "our_number", "theirs", "their_number", "outcome"),
    [
        (True, 5, True, 4, Conflict.REFUSE),
        (True, 5, True, 5, Conflict.REFUSE),
        (True, 5, True, 6, Conflict.SWITCH),
        (False, 5, False, 4, Conflict.SWITCH),
        (False, 5, False, 5, Conflict.SWITCH),
        (False, 5, False, 6, Conflict.REFUSE),
        (True, 5, False, 9, Conflict.NONE),
        (False, 5, True, 9, Conflict.NONE),
        (True, 5, None, 0, Conflict.NONE),
    ],
)
def test_the_larger_tie_breaker_controls(
    ours: bool, our_number: int, theirs: bool | None, their_number: int, outcome: Conflict
) -> None:
    """Section 7.3.1.1."""
    assert role(ours, our_number).judge(request(theirs, their_number)) is outcome


def test_a_late_487_changes_nothing_but_the_tie_breaker() -> None:
    """Section 7.2.5.1 switches from the role that the request said; section 16.1 draws a new number."""
    ours = role(True, 5)
    assert not ours.refused(False, Random(2))
    assert ours.tie_breaker != 5
    assert ours.refused(True, Random(3))


def conflicting(both: bool, larger: str, **options: object) -> World:
    """Two agents of one role; `larger` names the side with the larger tie-breaker."""
    world = World(
        a=IceConfig(controlling=both), b=IceConfig(controlling=both), **options  # type: ignore[arg-type]
    )  # fmt: skip
    for side in (world.a, world.b):
        side.agent.role.tie_breaker = 2 if side.name == larger else 1
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    return world


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("larger", ["a", "b"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_two_agents_of_one_role_end_with_one_each(both: bool, larger: str, first: str) -> None:
    """The agent with the larger tie-breaker ends up controlling, whichever check arrives first."""
    world = conflicting(both, larger)
    late = "b" if first == "a" else "a"
    world.blocked = lambda packet: packet.sender == late and world.now < world.started + 300_000_000
    assert world.connect(10), world.a.agent.why()
    world.run(10)
    winner, loser = (world.a, world.b) if larger == "a" else (world.b, world.a)
    assert winner.agent.controlling and not loser.agent.controlling
    assert world.same_path()
    switched = loser if both else winner
    assert [event.controlling for event in switched.of(RoleChanged)] == [not both]


def test_a_487_makes_the_one_who_asked_switch_and_check_again() -> None:
    """Section 7.2.5.1: the pair goes back to Waiting and into the triggered queue, with the new role."""
    world = conflicting(True, "b")
    world.blocked = lambda packet: packet.sender == "b" and packet.message.cls is Class.REQUEST
    world.run(1)
    sent = [packet.message for packet in world.packets if packet.sender == "a"]
    assert ICE_CONTROLLING in sent[0]
    answers = [packet.message for packet in world.packets if packet.sender == "b"]
    refusals = [answer for answer in answers if answer.cls is Class.ERROR]
    assert [refusal[ERROR_CODE].code for refusal in refusals] == [487]
    assert all(ICE_CONTROLLED in message for message in sent[1:] if message.cls is Class.REQUEST)
    [event] = world.a.of(RoleChanged)
    assert event.reason == "the other side answered 487"
    assert [view.valid for view in world.a.agent.pairs()] == [True]


def test_a_487_that_comes_after_the_conflict_was_decided_does_not_undo_it() -> None:
    """The refusal of an early check is held back until both sides agree; the role must not flip again."""
    world = conflicting(True, "b")
    held: list[Packet] = []

    def hold(packet: Packet) -> bool:
        if packet.sender == "b" and packet.message.cls is Class.ERROR and not held:
            held.append(packet)
            return True
        return False

    world.blocked = hold
    world.run(3, lambda: bool(held) and world.a.agent.state is AgentState.COMPLETED)
    assert held and world.a.agent.state is AgentState.COMPLETED
    world.later(0, lambda: world.arrive(held[0]))
    world.run(10)
    assert (world.a.agent.controlling, world.b.agent.controlling) == (False, True)
    assert world.same_path()


def test_a_487_counts_wherever_it_comes_from() -> None:
    """A NAT that answers from another address must not hide the conflict: section 7.2.5.1 comes before 7.2.5.2.1.

    Else both keep one role, if checks arrive one way only until the other side has learned where they come from.
    """
    world = conflicting(True, "b")
    world.blocked = lambda packet: (
        packet.sender == "b" and (packet.message.cls is Class.REQUEST or packet.message.cls is Class.ERROR)
    )
    world.run(0.2)
    refusal = next(packet for packet in world.packets if packet.sender == "b" and packet.message.cls is Class.ERROR)
    elsewhere = replace(refusal, source=refusal.source.with_port(999))
    world.arrive(elsewhere)
    world.drain()
    assert [event.reason for event in world.a.of(RoleChanged)] == ["the other side answered 487"]
    world.blocked = lambda _: False
    assert world.connect(5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("late", [0.0, 0.04, 0.06, 0.08, 0.2, 1.0])
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_role_that_changes_while_a_nomination_is_under_way_leaves_both_on_one_pair(
    who: str, late: float, seed: int
) -> None:
    """Found by exploration (seed 12): one side took the pair as nominated, the other waited for a nomination."""
    world = plain(seed, delay=20 * MILLISECOND)
    world.run(late)
    side = world.a if who == "a" else world.b
    side.agent.set_controlling(not side.agent.controlling, now=world.now)
    assert world.connect(30)
    world.run(20)
    assert world.a.agent.state is world.b.agent.state is AgentState.COMPLETED
    assert world.a.agent.controlling is not world.b.agent.controlling
    assert world.same_path()


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("once_valid", [True, False])
def test_a_peer_that_refuses_both_roles_ends_the_pair(both: bool, once_valid: bool) -> None:
    """A peer that always answered 487 got 15,000 requests in 300 s."""
    world = plain(b=IceConfig(controlling=both))
    if once_valid:
        assert world.connect(10)
    key, started = world.b.agent.generation.credentials.local_key, len(world.packets)

    def refusing(packet: Packet) -> bool:
        if packet.sender == "a" and packet.message.cls is Class.REQUEST:
            answer = Message.error(packet.message, 487).encode(integrity=key, fingerprint=True)
            world.later(1, lambda: world.arrive(Packet(world.now, packet.destination, packet.source, answer, "b")))
        return True

    world.blocked = refusing
    world.run(300)
    sent = [packet for packet in world.packets[started:] if packet.sender == "a"]
    requests = [packet for packet in sent if packet.message.cls is Class.REQUEST]
    assert 1 <= len(requests) <= 40
    assert world.a.agent.state is AgentState.FAILED
    assert len(world.a.of(RoleChanged)) <= 10


def test_a_refusal_is_signed() -> None:
    world = conflicting(True, "b")
    world.blocked = lambda packet: packet.sender == "b" and packet.message.cls is Class.REQUEST
    world.run(1)
    [refusal] = [p.message for p in world.packets if p.sender == "b" and p.message.cls is Class.ERROR]
    assert refusal.verify(world.b.agent.generation.credentials.local_key)


def test_an_unsigned_487_is_dropped() -> None:
    world = plain()

    def spoofing(packet: Packet) -> bool:
        if packet.sender == "a" and packet.message.cls is Class.REQUEST:
            answer = Message.error(packet.message, 487).encode(fingerprint=True)
            world.later(1, lambda: world.arrive(Packet(world.now, packet.destination, packet.source, answer, "b")))
        return False

    world.blocked = spoofing
    assert world.connect(10)
    assert not world.a.of(RoleChanged)


def test_the_role_may_be_chosen_before_the_other_side_is_known() -> None:
    world = World(a=IceConfig(controlling=True), b=IceConfig(controlling=True), signal=False)
    world.b.agent.set_controlling(False, now=world.now)
    world.describe(world.a)
    world.describe(world.b)
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    assert world.connect(10)
    assert not [p for p in world.packets if p.message.cls is Class.ERROR]
    assert world.a.agent.controlling and not world.b.agent.controlling
