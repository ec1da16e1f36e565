"""The signaling client: joining, roles, reconnecting, pacing, server lists, and invalid input."""

from __future__ import annotations

import random

import pytest

from polynya.core.errors import UsageError
from polynya.core.instants import SECOND, Instant
from polynya.signaling.client import (
    BodyReceived,
    ClientState,
    ClientTimeouts,
    Ended,
    Entered,
    Interrupted,
    PeerAway,
    PeerJoined,
    PeerLeft,
    PeerResumed,
    Refused,
    RoomClient,
    ServersReceived,
    ServersRefused,
)
from polynya.signaling.links import CloseLink, LinkClosed, LinkOpened, LinkText, OpenLink, SendText
from polynya.signaling.messages import (
    VERSION,
    Candidate,
    Error,
    IceServer,
    Joined,
    ListServers,
    Pace,
    ServerList,
    Welcome,
    encode,
    signal,
)
from tests.signaling.house import SERVERS, House, Member, description

ME, PEER, OUTSIDER = "5" * 32, "a" * 32, "c" * 32
NEW_SERVERS = (IceServer(uris=("turn:192.0.2.2:3478",), username="u", credential="c", lifetime=60),)
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
    assert alice.drain() == [PeerLeft(peer=bob.client.peer_id, reason="it left", clean=True)]
    assert bob.drain() == [Ended(code="left", reason="left")]
    assert alice.client.peers == ()


@pytest.mark.parametrize("seed", range(8))
def test_exactly_one_of_two_members_controls_in_any_order(seed: int) -> None:
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


def test_the_same_seed_gives_the_same_texts() -> None:
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


# --------------------------------------------------------------------------------------------------------- reconnecting


def test_a_broken_link_is_resumed_without_loss() -> None:
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
    house.up = True
    house.run(10)
    assert alice.drain() == [
        PeerAway(peer=own_id),
        PeerResumed(peer=own_id),
        BodyReceived(peer=own_id, body=description(2)),
    ], "alice got no `left`"
    assert bob.drain() == [
        Interrupted(reason="broke"),
        Entered(peer_id=own_id, peers=(alice.client.peer_id,), servers=SERVERS, resumed=True),
        PeerResumed(peer=alice.client.peer_id),
        BodyReceived(peer=alice.client.peer_id, body=description(1)),
    ]


def test_changes_of_membership_during_a_disconnection_are_emitted() -> None:
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
        PeerLeft(peer=bob.client.peer_id, reason="it left while this side was disconnected"),
        PeerJoined(peer=carol.client.peer_id),
    ]
    assert carol.client.peers == (alice.client.peer_id,)


def test_a_client_that_resumes_too_late_joins_with_a_new_id() -> None:
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
        PeerLeft(peer=alice.client.peer_id, reason="it left while this side was disconnected"),
        Entered(peer_id=after, peers=(alice.client.peer_id,), servers=SERVERS, resumed=False),
    ], "the same member is a new one to a client with a new id"
    changes = [event for event in alice.drain() if isinstance(event, PeerLeft | PeerJoined)]
    assert changes == [
        PeerJoined(peer=before),
        PeerLeft(peer=before, reason="its connection was lost"),
        PeerJoined(peer=after),
    ]


def test_reconnecting_ends_after_its_timeout() -> None:
    house = House()
    member = house.member(timeouts=ClientTimeouts(give_up=20 * SECOND))
    house.up = False
    house.break_link(member)
    house.run(19)
    house.run(10)
    assert member.drain()[-1] == Ended(code="unreachable", reason="connection refused")
    assert member.client.state is ClientState.ENDED
    assert member.client.next_timer() is None


def test_a_first_attempt_that_fails_ends_the_client_at_once() -> None:
    house = House()
    house.up = False
    member = house.member()
    assert member.drain() == [Ended(code="unreachable", reason="connection refused")]
    assert member.client.next_timer() is None


def test_a_client_reconnects_after_a_shutdown_and_not_to_a_full_room() -> None:
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


# ---------------------------------------------------------------------------------------------------------- server list


def test_a_member_requests_the_server_list_and_gets_the_current_one() -> None:
    house = House()
    alice = house.member()
    alice.drain()
    house.servers = NEW_SERVERS
    for _ in range(3):  # one request at a time: these are one message
        alice.client.request_servers(now=house.now)
    house.settle()
    assert alice.drain() == [ServersReceived(servers=NEW_SERVERS)]
    assert alice.client.servers == NEW_SERVERS
    assert house.server.counters["server-lists"] == 1
    house.run(60)
    assert alice.drain() == [], "no timeout remains"


