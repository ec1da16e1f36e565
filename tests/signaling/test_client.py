"""A member's side: entering, roles, coming back, pacing, and what is not believed."""

from __future__ import annotations

import random

import pytest

from polynya.core.errors import UsageError
from polynya.core.instants import SECOND, Instant
from polynya.signaling.client import (
    BodyReceived,
    ClientState,
    Ended,
    Entered,
    Interrupted,
    Patience,
    PeerJoined,
    PeerLeft,
    Refused,
    RoomClient,
)
from polynya.signaling.links import CloseLink, LinkClosed, LinkOpened, LinkText, OpenLink, SendText
from polynya.signaling.messages import (
    Candidate,
    Error,
    Joined,
    Pace,
    Welcome,
    encode,
    signal,
)
from tests.signaling.house import SERVERS, House, Member, description

ME, PEER, STRANGER = "5" * 32, "a" * 32, "c" * 32
PACE = Pace(message_bytes=16_384, messages_per_second=50, burst=200, keepalive=100, resume=30)


def test_two_members_find_each_other_and_exchange_descriptions_and_candidates() -> None:
    house = House()
    alice, bob = house.member(), house.member()
    assert alice.client.state is bob.client.state is ClientState.JOINED
    assert alice.drain() == [
        Entered(peer_id=alice.client.peer_id, peers=(), servers=SERVERS, resumed=False),
        PeerJoined(peer=bob.client.peer_id),
    ]
    assert bob.client.peers == (alice.client.peer_id,)
    bob.drain()
    alice.send(bob, description())
    bob.client.send(alice.client.peer_id, Candidate(candidate=None), now=house.now)
    house.settle()
    assert bob.drain() == [BodyReceived(peer=alice.client.peer_id, body=description())]
    assert alice.drain() == [BodyReceived(peer=bob.client.peer_id, body=Candidate(candidate=None))]
    bob.leave()
    assert alice.drain() == [PeerLeft(peer=bob.client.peer_id, reason="it left")]
    assert bob.drain() == [Ended(code="left", reason="left")]
    assert alice.client.peers == ()


@pytest.mark.parametrize("seed", range(8))
def test_exactly_one_of_two_controls_whoever_came_or_spoke_first(seed: int) -> None:
    house = House(seed)
    members = [house.member() for _ in range(4)]
    for one in members:
        for other in members:
            if one is not other:
                assert one.client.controls(other.client.peer_id) != other.client.controls(one.client.peer_id)
    members[0].send(members[1], description(ufrag="aaaa"))
    members[1].send(members[0], description(ufrag="bbbb"))
    glare = [event.body for member in members for event in member.events if isinstance(event, BodyReceived)]
    assert glare == [description(ufrag="bbbb"), description(ufrag="aaaa")]


def test_same_seed_same_texts() -> None:
    def texts(seed: int) -> list[str]:
        house = House(seed)
        alice, bob = house.member(), house.member()
        alice.send(bob, description())
        house.break_link(bob)
        house.run(5)
        bob.leave()
        return house.texts

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


# --------------------------------------------------------------------------------------------------------- coming back


def test_a_broken_link_is_resumed_and_nothing_that_was_sent_meanwhile_is_lost() -> None:
    house = House()
    alice, bob = house.member(), house.member()
    alice.drain()
    bob.drain()
    own_id = bob.client.peer_id
    house.up = False
    house.break_link(bob)
    house.run(1)
    alice.send(bob, description(1))
    bob.send(alice, description(2))
    assert alice.drain() == []
    house.up = True
    house.run(10)
    assert alice.drain() == [BodyReceived(peer=own_id, body=description(2))], "alice never saw it go"
    assert bob.drain() == [
        Interrupted(reason="broke"),
        Entered(peer_id=own_id, peers=(alice.client.peer_id,), servers=SERVERS, resumed=True),
        BodyReceived(peer=alice.client.peer_id, body=description(1)),
    ]


def test_who_came_and_went_meanwhile_is_told() -> None:
    house = House()
    alice, bob = house.member(), house.member()
    house.up = False
    house.break_link(alice)
    bob.leave()
    house.up = True
    carol = house.member()
    alice.drain()
    house.run(10)
    assert [event for event in alice.drain() if isinstance(event, PeerLeft | PeerJoined)] == [
        PeerLeft(peer=bob.client.peer_id, reason="it left while we were away"),
        PeerJoined(peer=carol.client.peer_id),
    ]
    assert carol.client.peers == (alice.client.peer_id,)


