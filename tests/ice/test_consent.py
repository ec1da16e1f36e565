"""Consent and keepalives (RFC 7675; RFC 8445, section 11)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from polynya.core.instants import MILLISECOND, SECOND
from polynya.core.machine import Closed
from polynya.ice import (
    AgentState,
    ConsentLost,
    IceConfig,
    PairState,
    Renomination,
    SelectedPairChanged,
)
from polynya.stun.attributes import ERROR_CODE, USE_CANDIDATE, StunError
from polynya.stun.message import Message
from polynya.stun.registry import Class
from tests.ice.harness import Packet, World, behind_nats, plain


def requests(world: World, sender: str, since: int) -> list[Packet]:
    return [
        packet
        for packet in world.packets
        if packet.sender == sender and packet.at > since and packet.message.cls is Class.REQUEST
    ]


def connected(**options: object) -> World:
    world = plain(**options)  # type: ignore[arg-type]
    assert world.connect(30)
    world.run(1)
    return world


def test_consent_is_checked_every_four_to_six_seconds_each_time_in_a_new_transaction() -> None:
    """RFC 7675, section 5.1: 5 s, randomized by 0.8 to 1.2; each check is a transaction of its own."""
    world = connected()
    since = world.now
    world.run(600)
    for sender in ("a", "b"):
        asked = requests(world, sender, since)
        gaps = [(second.at - first.at) / SECOND for first, second in pairwise(asked)]
        assert all(4 <= gap <= 6 for gap in gaps)
        assert max(gaps) - min(gaps) > 1
        assert 4.8 < sum(gaps) / len(gaps) < 5.2
        assert len({packet.message.transaction_id for packet in asked}) == len(asked)
    assert world.a.agent.state is AgentState.COMPLETED


def test_interval_and_timeout_of_consent_are_options() -> None:
    options = {"consent_interval": 1.0, "consent_timeout": 6.0}
    world = connected(a=IceConfig(controlling=True, **options), b=IceConfig(controlling=False))  # type: ignore[arg-type]
    since = world.now
    world.run(60)
    gaps = [(second.at - first.at) / SECOND for first, second in pairwise(requests(world, "a", since))]
    assert gaps and all(0.8 <= gap <= 1.2 for gap in gaps)
    world.blocked = lambda packet: packet.sender == "b"
    assert world.run(60, lambda: bool(world.a.of(ConsentLost)))
    [lost] = world.a.of(ConsentLost)
    assert lost.reason == "no answer to a consent check for 6 s"
    assert world.a.agent.state is AgentState.FAILED


def test_thirty_seconds_after_the_last_answer_sending_stops() -> None:
    """RFC 7675, section 5.1: not before, and not after."""
    world = connected()
    world.blocked = lambda packet: packet.sender == "b"
    since = world.now
    assert world.run(60, lambda: bool(world.a.of(ConsentLost)))
    last_answer = max(
        packet.at + world.delay
        for packet in world.packets
        if packet.sender == "b" and packet.at <= since and packet.message.cls is Class.SUCCESS
    )
    [lost] = world.a.of(ConsentLost)
    assert (world.now - last_answer) / SECOND == pytest.approx(30, abs=0.01)
    assert lost.reason == "no answer to a consent check for 30 s"
    assert world.a.of(SelectedPairChanged)[-1].pair is None
    assert world.a.agent.state is AgentState.FAILED
    sent = len(world.packets)
    world.run(120)
    assert not [packet for packet in world.packets[sent:] if packet.sender == "a" and _is_request(packet)]


def test_credentials_are_not_used_again_where_consent_was_lost() -> None:
    """RFC 7675, section 5.1: the other side's checks are answered, but nothing of ours follows."""
    world = connected()
    world.blocked = lambda packet: packet.sender == "b" and packet.message.cls is Class.SUCCESS
    assert world.run(60, lambda: bool(world.a.of(ConsentLost)))
    world.blocked = lambda packet: False
    since = world.now
    world.run(25)
    assert [packet for packet in world.packets if packet.sender == "b" and packet.at > since and _is_request(packet)]
    answers = [packet for packet in world.packets if packet.sender == "a" and packet.at > since]
    assert answers and all(packet.message.cls is Class.SUCCESS for packet in answers)
    assert [view.state for view in world.a.agent.pairs()] == [PairState.FAILED]


