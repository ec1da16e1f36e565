"""The limits of the signaling server: members, links, messages and bytes. Exceeding them is an offense or a refusal."""

from __future__ import annotations

import pytest

from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND, Instant
from polynya.signaling.limits import Bucket, Limits
from polynya.signaling.links import (
    POLICY,
    TOO_LARGE,
    TRY_LATER,
)
from polynya.signaling.messages import (
    Error,
    Join,
    Keepalive,
    Left,
)
from polynya.signaling.server import LinkRefused
from tests.signaling.house import JOIN, House, codes, join


def test_the_room_limit_of_its_first_member_holds_for_all() -> None:
    house = House()
    house.raw().say(Join(version=1, room="room", limit=2))
    join(house)
    third = house.raw()
    assert codes(third.say(JOIN)) == ["room-full"]
    assert third.closed == (TRY_LATER, "room-full")


def test_a_join_with_a_limit_does_not_enter_a_larger_room() -> None:
    house = House()
    join(house)
    join(house)
    assert codes(house.raw().say(Join(version=1, room="room", limit=2))) == ["room-full"]
    assert codes(house.raw().say(Join(version=1, room="room", limit=3))) == []


def test_rooms_links_and_links_of_a_host_are_capped() -> None:
    house = House(rooms=1, links=4, links_per_host=2)
    join(house)
    other = house.raw()
    assert codes(other.say(Join(version=1, room="another"))) == ["server-full"]
    assert other.closed == (TRY_LATER, "server-full")
    house.raw()
    third = house.raw()
    assert codes(third.heard()) == ["host-full"]
    assert third.closed is not None
    house.raw("198.51.100.2")
    house.raw("198.51.100.3")
    last = house.raw("198.51.100.4")
    assert codes(last.heard()) == ["server-full"]
    assert house.server.counters["links"] == 4


def test_too_many_messages_are_refused_and_then_end_the_link() -> None:
    house = House(messages_per_second=10, burst=20, offenses=3)
    link, _ = join(house)
    said = [each for _ in range(19) for each in link.say(Keepalive())]
    assert said == []
    assert codes(link.say(Keepalive())) == ["rate"]
    house.run(0.1)
    assert codes(link.say(Keepalive())) == [], "one more is allowed after a tenth of a second"
    assert [codes(link.say(Keepalive())) for _ in range(2)] == [["rate"]] * 2
    [error] = link.say(Keepalive())
    assert isinstance(error, Error)
    assert error.fatal
    assert link.closed == (POLICY, "rate")
    assert house.server.counters["members"] == 0


def test_too_many_bytes_are_refused_though_the_messages_are_few() -> None:
    house = House(bytes_per_second=1000, bytes_burst=20_000)
    link, _ = join(house)
    text = '{"type":"keepalive","x":"' + "y" * 9000 + '"}'
    assert codes(link.say(text)) == []
    assert codes(link.say(text)) == []
    assert codes(link.say(text)) == ["rate"]
    house.run(10)
    assert codes(link.say(text)) == []


def test_a_message_that_is_too_large_is_refused_by_its_bytes() -> None:
    house = House(message_bytes=1024, offenses=1)
    link, _ = join(house)
    text = '{"type":"keepalive","x":"%s"}'
    assert codes(link.say(text % ("y" * 900))) == []
    assert codes(link.say(text % ("🧊" * 300))) == ["too-large"]
    assert codes(link.say(text % ("y" * 1000))) == ["too-large"]
    assert link.closed == (TOO_LARGE, "too-large")


def test_invalid_messages_are_answered_and_end_the_link_when_repeated() -> None:
    house = House(offenses=5)
    link, a = join(house)
    witness, _ = join(house)
    for _ in range(5):
        [error] = [each for each in link.say("nonsense") if isinstance(each, Error)]
        assert (error.code, error.fatal) == ("bad-message", False)
        assert "JSON" in error.message
    [error] = link.say(b"\x00binary")
    assert isinstance(error, Error)
    assert error.fatal
    assert link.closed == (POLICY, "bad-message")
    [left] = witness.heard()
    assert isinstance(left, Left)
    assert left.peer == a.peer
    assert any(isinstance(event, LinkRefused) for event in house.server_events)


def test_offenses_are_forgiven_in_time() -> None:
    house = House(offenses=2)
    link, _ = join(house)
    for _ in range(10):
        link.say("nonsense")
        house.run(10)
    assert link.closed is None


def test_joining_twice_and_other_versions_are_refused() -> None:
    house = House()
    link, _ = join(house)
    assert codes(link.say(JOIN)) == ["already-joined"]
    assert link.closed is None
    old = house.raw()
    [error] = old.say(Join(version=99, room="room"))
    assert isinstance(error, Error)
    assert (error.code, error.fatal) == ("version", True)
    assert "versions 1 and 2" in error.message
    assert old.closed == (POLICY, "version")


def test_an_invalid_limit_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="rooms must be at least 1"):
        Limits(rooms=0)
    with pytest.raises(ConfigurationError, match="message_bytes"):
        Limits(message_bytes=10**6)
    with pytest.raises(ConfigurationError, match="bytes_burst"):
        Limits(bytes_burst=2000)


def test_a_bucket_gives_exactly_its_rate() -> None:
    bucket = Bucket(10, 3, now=Instant(0))
    assert [bucket.take(1, now=Instant(0)) for _ in range(4)] == [True, True, True, False]
    assert bucket.ready(1) == SECOND // 10
    assert not bucket.take(1, now=Instant(SECOND // 10 - 1))
    assert bucket.take(1, now=bucket.ready(1))
    taken = sum(bucket.take(1, now=Instant(10 * SECOND + step * SECOND // 100)) for step in range(1000))
    assert taken == 3 + 99
    assert not bucket.take(4, now=Instant(100 * SECOND)), "more than the capacity is never available"