def test_a_member_that_comes_back_too_late_enters_anew() -> None:
    house = House(resume_timeout=5)
    alice, bob = house.member(), house.member()
    before = bob.client.peer_id
    house.up = False
    house.break_link(bob)
    house.run(6)
    bob.send(alice, description())
    bob.drain()
    house.up = True
    house.run(20)
    after = bob.client.peer_id
    assert after != before
    assert bob.drain() == [
        Entered(peer_id=after, peers=(alice.client.peer_id,), servers=SERVERS, resumed=False),
        PeerLeft(peer=alice.client.peer_id, reason="it left while we were away"),
    ]
    told = [event for event in alice.drain() if isinstance(event, PeerLeft | PeerJoined)]
    assert told == [
        PeerJoined(peer=before),
        PeerLeft(peer=before, reason="its connection was lost"),
        PeerJoined(peer=after),
    ]


def test_patience_ends() -> None:
    house = House()
    member = house.member(patience=Patience(give_up=20 * SECOND))
    house.up = False
    house.break_link(member)
    house.run(19)
    house.run(10)
    assert member.drain()[-1] == Ended(code="unreachable", reason="connection refused")
    assert member.client.state is ClientState.ENDED
    assert member.client.next_timer() is None


def test_the_first_attempt_fails_at_once() -> None:
    house = House()
    house.up = False
    member = house.member()
    assert member.drain() == [Ended(code="unreachable", reason="connection refused")]
    assert member.client.next_timer() is None


def test_a_server_that_shuts_down_is_waited_for_and_a_full_room_is_not() -> None:
    house = House()
    member = house.member()
    house.server.close(now=house.now)
    house.settle()
    assert member.drain()[-1] == Interrupted(reason="the server is shutting down")
    assert member.client.state is ClientState.WAITING
    house = House()
    house.member(limit=1)
    refused = house.member()
    [ended] = refused.drain()
    assert isinstance(ended, Ended)
    assert ended.code == "room-full"


# ---------------------------------------------------------------------------------------------------------- by hand


class Server:
    """A server played by hand, for what a good one would not do."""

    def __init__(self, **patience: int) -> None:
        self.client = RoomClient("room", random=random.Random(1), patience=Patience(**patience))
        self.now = Instant(0)
        self.client.start(now=self.now)
        [opened] = self.client.outputs()
        assert isinstance(opened, OpenLink)
        self.link = opened.link
        self.client.receive(LinkOpened(link=self.link), now=self.now)
        [join] = self.client.outputs()
        assert isinstance(join, SendText)

    def welcome(self, peers: tuple[str, ...] = (PEER,), pace: Pace = PACE) -> Server:
        self.say(encode(Welcome(version=1, peer=ME, token="7" * 32, peers=peers, pace=pace)))
        self.client.events()
        return self

    def say(self, text: str | bytes) -> None:
        self.client.receive(LinkText(self.link, text), now=self.now)

    def tick_after(self, seconds: float) -> None:
        self.now = Instant(self.now + round(seconds * SECOND))
        self.client.tick(now=self.now)


def test_a_server_that_says_nothing_is_given_up() -> None:
    server = Server(join=10 * SECOND)
    assert server.client.next_timer() == 10 * SECOND
    server.tick_after(10)
    [ended] = server.client.events()
    assert isinstance(ended, Ended)
    assert ended.code == "no-welcome"
    assert server.client.outputs() == [CloseLink(link=server.link)]


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        ("nonsense", "bad-message"),
        (b"\x01", "bad-message"),
        ('{"type":"dance"}', "bad-message"),
        (encode(Welcome(version=1, peer=STRANGER, token="7" * 32, peers=(), pace=PACE)), "unexpected"),
        (encode(signal(STRANGER, description())), "unknown-peer"),
        (f'{{"type":"signal","peer":"{PEER}","body":{{"kind":"dance"}}}}', "bad-body"),
        (f'{{"type":"signal","peer":"{PEER}","body":{{"kind":"description","ufrag":"a","pwd":"b"}}}}', "bad-body"),
    ],
)
def test_what_is_not_right_is_dropped_and_counted(text: str | bytes, counter: str) -> None:
    server = Server().welcome()
    server.say(text)
    assert server.client.events() == []
    assert server.client.counters == {f"dropped-{counter}": 1}
    assert (server.client.peer_id, server.client.peers) == (ME, (PEER,))