def test_answers_after_consent_has_expired_do_not_bring_it_back() -> None:
    """RFC 7675, section 5.1: all outstanding consent transactions are discarded with it."""
    world = connected()
    held: list[Packet] = []

    def hold(packet: Packet) -> bool:
        late = packet.sender == "b" and packet.message.cls is Class.SUCCESS
        held.extend([packet] if late else [])
        return late

    world.blocked = hold
    assert world.run(60, lambda: bool(world.a.of(ConsentLost)))
    assert len(world.a.agent.generation.transactions) == 0
    for packet in held:
        world.arrive(packet)
        world.drain()
    [view] = world.a.agent.pairs()
    assert not view.valid and world.a.agent.path() is None
    assert world.a.agent.state is AgentState.FAILED


def test_a_link_with_a_round_trip_of_1500_ms_lives() -> None:
    """An answer to any outstanding check counts, however late (aioice closes a link of 600 ms)."""
    world = connected(delay=750 * MILLISECOND)
    world.run(300)
    assert world.a.agent.state is world.b.agent.state is AgentState.COMPLETED
    assert not world.a.of(ConsentLost) and not world.b.of(ConsentLost)


def test_some_answers_lost_are_no_loss_of_consent() -> None:
    world = connected(seed=7)
    world.loss = 0.05
    world.run(600)
    assert world.a.agent.state is AgentState.COMPLETED


def test_only_authenticated_answers_renew_consent() -> None:
    """OvenMediaEngine#2107: a bad MAC is dropped and counted, and ends nothing."""
    world = connected()

    def forged(packet: Packet) -> bool:
        if packet.sender == "b" and packet.message.cls is Class.SUCCESS:
            data = bytearray(packet.message.encode(fingerprint=True))
            world.later(world.delay, lambda: world.arrive(_replace(packet, bytes(data))))
            return True
        return False

    before = world.a.agent.counters.get("messages dropped", 0)
    world.blocked = forged
    world.run(20)
    assert world.a.agent.state is AgentState.COMPLETED
    assert world.a.agent.counters["messages dropped"] >= before + 3
    assert world.run(20, lambda: bool(world.a.of(ConsentLost)))


def test_an_authenticated_403_revokes_consent_at_once() -> None:
    """RFC 7675, section 5.2."""
    world = connected()
    key = world.b.agent.generation.credentials.local_key

    def revoking(packet: Packet) -> bool:
        if packet.sender == "b" and packet.message.cls is Class.SUCCESS:
            request = packet.message
            answer = Message(
                request.method, Class.ERROR, request.transaction_id, {ERROR_CODE: StunError(403, "Forbidden")}
            )
            data = answer.encode(integrity=key, fingerprint=True)
            world.later(world.delay, lambda: world.arrive(_replace(packet, data)))
            return True
        return False

    world.blocked = revoking
    assert world.run(7, lambda: bool(world.a.of(ConsentLost)))
    assert world.a.of(ConsentLost)[0].reason == "the other side revoked its consent (403)"


def test_an_unauthenticated_403_revokes_nothing() -> None:
    world = connected()

    def spoofed(packet: Packet) -> bool:
        if packet.sender == "a" and _is_request(packet):
            answer = Message.error(packet.message, 403).encode(fingerprint=True)
            world.later(1, lambda: world.arrive(Packet(world.now, packet.destination, packet.source, answer, "b")))
        return False

    world.blocked = spoofed
    world.run(40)
    assert world.a.agent.state is AgentState.COMPLETED


def test_a_clock_that_jumps_ends_consent_that_is_too_old() -> None:
    """A host that slept for ten minutes has no consent any more, and says so at once."""
    world = connected()
    world.queue.clear()
    world.now += 600 * SECOND  # type: ignore[assignment]
    world.a.agent.tick(now=world.now)
    world.drain()
    assert world.a.of(ConsentLost)


def test_a_short_sleep_asks_for_consent_at_once() -> None:
    world = connected()
    world.queue.clear()
    world.now += 20 * SECOND  # type: ignore[assignment]
    world.a.agent.tick(now=world.now)
    world.drain()
    assert requests(world, "a", world.now - 1)
    world.run(30)
    assert not world.a.of(ConsentLost)


