"""The race of the servers of one URI."""

from __future__ import annotations

from random import Random
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.core.instants import SECOND
from polynya.core.machine import Close, Open, Resolve, Resolved, Send
from polynya.stun.uris import TurnUri
from polynya.turn.client import Allocated, AllocationFailed, Credentials, CredentialsNeeded, Permitted, Released
from polynya.turn.client.search import RelaySearch, State
from tests.turn.client.relay import USER, Relay, World

FIRST, SECOND_ = Address("203.0.113.1", 3478), Address("203.0.113.2", 3478)


class SearchWorld(World):
    """The same world around a search; names are looked up in `zone`."""

    def __init__(self, *relays: Relay, uri: str, zone: dict[str, Any], credentials: Credentials | None = USER) -> None:
        super().__init__(*relays, start=False)
        self.zone = zone
        self.resolved: list[Resolve] = []
        self.client = RelaySearch(  # type: ignore[assignment]
            TurnUri.parse(uri), random=Random(1), flow_ids=self.flow_ids, credentials=credentials
        )
        self.do(self.client.start)

    def _drain(self) -> None:
        for output in self.client.outputs():
            if isinstance(output, Send):
                self._send(output)
            elif isinstance(output, Open):
                self._open(output)
            elif isinstance(output, Close):
                self.closes.append(output.flow)
            elif isinstance(output, Resolve):
                hosts = self.zone.get(output.name, ())
                answer = Resolved(query=output, hosts=hosts, error="" if hosts else f"{output.name}: no such name")
                self.later(0, lambda answer=answer: self.client.receive(answer, now=self.now))  # type: ignore[misc]
        for event in self.client.events():
            self.events.append(event)
            self.times.append(self.now)


ZONE = {"example.org": ("203.0.113.1", "203.0.113.2")}


def test_the_first_server_that_answers_is_used_and_no_other_asked() -> None:
    world = SearchWorld(Relay(FIRST), Relay(SECOND_), uri="turn:example.org:3478", zone=ZONE)
    world.run(5)
    [allocated] = world.of(Allocated)
    assert allocated.server.address == FIRST and allocated.server.name == "example.org"
    assert world.relays[SECOND_].requests == [] and world.client.state is State.FOUND  # type: ignore[comparison-overlap]


def test_a_silent_server_is_not_waited_for() -> None:
    world = SearchWorld(Relay(SECOND_), uri="turn:example.org:3478", zone=ZONE)
    world.run(10)
    [allocated] = world.of(Allocated)
    assert allocated.server.address == SECOND_
    assert world.times[world.events.index(allocated)] - 10**15 < 1.3 * SECOND
    assert len(world.opens) == 2 and len(world.closes) == 1  # the silent one's flow


def test_an_address_family_that_leads_nowhere_costs_a_quarter_of_a_second() -> None:
    """RFC 8656, section 3.7."""
    world = SearchWorld(
        Relay(FIRST), uri="turn:example.org:3478", zone={"example.org": ("2001:db8::1", "203.0.113.1", "203.0.113.9")}
    )
    world.run(5)
    [allocated] = world.of(Allocated)
    assert allocated.server.address == FIRST
    assert world.times[world.events.index(allocated)] - 10**15 < 0.5 * SECOND
    assert len(world.opens) == 2, "the third was not needed"


def test_a_server_that_answers_too_late_is_freed_again() -> None:
    slow, fast = Relay(FIRST), Relay(SECOND_)
    world = SearchWorld(slow, fast, uri="turn:example.org:3478", zone=ZONE)
    started = world.now
    # The first answers its second request only after the second server has allocated.
    world.lose = lambda data, outward: not outward and data[:2] == b"\x01\x03" and world.now - started < SECOND
    world.run(30)
    [allocated] = world.of(Allocated)
    assert (allocated.server.address == SECOND_) != (allocated.server.address == FIRST)
    assert len(slow.allocations) + len(fast.allocations) == 1


