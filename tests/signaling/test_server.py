"""The signaling server: membership, relaying, server lists, limits, and hostile clients."""

from __future__ import annotations

import json

import pytest

from polynya.core.instants import SECOND, Instant
from polynya.core.trace import TraceEvent, Tracer
from polynya.signaling.links import (
    GOING_AWAY,
    NORMAL,
    POLICY,
    REPLACED,
    SILENT,
    LinkClosed,
    LinkText,
    ServersFound,
)
from polynya.signaling.messages import (
    Away,
    Error,
    IceServer,
    Join,
    Joined,
    Keepalive,
    Leave,
    Left,
    ListServers,
    Resume,
    Resumed,
    ServerList,
    Signal,
    Welcome,
    signal,
)
from polynya.signaling.server import MemberJoined, MemberLeft, RoomServer
from tests.signaling.house import JOIN, SERVERS, House, RawLink, codes, description, join

NEW_SERVERS = (IceServer(uris=("turn:192.0.2.2:3478",), username="u", credential="c", lifetime=60),)


def test_a_newcomer_is_announced_and_gets_the_list_of_members() -> None:
    house = House()
    first, a = join(house)
    second, b = join(house)
    third, c = join(house)
    assert (a.peers, b.peers, c.peers) == ((), (a.peer,), (a.peer, b.peer))
    assert first.heard() == [Joined(b.peer), Joined(c.peer)]
    assert second.heard() == [Joined(c.peer)]
    assert third.heard() == []
    assert a.servers == SERVERS
    assert not a.resumed
    assert [type(event) for event in house.server_events] == [MemberJoined] * 3


def test_ids_and_tokens_are_128_random_bits_and_follow_the_seed() -> None:
    def draw(seed: int) -> list[str]:
        house = House(seed)
        return [text for _ in range(3) for welcome in [join(house)[1]] for text in (welcome.peer, welcome.token)]

    assert draw(1) == draw(1)
    assert len({*draw(1), *draw(2)}) == 12
    assert all(len(text) == 32 for text in draw(1))


def test_a_signal_reaches_its_recipient_and_names_the_sender() -> None:
    house = House()
    first, a = join(house)
    second, b = join(house)
    third, c = join(house)
    assert first.heard() == [Joined(b.peer), Joined(c.peer)]
    assert second.heard() == [Joined(c.peer)]
    assert first.say(signal(b.peer, description())) == []
    assert second.heard() == [signal(a.peer, description())]
    assert third.heard() == []


def test_signals_reach_only_members_of_the_same_room() -> None:
    house = House()
    inside, a = join(house, "one")
    _, b = join(house, "other")
    outside = house.raw()
    assert codes(inside.say(signal(b.peer, description()))) == ["unknown-peer"]
    assert codes(inside.say(signal(a.peer, description()))) == ["unknown-peer"], "a member cannot signal itself"
    assert codes(outside.say(signal(a.peer, description()))) == ["not-joined"]
    assert codes(outside.say(Keepalive())) == ["not-joined"]
    assert house.server.counters.get("relayed", 0) == 0


def test_a_leave_is_announced_and_the_last_one_removes_the_room() -> None:
    house = House()
    first, _ = join(house)
    second, b = join(house)
    first.heard()
    assert second.say(Leave()) == []
    assert second.closed == (NORMAL, "left")
    assert first.heard() == [Left(b.peer, "it left", clean=True)]
    first.close(NORMAL)
    assert house.server.counters["rooms"] == house.server.counters["members"] == house.server.counters["links"] == 0
    assert house.server.next_timer() is None


def test_a_member_that_resumes_in_time_keeps_its_id_and_gets_the_kept_signals() -> None:
    house = House()
    first, a = join(house)
    second, b = join(house)
    first.heard()
    second.close()
    assert first.heard() == [Away(b.peer)], "a broken connection is announced at once"
    first.say(signal(b.peer, description(1)))
    first.say(signal(b.peer, description(2)))
    back = house.raw()
    said = back.say(Join(version=1, room="room", resume=Resume(b.peer, b.token)))
    welcome = said[0]
    assert isinstance(welcome, Welcome)
    assert welcome.resumed
    assert (welcome.peer, welcome.peers) == (b.peer, (a.peer,))
    assert welcome.token != b.token, "each welcome has a new token"
    assert said[1:] == [signal(a.peer, description(1)), signal(a.peer, description(2))]
    assert first.heard() == [Resumed(b.peer)]
    house.run(60)
    assert b.peer not in [event.peer for event in house.server_events if isinstance(event, MemberLeft)]