def test_a_request_during_a_disconnection_is_answered_by_the_next_welcome() -> None:
    house = House()
    alice = house.member()
    house.up = False
    house.break_link(alice)
    alice.client.request_servers(now=house.now)
    house.servers, house.up = NEW_SERVERS, True
    alice.drain()
    house.run(10)
    kinds = [type(event) for event in alice.events]
    assert kinds == [Entered, ServersReceived]
    assert alice.client.servers == NEW_SERVERS
    assert "server-lists" not in house.server.counters


def test_a_request_in_flight_when_the_link_breaks_is_answered_by_the_next_welcome() -> None:
    server = Server().welcome()
    server.client.request_servers(now=server.now)
    assert server.client.outputs() == [SendText(server.link, encode(ListServers()))]
    server.client.receive(LinkClosed(link=server.link), now=server.now)
    server.tick_after(1)
    *_, opened = server.client.outputs()
    assert isinstance(opened, OpenLink)
    server.link = opened.link
    server.client.receive(LinkOpened(link=server.link), now=server.now)
    server.client.events()
    server.say(encode(Welcome(version=VERSION, peer=ME, token="7" * 32, peers=(), pace=PACE, servers=NEW_SERVERS)))
    assert ServersReceived(servers=NEW_SERVERS) in server.client.events()


@pytest.mark.parametrize("code", ["servers-rate", "bad-message", "rate"])
def test_a_refused_request_is_emitted_and_another_one_can_follow(code: str) -> None:
    server = Server().welcome()
    server.client.request_servers(now=server.now)
    server.say(encode(Error(code=code, message="not now")))
    server.say(encode(Error(code="rate", message="this refuses another message")))
    assert server.client.events() == [
        ServersRefused(code=code, reason="not now"),
        Refused(code="rate", reason="this refuses another message"),
    ]
    server.client.outputs()
    server.client.request_servers(now=server.now)
    assert server.client.outputs() == [SendText(server.link, encode(ListServers()))]


def test_a_request_without_an_answer_times_out() -> None:
    server = Server(answer=5 * SECOND).welcome()
    server.client.request_servers(now=server.now)
    server.tick_after(5)
    [refused] = server.client.events()
    assert isinstance(refused, ServersRefused)
    assert refused.code == "no-answer"
    assert server.client.state is ClientState.JOINED
    server.say(encode(ServerList(NEW_SERVERS)))
    assert server.client.events() == []
    assert server.client.servers == NEW_SERVERS, "a late answer is current, too"


# -------------------------------------------------------------------------------------------------------------- by hand


class Server:
    """A server driven by hand, for invalid and hostile messages."""

    def __init__(self, **timeouts: int) -> None:
        self.client = RoomClient("room", random=random.Random(1), timeouts=ClientTimeouts(**timeouts))
        self.now = Instant(0)
        self.client.start(now=self.now)
        [opened] = self.client.outputs()
        assert isinstance(opened, OpenLink)
        self.link = opened.link
        self.client.receive(LinkOpened(link=self.link), now=self.now)
        [join] = self.client.outputs()
        assert isinstance(join, SendText)

    def welcome(self, peers: tuple[str, ...] = (PEER,), pace: Pace = PACE) -> Server:
        self.say(encode(Welcome(version=VERSION, peer=ME, token="7" * 32, peers=peers, pace=pace)))
        self.client.events()
        return self

    def say(self, text: str | bytes) -> None:
        self.client.receive(LinkText(self.link, text), now=self.now)

    def tick_after(self, seconds: float) -> None:
        self.now = Instant(self.now + round(seconds * SECOND))
        self.client.tick(now=self.now)


def test_a_silent_server_is_given_up() -> None:
    server = Server(answer=10 * SECOND)
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
        (encode(Welcome(version=VERSION, peer=OUTSIDER, token="7" * 32, peers=(), pace=PACE)), "unexpected"),
        (encode(signal(OUTSIDER, description())), "unknown-peer"),
        (f'{{"type":"signal","peer":"{PEER}","body":{{"kind":"dance"}}}}', "bad-body"),
        (f'{{"type":"signal","peer":"{PEER}","body":{{"kind":"description","ufrag":"a","pwd":"b"}}}}', "bad-body"),
    ],
)
def test_invalid_messages_are_dropped_and_counted(text: str | bytes, counter: str) -> None:
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