def test_older_generations_are_dropped_and_newer_ones_pass() -> None:
    server = Server().welcome()
    for body in (
        Candidate(candidate="early", generation=1),
        description(1),
        Candidate(candidate="old", generation=0),
        description(0),
        Candidate(candidate="now", generation=1),
        description(2),
        Candidate(candidate="late", generation=1),
    ):
        server.say(encode(signal(PEER, body)))
    bodies = [event.body for event in server.client.events() if isinstance(event, BodyReceived)]
    assert bodies == [
        Candidate(candidate="early", generation=1),
        description(1),
        Candidate(candidate="now", generation=1),
        description(2),
    ]
    assert server.client.counters == {"dropped-old-generation": 3}


def test_a_burst_is_paced_to_what_the_server_takes() -> None:
    house = House(messages_per_second=10, burst=30, offences=0)
    alice, bob = house.member(), house.member()
    bob.drain()
    for number in range(200):
        alice.client.send(bob.client.peer_id, Candidate(candidate=str(number)), now=house.now)
    house.settle()
    assert len(bob.events) == 20
    house.run(1)
    assert len(bob.events) == 30
    house.run(60)
    bodies = [event.body for event in bob.drain() if isinstance(event, BodyReceived)]
    assert bodies == [Candidate(candidate=str(number)) for number in range(200)]
    assert alice.client.state is ClientState.JOINED


def test_a_waiting_member_keeps_its_place_by_keepalives() -> None:
    house = House(idle_timeout=300)
    member = house.member()
    house.run(3600)
    assert member.client.state is ClientState.JOINED
    assert [type(event) for event in member.drain()] == [Entered]


def test_a_refusal_that_is_not_fatal_is_told_and_changes_nothing() -> None:
    server = Server().welcome()
    server.say(encode(Error(code="unknown-peer", message="no such member", peer=PEER)))
    assert server.client.events() == [Refused(code="unknown-peer", reason="no such member")]
    assert server.client.state is ClientState.JOINED


def test_a_server_of_another_version_is_left() -> None:
    server = Server()
    server.say(encode(Welcome(version=2, peer=ME, token="7" * 32, peers=(), pace=PACE)))
    [ended] = server.client.events()
    assert isinstance(ended, Ended)
    assert ended.code == "version"
    assert server.client.outputs() == [CloseLink(link=server.link, code=1008)]


def test_what_an_old_link_still_says_is_not_heard() -> None:
    server = Server().welcome()
    server.client.receive(LinkClosed(link=server.link), now=server.now)
    server.client.events()
    server.say(encode(Joined(STRANGER)))
    assert server.client.peers == (PEER,)
    server.tick_after(1)
    [opened] = server.client.outputs()
    assert isinstance(opened, OpenLink)
    assert opened.link != server.link
    server.say(encode(Joined(STRANGER)))
    assert server.client.peers == (PEER,)


def test_what_is_for_one_who_left_is_dropped() -> None:
    house = House()
    alice, bob = house.member(), house.member()
    gone = bob.client.peer_id
    bob.leave()
    alice.send(gone, description())
    assert alice.client.counters == {"dropped-no-peer": 1}


def test_wrong_use_says_what_to_do() -> None:
    client = RoomClient("room", random=random.Random(1))
    with pytest.raises(UsageError, match="enter it first"):
        client.send(PEER, description(), now=Instant(0))
    with pytest.raises(UsageError, match="has not been entered"):
        client.controls(PEER)
    client.start(now=Instant(0))
    with pytest.raises(UsageError, match="has been started"):
        client.start(now=Instant(0))
    client.leave(now=Instant(0))
    client.leave(now=Instant(0))
    assert client.events() == [Ended(code="left", reason="left")]
    with pytest.raises(UsageError, match="when it ended"):
        client.send(PEER, description(), now=Instant(0))


def test_a_member_that_leaves_while_connecting_closes_what_it_opened() -> None:
    house = House()
    member = Member(house, RoomClient("room", random=random.Random(1)))
    member.client.start(now=house.now)
    member.client.leave(now=house.now)
    assert member.client.outputs() == [OpenLink(link=1), CloseLink(link=1)]
    assert member.client.next_timer() is None