def test_a_server_that_refuses_makes_room_for_the_next_at_once() -> None:
    world = SearchWorld(Relay(FIRST, families=(6,)), Relay(SECOND_), uri="turn:example.org:3478", zone=ZONE)
    world.run(0.5)
    assert world.of(Allocated)[0].server.address == SECOND_
    [attempt] = world.client.attempts  # type: ignore[attr-defined]
    assert "440" in attempt.reason


def test_a_server_that_refuses_is_not_asked_the_same_by_another_transport() -> None:
    """RFC 8656, section 7.4: the transport is not what it minds."""
    zone = {
        "_turn._udp.example.org": ("0 0 3478 a.example",),
        "_turn._tcp.example.org": ("0 0 3478 a.example",),
        "a.example": ("203.0.113.1",),
    }
    world = SearchWorld(Relay(FIRST, families=(6,)), uri="turn:example.org", zone=zone)
    world.run(5)
    [failed] = world.of(AllocationFailed)
    assert failed.code == 440 and [each.transport for each in world.opens] == [Transport.UDP]
    silent = SearchWorld(Relay(SECOND_), uri="turn:example.org", zone=zone)
    silent.run(50)
    assert [each.transport for each in silent.opens] == [Transport.UDP, Transport.TCP], "no server answered by UDP"


def test_when_all_have_failed_it_says_why_each_did() -> None:
    relays = [Relay(address, families=(6,)) for address in (FIRST, SECOND_)]
    world = SearchWorld(*relays, uri="turn:example.org:3478", zone=ZONE)
    world.run(5)
    [failed] = world.of(AllocationFailed)
    assert failed.code == 440 and failed.reason.count("440") == 2 and world.client.next_timer() is None


def test_a_name_that_does_not_exist_fails_it() -> None:
    world = SearchWorld(uri="turn:nowhere.example", zone={})
    world.run(5)
    [failed] = world.of(AllocationFailed)
    assert "nowhere.example: no such name" in failed.reason and failed.server is None


def test_credentials_are_asked_for_once_for_all_servers() -> None:
    world = SearchWorld(Relay(FIRST), Relay(SECOND_), uri="turn:example.org:3478", zone=ZONE, credentials=None)
    world.run(5)
    assert len(world.of(CredentialsNeeded)) == 1 and len(world.opens) == 2
    world.do(world.client.set_credentials, USER)
    world.run(20)
    assert len(world.of(Allocated)) == 1
    assert sum(len(relay.allocations) for relay in world.relays.values()) == 1


def test_what_is_done_with_the_client_that_was_found_is_drained() -> None:
    world = SearchWorld(Relay(FIRST), uri="turn:example.org:3478", zone=ZONE)
    world.run(1)
    found = world.client.found  # type: ignore[attr-defined]
    peer = Address("192.0.2.50", 1)
    world.do(found.permit, [peer])
    world.run(1)
    assert world.of(Permitted) == [Permitted(peers=(peer,))]
    world.do(world.client.close)
    world.run(1)
    assert world.of(Released) and world.relays[FIRST].allocations == {} and world.closes


def test_closing_before_anything_was_found_leaves_nothing_open() -> None:
    for at in (0.0, 0.05, 0.1, 1.05, 1.1):
        world = SearchWorld(Relay(SECOND_), uri="turn:example.org:3478", zone=ZONE)
        world.run(at)
        world.do(world.client.close)
        world.run(10)
        assert len(world.closes) == len(world.opens) and world.client.next_timer() is None
        assert world.relays[SECOND_].allocations == {}


def test_streams_are_searched_as_well() -> None:
    world = SearchWorld(Relay(SECOND_), uri="turn:example.org:3478?transport=tcp", zone=ZONE)
    world._framers.clear()
    for relay in world.relays.values():
        relay.stream = True
    world.run(3)
    [allocated] = world.of(Allocated)
    assert allocated.server.transport is Transport.TCP and allocated.server.address == SECOND_