def test_lite_agents_are_asked_with_the_nomination() -> None:
    """shinyoshiaki/werift-webrtc#649: lite peers dropped the session without USE-CANDIDATE in later checks."""
    world = plain(b=IceConfig(controlling=False, lite=True))
    assert world.connect(10)
    since = world.now
    world.run(60)
    asked = requests(world, "a", since)
    assert len(asked) > 8 and all(USE_CANDIDATE in packet.message for packet in asked)
    assert world.a.agent.state is AgentState.COMPLETED
    assert not requests(world, "b", world.started)


def test_mappings_and_consent_of_other_valid_pairs_are_kept() -> None:
    """RFC 8445, section 11: at least every 15 s where nothing else is sent."""
    world = World()
    world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    valid = [view for view in world.a.agent.pairs() if view.valid]
    selected = world.a.agent.selected()
    since = world.now
    world.run(100)
    for view in valid:
        assert selected is not None
        kept = [p for p in world.packets if p.at > since and p.sender == "a" and p.source == view.base]
        assert {packet.message.cls for packet in kept} == {Class.REQUEST, Class.SUCCESS}
        asked = [packet for packet in kept if packet.message.cls is Class.REQUEST]
        assert all(second.at - first.at <= 15 * SECOND for first, second in pairwise(asked))


def two_paths(**options: object) -> World:
    world = World(**options)  # type: ignore[arg-type]
    world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    return world


@pytest.mark.parametrize("who", ["a", "b"])
def test_after_minutes_another_pair_can_still_take_over(who: str) -> None:
    """Its consent was as old as its first answer once, and so it was given up in the moment it was needed."""
    world = two_paths()
    world.run(300)
    side = world.a if who == "a" else world.b
    selected = side.agent.selected()
    assert selected is not None
    if who == "a":
        side.agent.receive(Closed(flow=selected.flow, reason="unplugged"), now=world.now)
        del side.sockets[selected.flow]
        world.drain()
    else:
        world.blocked = lambda packet: selected.remote_address in (packet.source, packet.destination)
    world.run(50)
    assert side.agent.path() is not None and side.agent.selected().id != selected.id  # type: ignore[union-attr]
    assert side.agent.state in (AgentState.CONNECTED, AgentState.COMPLETED)


def test_a_pair_that_is_nominated_late_is_checked_again_and_not_lost() -> None:
    """Found by exploration (seed 502411): a pair was nominated 30 s after its last answer, and revoked."""
    world = two_paths(
        a=IceConfig(renomination=Renomination(automatic=False)),
        b=IceConfig(controlling=False, renomination=Renomination(automatic=False)),
    )
    other = next(view for view in world.a.agent.pairs() if view.valid and not view.nominated)
    world.run(1)
    world.blocked = lambda packet: other.base in (packet.source, packet.destination)
    world.run(60)
    world.blocked = lambda _: False
    world.a.agent.nominate(other.id, now=world.now)
    world.run(0.2)
    assert world.same_path()
    assert world.b.agent.selected().remote_address == other.base  # type: ignore[union-attr]
    world.run(60)
    assert not world.b.of(ConsentLost) and world.same_path()


def test_without_consent_the_selected_pair_is_kept_by_indications() -> None:
    world = plain(a=IceConfig(controlling=True, consent=False), b=IceConfig(controlling=False, consent=False))
    assert world.connect(10)
    since = world.now
    world.run(100)
    sent = [packet for packet in world.packets if packet.at > since and packet.sender == "a"]
    assert len(sent) == 6 and all(packet.message.cls is Class.INDICATION for packet in sent)


def test_consent_follows_the_selected_pair_behind_nats() -> None:
    world = behind_nats()
    assert world.connect(10)
    world.run(120)
    assert world.same_path()
    assert world.a.agent.state is world.b.agent.state is AgentState.COMPLETED


def _is_request(packet: Packet) -> bool:
    return packet.message.cls is Class.REQUEST


def _replace(packet: Packet, data: bytes) -> Packet:
    return Packet(packet.at, packet.source, packet.destination, data, packet.sender)