def test_a_member_that_does_not_resume_in_time_has_left() -> None:
    house = House(resume_timeout=30)
    first, _ = join(house)
    second, b = join(house)
    first.heard()
    second.close()
    house.run(29.999)
    assert first.heard() == [Away(b.peer)]
    house.run(0.001)
    assert first.heard() == [Left(b.peer, "its connection was lost")]
    _, again = join(house, resume=b)
    assert not again.resumed
    assert again.peer != b.peer


@pytest.mark.parametrize("wrong", ["token", "peer", "room"])
def test_a_wrong_token_or_room_resumes_nothing(wrong: str) -> None:
    house = House()
    link, a = join(house)
    _, bystander = join(house)
    link.close()
    peer = bystander.peer if wrong == "peer" else a.peer
    token = a.token[::-1] if wrong == "token" else a.token
    room = "elsewhere" if wrong == "room" else "room"
    [welcome] = house.raw().say(Join(version=1, room=room, resume=Resume(peer, token)))
    assert isinstance(welcome, Welcome)
    assert not welcome.resumed
    assert welcome.peer not in {a.peer, bystander.peer}


def test_a_resume_replaces_a_connection_that_still_looks_open() -> None:
    house = House()
    old, a = join(house)
    new, welcome = join(house, resume=a)
    assert old.closed == (REPLACED, "resumed on another connection")
    assert welcome.peer == a.peer
    old.close()
    assert old.say(Leave()) == [], "messages on the old link are ignored"
    assert codes(new.say(Keepalive())) == []
    assert house.server.counters["members"] == 1


def test_an_absent_member_is_announced_to_newcomers_when_it_resumes() -> None:
    house = House()
    absent, a = join(house)
    absent.close()
    newcomer, n = join(house)
    assert n.peers == ()
    assert codes(newcomer.say(signal(a.peer, description()))) == [], "the id is valid, though not announced"
    back, welcome = join(house, resume=a)
    assert welcome.peers == (n.peer,)
    assert newcomer.heard() == [Joined(a.peer)]
    assert back.heard() == [signal(n.peer, description())]


def test_two_members_that_were_away_at_once_still_know_each_other() -> None:
    house = House()
    one, a = join(house)
    two, b = join(house)
    one.close()
    two.close()
    back_two, welcome = join(house, resume=b)
    assert welcome.peers == (a.peer,)
    assert back_two.heard() == [Away(a.peer)], "it went away while this member could not hear it"
    back_one, welcome = join(house, resume=a)
    assert welcome.peers == (b.peer,)
    assert back_two.heard() == [Resumed(a.peer)]
    assert back_one.heard() == []


@pytest.mark.parametrize("way", ["leave", "close 1000", "close 1001"])
def test_a_member_that_leaves_by_itself_leaves_cleanly(way: str) -> None:
    house = House()
    first, _ = join(house)
    second, b = join(house)
    first.heard()
    if way == "leave":
        second.say(Leave())
    else:
        second.close(int(way.split()[1]))
    assert first.heard() == [Left(b.peer, "it left", clean=True)]


def test_a_member_that_the_server_removes_has_not_left_by_itself() -> None:
    house = House(idle_timeout=60)
    first, _ = join(house)
    _, b = join(house)
    first.heard()
    house.run(30)
    first.say(Keepalive())
    house.run(31)
    assert first.heard() == [Left(b.peer, "the client was silent for 60 s", clean=False)]


def test_a_client_of_version_1_is_served() -> None:
    house = House()
    old = house.raw()
    [welcome] = old.say('{"type":"join","version":1,"room":"room"}')
    assert isinstance(welcome, Welcome) and welcome.version == 1
    new = house.raw()
    [welcome] = new.say('{"type":"join","version":2,"room":"room"}')
    assert isinstance(welcome, Welcome) and welcome.version == 2


