"""security.md, line 13, what there is of signaling: a room's members only; sizes, rates and lifetimes are capped."""

from __future__ import annotations

import pytest

from polynya.core.instants import SECOND
from polynya.core.trace import TraceEvent, Tracer
from polynya.signaling.links import POLICY, TOO_LARGE, TRY_LATER
from polynya.signaling.messages import Error, Join, Keepalive, Resume, Signal, Welcome, signal
from polynya.signaling.server import RoomServer
from tests.signaling.house import House, RawLink, description


def join(house: House, room: str = "room", resume: Resume | None = None) -> tuple[RawLink, Welcome]:
    link = house.raw()
    welcome, *link.said = link.say(Join(version=1, room=room, resume=resume))
    assert isinstance(welcome, Welcome)
    return link, welcome


def refusals(said: list[object]) -> list[str]:
    return [each.code for each in said if isinstance(each, Error)]


# ------------------------------------------------------------------------------------------------------- members only


def test_nobody_outside_a_room_says_anything_to_or_hears_anything_of_its_members() -> None:
    house = House()
    inside, a = join(house)
    other, b = join(house)
    outsider, _ = join(house, "another")
    stranger = house.raw()
    for link in (outsider, stranger):
        assert refusals(link.say(signal(a.peer, description()))) in (["unknown-peer"], ["not-joined"])
    inside.heard(), outsider.heard(), stranger.heard()
    inside.say(signal(b.peer, description()))
    [heard] = other.heard()
    assert isinstance(heard, Signal) and heard.peer == a.peer
    assert outsider.heard() == [] == stranger.heard()


def test_who_speaks_is_what_the_server_says_and_not_what_was_claimed() -> None:
    house = House()
    inside, a = join(house)
    other, b = join(house)
    text = f'{{"type":"signal","to":"{b.peer}","from":"{b.peer}","body":{{"type":"end","generation":0}}}}'
    inside.say(text)
    assert all(each.peer == a.peer for each in other.heard() if isinstance(each, Signal))


def test_a_members_place_is_its_tokens() -> None:
    house = House()
    link, a = join(house)
    join(house)
    link.close()
    for token in (a.token[::-1], "", "x", "\u00fc" * len(a.token), a.peer):
        try:
            [welcome, *_] = house.raw().say(Join(version=1, room="room", resume=Resume(a.peer, token)))
        except ValueError:
            continue  # no token at all, so it cannot even be said
        assert not isinstance(welcome, Welcome) or welcome.peer != a.peer


def test_the_names_of_rooms_which_are_their_keys_and_the_tokens_are_told_to_nobody() -> None:
    events: list[TraceEvent] = []
    house = House()
    house.server = RoomServer(random=house.random, trace=Tracer(events.append, "server", "signaling"))
    _, a = join(house, "the secret room")
    join(house, "the secret room")
    house.run(400)
    told = f"{[event.to_json() for event in events]} {house.server_events} {house.server.counters}"
    assert a.peer in told
    assert "the secret room" not in told and a.token not in told


# --------------------------------------------------------------------------------------------------------------- caps


def test_the_size_of_a_room_a_message_and_of_what_is_kept() -> None:
    house = House(room_members=2)
    join(house), join(house)
    full = house.raw()
    assert refusals(full.say(Join(version=1, room="room"))) == ["room-full"]
    house = House(message_bytes=1024, offenses=1)
    first, _ = join(house)
    said = [each for _ in range(2) for each in first.say('{"type":"keepalive","x":"%s"}' % ("y" * 1000))]
    assert refusals(said) == ["too-large"] * 2 and first.closed is not None and first.closed[0] == TOO_LARGE


def test_the_rate_of_messages_and_of_bytes() -> None:
    house = House(messages_per_second=10, burst=20, offenses=3)
    link, _ = join(house)
    said = [each for _ in range(60) for each in link.say(Keepalive())]
    assert "rate" in " ".join(refusals(said)) and link.closed is not None
    house = House(bytes_per_second=20_000, bytes_burst=70_000, offenses=3)
    link, _ = join(house)
    said = [each for _ in range(60) for each in link.say('{"type":"keepalive","padding":"%s"}' % ("x" * 10_000))]
    assert refusals(said) and link.closed is not None


@pytest.mark.parametrize(
    ("limits", "rooms", "hosts"), [({"rooms": 3}, 4, 1), ({"links": 3}, 1, 4), ({"links_per_host": 3}, 1, 1)]
)
def test_the_number_of_rooms_and_connections(limits: dict[str, int], rooms: int, hosts: int) -> None:
    house = House(**limits)
    links = []
    for number in range(4):
        link = house.raw(f"198.51.100.{number % hosts + 1}") if hosts > 1 else house.raw()
        if link.closed is None:
            link.say(Join(version=1, room=f"room {number % rooms}"))
        links.append(link)
    refused = links[-1]
    assert (refused.closed is not None and refused.closed[0] in (TRY_LATER, POLICY)) or refusals(refused.heard())


def test_the_lifetime_of_a_room_a_silence_and_a_connection_that_never_joins() -> None:
    house = House(join_timeout=10, idle_timeout=300, room_timeout=3600)
    lurker = house.raw()
    house.run(11)
    assert lurker.closed is not None
    silent, _ = join(house, "one")
    house.run(301)
    assert silent.closed is not None
    busy, _ = join(house, "two")
    for _ in range(40):
        house.run(100)
        if busy.closed is None:
            busy.say(Keepalive())
    assert busy.closed is not None, "a keepalive keeps a member, and nothing keeps a room in which nothing happens"
    assert house.now >= 3600 * SECOND
