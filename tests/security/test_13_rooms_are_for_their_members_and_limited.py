"""security.md, line 13: a room is for its members only; sizes, rates and lifetimes are limited."""

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


def test_only_members_of_a_room_exchange_signals_in_it() -> None:
    house = House()
    inside, a = join(house)
    other, b = join(house)
    outsider, _ = join(house, "another")
    unjoined = house.raw()
    for link in (outsider, unjoined):
        assert refusals(link.say(signal(a.peer, description()))) in (["unknown-peer"], ["not-joined"])
    inside.heard(), outsider.heard(), unjoined.heard()
    inside.say(signal(b.peer, description()))
    [heard] = other.heard()
    assert isinstance(heard, Signal) and heard.peer == a.peer
    assert outsider.heard() == [] == unjoined.heard()


def test_the_server_sets_the_sender_of_a_signal() -> None:
    house = House()
    inside, a = join(house)
    other, b = join(house)
    text = f'{{"type":"signal","to":"{b.peer}","from":"{b.peer}","body":{{"type":"end","generation":0}}}}'
    inside.say(text)
    assert all(each.peer == a.peer for each in other.heard() if isinstance(each, Signal))


def test_only_its_token_resumes_a_membership() -> None:
    house = House()
    link, a = join(house)
    join(house)
    link.close()
    for token in (a.token[::-1], "", "x", "\u00fc" * len(a.token), a.peer):
        try:
            [welcome, *_] = house.raw().say(Join(version=1, room="room", resume=Resume(a.peer, token)))
        except ValueError:
            continue  # not a valid message
        assert not isinstance(welcome, Welcome) or welcome.peer != a.peer


def test_room_names_and_tokens_appear_in_no_trace_event_or_counter() -> None:
    events: list[TraceEvent] = []
    house = House()
    house.server = RoomServer(random=house.random, trace=Tracer(events.append, "server", "signaling"))
    _, a = join(house, "the secret room")
    join(house, "the secret room")
    house.run(400)
    visible = f"{[event.to_json() for event in events]} {house.server_events} {house.server.counters}"
    assert a.peer in visible
    assert "the secret room" not in visible and a.token not in visible


# --------------------------------------------------------------------------------------------------------------- caps


def test_the_sizes_of_rooms_and_messages_are_limited() -> None:
    house = House(room_members=2)
    join(house), join(house)
    full = house.raw()
    assert refusals(full.say(Join(version=1, room="room"))) == ["room-full"]
    house = House(message_bytes=1024, offenses=1)
    first, _ = join(house)
    said = [each for _ in range(2) for each in first.say('{"type":"keepalive","x":"%s"}' % ("y" * 1000))]
    assert refusals(said) == ["too-large"] * 2 and first.closed is not None and first.closed[0] == TOO_LARGE


def test_the_rates_of_messages_and_bytes_are_limited() -> None:
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
def test_the_numbers_of_rooms_and_connections_are_limited(limits: dict[str, int], rooms: int, hosts: int) -> None:
    house = House(**limits)
    links = []
    for number in range(4):
        link = house.raw(f"198.51.100.{number % hosts + 1}") if hosts > 1 else house.raw()
        if link.closed is None:
            link.say(Join(version=1, room=f"room {number % rooms}"))
        links.append(link)
    refused = links[-1]
    assert (refused.closed is not None and refused.closed[0] in (TRY_LATER, POLICY)) or refusals(refused.heard())


def test_rooms_idle_members_and_unjoined_connections_time_out() -> None:
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
    assert busy.closed is not None, "a keepalive extends a membership, but not an idle room"
    assert house.now >= 3600 * SECOND