def test_a_newcomer_takes_the_place_of_an_absent_member() -> None:
    house = House(room_members=2)
    stays, _ = join(house)
    gone, b = join(house)
    stays.heard()
    full = house.raw()
    assert codes(full.say(JOIN)) == ["room-full"]
    gone.close()
    _, c = join(house)
    assert stays.heard() == [Away(b.peer), Left(b.peer, "its connection was lost"), Joined(c.peer)]


def test_the_others_are_informed_of_a_resume() -> None:
    """Signals that they sent before the server noticed the broken connection are lost."""
    house = House()
    _, a = join(house)
    other, b = join(house)
    _, third = join(house)
    other.heard()
    join(house, resume=a)
    assert other.heard() == [Resumed(a.peer)]
    assert b.peer != third.peer


def test_a_token_is_valid_until_the_client_has_shown_that_it_has_the_next_one() -> None:
    """The connection may break again before the welcome arrives."""
    house = House()
    _, first = join(house)
    _, second = join(house, resume=first)  # this welcome is lost
    link, third = join(house, resume=first)
    assert first.peer == second.peer == third.peer and third.resumed
    assert len({first.token, second.token, third.token}) == 3
    link.say(Keepalive())
    for old in (first, second):
        assert join(house, resume=old)[1].peer != first.peer
    assert join(house, resume=third)[1].peer == first.peer


def test_a_server_with_tokens_asks_for_one_of_them_before_anything_else() -> None:
    house = House()
    house.server.tokens = ("first", "s\u00e9cond")
    for token in ("", "wrong", "firs", "first\u00e9"):
        for message in (Join(version=1, room="room", token=token), ListServers(token)):
            link = house.raw()
            assert codes(link.say(message)) == ["token"]
            assert link.closed == (POLICY, "token")
    assert house.server.counters["rooms"] == 0
    for token in house.server.tokens:
        assert isinstance(house.raw().say(ListServers(token))[0], ServerList)
        link = house.raw()
        [welcome] = link.say(Join(version=1, room=token, token=token))
        assert isinstance(welcome, Welcome)
        assert isinstance(link.say(ListServers())[0], ServerList), "a member has shown it"
        link.close()
        stolen = Join(version=1, room=token, resume=Resume(welcome.peer, welcome.token))
        assert codes(house.raw().say(stolen)) == ["token"], "the resume token alone does not do"


def full_room(house: House) -> tuple[RawLink, Welcome, RawLink, Welcome]:
    """Fill a room of two; both have nothing left to hear."""
    one, two = house.raw(), house.raw()
    [first] = one.say(Join(version=1, room="room", limit=2))
    [second] = two.say(Join(version=1, room="room", limit=2))
    one.heard()
    assert isinstance(first, Welcome) and isinstance(second, Welcome)
    return one, first, two, second


def test_a_silent_member_of_a_full_room_loses_its_place_to_a_newcomer() -> None:
    house = House()
    one, first, two, second = full_room(house)
    one.answers = False
    newcomer = house.raw()
    assert newcomer.say(JOIN) == []
    house.run(1.9)
    assert newcomer.heard() == [] and one.pings == two.pings == 1
    house.run(0.2)
    [welcome] = newcomer.heard()
    assert isinstance(welcome, Welcome)
    assert welcome.peers == (second.peer,) and welcome.peer not in (first.peer, second.peer)
    assert two.heard() == [Left(first.peer, "it did not answer for 2 s"), Joined(welcome.peer)]
    assert one.closed == (SILENT, "no answer to a ping")
    assert codes(house.raw().say(Join(version=1, room="room", resume=Resume(first.peer, first.token)))) == ["room-full"]


@pytest.mark.parametrize("sign", ["pong", "message"])
def test_a_full_room_of_living_members_refuses_a_newcomer(sign: str) -> None:
    house = House()
    one, _, two, _ = full_room(house)
    one.answers = sign == "pong"
    newcomer = house.raw()
    said = newcomer.say(JOIN)
    if sign == "message":
        assert said == []
        house.run(1)
        one.say(Keepalive())
        said = newcomer.heard()
    assert codes(said) == ["room-full"]
    house.run(5)
    assert one.closed is None and two.closed is None