def test_a_burst_is_paced_to_the_limits_of_the_server() -> None:
    house = House(messages_per_second=10, burst=30, offenses=0)
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


def test_keepalives_keep_an_idle_member_in_the_room() -> None:
    house = House(idle_timeout=300)
    member = house.member()
    house.run(3600)
    assert member.client.state is ClientState.JOINED
    assert [type(event) for event in member.drain()] == [Entered]


def test_a_refusal_that_is_not_fatal_is_emitted_and_changes_nothing() -> None:
    server = Server().welcome()
    server.say(encode(Error(code="unknown-peer", message="no such member", peer=PEER)))
    assert server.client.events() == [Refused(code="unknown-peer", reason="no such member")]
    assert server.client.state is ClientState.JOINED


def test_a_server_of_another_version_ends_the_client() -> None:
    server = Server()
    server.say(encode(Welcome(version=99, peer=ME, token="7" * 32, peers=(), pace=PACE)))
    [ended] = server.client.events()
    assert isinstance(ended, Ended)
    assert ended.code == "version"
    assert server.client.outputs() == [CloseLink(link=server.link, code=1008)]


def test_messages_on_an_abandoned_link_are_ignored() -> None:
    server = Server().welcome()
    server.client.receive(LinkClosed(link=server.link), now=server.now)
    server.client.events()
    server.say(encode(Joined(OUTSIDER)))
    assert server.client.peers == (PEER,)
    server.tick_after(1)
    [opened] = server.client.outputs()
    assert isinstance(opened, OpenLink)
    assert opened.link != server.link
    server.say(encode(Joined(OUTSIDER)))
    assert server.client.peers == (PEER,)


def test_a_signal_for_a_member_that_left_is_dropped() -> None:
    house = House()
    alice, bob = house.member(), house.member()
    gone = bob.client.peer_id
    bob.leave()
    alice.send(gone, description())
    assert alice.client.counters == {"dropped-no-peer": 1}


def test_usage_errors_name_the_cause() -> None:
    client = RoomClient("room", random=random.Random(1))
    with pytest.raises(UsageError, match="has not been entered"):
        client.send(PEER, description(), now=Instant(0))
    with pytest.raises(UsageError, match="has not been entered"):
        client.request_servers(now=Instant(0))
    with pytest.raises(UsageError, match="has not been entered"):
        client.controls(PEER)
    client.start(now=Instant(0))
    with pytest.raises(UsageError, match="already been started"):
        client.start(now=Instant(0))
    client.leave(now=Instant(0))
    client.leave(now=Instant(0))
    assert client.events() == [Ended(code="left", reason="left")]
    with pytest.raises(UsageError, match="has ended"):
        client.send(PEER, description(), now=Instant(0))


def test_a_change_of_the_network_is_a_reason_to_connect_at_once() -> None:
    house = House()
    member = house.member()
    house.up = False
    house.break_link(member)
    house.run(20)
    assert member.client.state is ClientState.WAITING
    house.up = True
    member.client.network_changed(now=house.now)
    house.settle()
    assert member.client.state is ClientState.JOINED
    member.client.network_changed(now=house.now)
    assert member.client.outputs() == [], "an open link stays"


def test_a_change_of_the_network_replaces_an_attempt_that_hangs() -> None:
    client = RoomClient("room", random=random.Random(1))
    client.start(now=Instant(0))
    assert client.outputs() == [OpenLink(link=1)]
    client.network_changed(now=Instant(SECOND))
    assert client.outputs() == [CloseLink(link=1), OpenLink(link=2)]
    client.receive(LinkClosed(link=1), now=Instant(SECOND))
    assert client.state is ClientState.CONNECTING
    assert client.next_timer() == Instant(11 * SECOND)


def test_a_member_that_leaves_while_connecting_closes_what_it_opened() -> None:
    house = House()
    member = Member(house, RoomClient("room", random=random.Random(1)))
    member.client.start(now=house.now)
    member.client.leave(now=house.now)
    assert member.client.outputs() == [OpenLink(link=1), CloseLink(link=1)]
    assert member.client.next_timer() is None