def test_only_as_many_silent_members_go_as_newcomers_wait() -> None:
    house = House()
    one, _, two, _ = full_room(house)
    one.answers = two.answers = False
    gone, newcomer = house.raw(), house.raw()
    for each in (gone, newcomer):
        assert each.say(JOIN) == []
    gone.close()
    house.run(3)
    assert one.closed is not None and two.closed is None
    assert isinstance(newcomer.heard()[0], Welcome)


def test_a_member_that_leaves_meanwhile_makes_place_at_once() -> None:
    house = House()
    one, _, two, _ = full_room(house)
    one.answers = False
    newcomer = house.raw()
    assert newcomer.say(JOIN) == []
    assert codes(newcomer.say(JOIN)) == ["already-joined"], "it waits for an answer"
    two.say(Leave())
    assert isinstance(newcomer.heard()[0], Welcome)
    house.run(3)
    assert one.closed is None, "nothing asks for its place any more"


def test_a_silent_member_that_resumes_meanwhile_keeps_its_place() -> None:
    house = House()
    one, first, _, _ = full_room(house)
    one.answers = False
    newcomer = house.raw()
    assert newcomer.say(JOIN) == []
    assert join(house, resume=first)[1].peer == first.peer
    house.run(3)
    assert codes(newcomer.heard()) == ["room-full"]


def test_messages_kept_for_one_absent_member_are_bounded() -> None:
    house = House(away_messages=3)
    one, _ = join(house)
    two, b = join(house)
    two.close()
    one.heard()
    for _ in range(3):
        assert one.say(signal(b.peer, description())) == []
    [left] = one.say(signal(b.peer, description()))
    assert isinstance(left, Left)
    assert left.peer == b.peer
    assert codes(one.say(signal(b.peer, description()))) == ["unknown-peer"]


def test_messages_kept_for_all_absent_members_are_bounded() -> None:
    house = House(away_bytes_in_all=250)
    one, _ = join(house)
    gone = [join(house) for _ in range(2)]
    for link, _ in gone:
        link.close()
    one.heard()
    assert one.say(signal(gone[0][1].peer, description())) == []
    [left] = one.say(signal(gone[1][1].peer, description()))
    assert isinstance(left, Left)
    back, _ = join(house, resume=gone[0][1])
    assert len(back.heard()) == 1
    third, c = join(house)
    third.close()
    heard = one.say(signal(c.peer, description()))
    assert heard == [Resumed(gone[0][1].peer), Joined(c.peer), Away(c.peer)], "resuming released the memory"


# ---------------------------------------------------------------------------------------------------------- server list


def test_a_member_gets_the_current_server_list() -> None:
    house = House()
    link, welcome = join(house)
    assert welcome.servers == SERVERS
    house.servers = NEW_SERVERS
    assert link.say(ListServers()) == [ServerList(NEW_SERVERS)]


def test_a_client_gets_the_server_list_without_joining() -> None:
    house = House(join_timeout=10)
    link = house.raw()
    assert link.say(ListServers()) == [ServerList(SERVERS)]
    assert house.server.counters["rooms"] == house.server.counters["members"] == 0
    assert house.server_events == []
    house.run(10)
    assert codes(link.heard()) == ["join-timeout"], "the request does not postpone the join timeout"


def test_server_lists_are_limited_and_the_limit_is_no_offense() -> None:
    house = House(server_lists=3, offenses=1)
    link, _ = join(house)
    assert [link.say(ListServers()) for _ in range(3)] == [[ServerList(SERVERS)]] * 3
    for _ in range(5):
        [error] = link.say(ListServers())
        assert isinstance(error, Error)
        assert (error.code, error.fatal) == ("servers-rate", False)
    assert link.closed is None
    house.run(10)
    assert link.say(ListServers()) == [ServerList(SERVERS)]
    assert codes(link.say(ListServers())) == ["servers-rate"]
    assert house.server.counters["server-lists"] == 4
    assert house.server.counters["servers-rate"] == 6


def test_a_server_list_for_a_closed_link_is_dropped() -> None:
    house = House()
    link, _ = join(house)
    link.say(Leave())
    house.server.receive(ServersFound(link=link.link, servers=SERVERS), now=house.now)
    assert house.server.outputs() == []


# ----------------------------------------------------------------------------------------------------------------- time


def test_a_link_that_does_not_join_is_closed() -> None:
    house = House(join_timeout=10)
    link = house.raw()
    house.run(9.999)
    assert link.closed is None
    house.run(0.001)
    assert codes(link.heard()) == ["join-timeout"]
    assert link.closed == (POLICY, "join-timeout")


def test_a_closed_link_counts_until_its_connection_is_gone() -> None:
    house = House(join_timeout=10, links_per_host=1)
    house.connections_stay = True
    first = house.raw()
    house.run(10)
    assert first.closed == (POLICY, "join-timeout")
    assert house.server.counters["closing"] == 1
    assert codes(house.raw().heard()) == ["host-full"]
    for number in (1, 2):
        house.server.receive(LinkClosed(link=number), now=house.now)
    assert house.server.counters["closing"] == 0
    assert house.raw().closed is None


def test_refused_messages_do_not_postpone_the_join_timeout() -> None:
    house = House(join_timeout=10, offenses=100)
    link = house.raw()
    for _ in range(10):
        house.run(1)
        link.say(Keepalive())
    assert link.closed == (POLICY, "join-timeout")


def test_a_silent_member_is_closed_and_a_keepalive_prevents_it() -> None:
    house = House(idle_timeout=300)
    silent, s = join(house)
    lively, _ = join(house)
    for _ in range(4):
        house.run(100)
        lively.say(Keepalive())
    assert silent.closed == (GOING_AWAY, "idle")
    assert lively.closed is None
    assert s.pace.keepalive == 100


def test_a_room_without_signals_is_closed_despite_keepalives() -> None:
    house = House(room_timeout=1000, idle_timeout=300)
    one, _ = join(house)
    two, b = join(house)
    for _ in range(9):
        house.run(100)
        one.say(Keepalive())
        two.say(Keepalive())
    one.say(signal(b.peer, description()))
    for _ in range(9):
        house.run(100)
        one.say(Keepalive())
        two.say(Keepalive())
    assert one.closed is None
    assert two.closed is None
    house.run(100)
    assert one.closed == two.closed == (GOING_AWAY, "room-idle")
    assert house.server.counters["rooms"] == house.server.counters["links"] == 0
    assert house.server.next_timer() is None


def test_timers_that_are_due_together_do_not_disturb_each_other() -> None:
    house = House(room_timeout=300, idle_timeout=300, resume_timeout=300)
    join(house)
    gone, _ = join(house)
    gone.close()
    house.server.tick(now=Instant(1000 * SECOND))
    house.settle()
    assert house.server.counters["members"] == 0
    house.server.tick(now=Instant(2000 * SECOND))


def test_closing_the_server_sends_errors_and_closes_all_links() -> None:
    house = House()
    one, _ = join(house)
    two = house.raw()
    house.server.close(now=house.now)
    house.settle()
    for link in (one, two):
        assert codes(link.heard()) == ["shutting-down"]
        assert link.closed == (GOING_AWAY, "shutting-down")
    assert house.server.next_timer() is None
    late = house.raw()
    assert late.closed == (GOING_AWAY, "shutting-down")
    house.server.receive(LinkText(one.link, "{}"), now=house.now)
    assert house.server.outputs() == []


# ------------------------------------------------------------------------------------------- trace, events and counters


def test_the_trace_and_the_events_hold_no_token_and_no_room_name() -> None:
    lines: list[TraceEvent] = []
    house = House()
    house.server = RoomServer(random=house.random, trace=Tracer(lines.append, "server", "signaling"))
    _, a = join(house, "secret room")
    link, b = join(house, "secret room")
    link.say("nonsense")
    link.close()
    house.run(60)
    text = json.dumps([event.to_json() for event in lines]) + repr(house.server_events)
    assert [event.fields["event"] for event in lines] == ["joined", "joined", "refused", "away", "left"]
    assert a.peer in text
    for secret in (a.token, b.token, "secret room"):
        assert secret not in text


def test_names_of_counters_never_come_from_clients() -> None:
    house = House()
    link, _ = join(house, "chosen-by-member")
    link.say('{"type":"chosen"}')
    link.say(Signal(peer="a" * 32, body=signal("a" * 32, description()).body))
    assert set(house.server.counters) == {
        "bad-message", "closing", "joined", "links", "members", "messages", "rooms", "unknown-peer",
    }  # fmt: skip
