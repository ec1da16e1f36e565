"""Relays of a session (RFC 8445, section 5.1.1.2): the order of the servers, and the events."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, Open, Output, RecordType, Resolve, Resolved, Send
from polynya.core.pacer import Pacer
from polynya.ice.candidates import CandidateType
from polynya.session.events import PathReady, RelayFailed, RelayFound, RelayLost
from polynya.session.local_candidates import of_relay
from polynya.session.options import Base, HostAddress, Policy, TurnCredentials
from polynya.session.relays import TRANSITIONS, Relays, State
from polynya.stun.attributes import (
    ALTERNATE_SERVER,
    DATA,
    LIFETIME,
    NONCE,
    REALM,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
)
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.stun.uris import TurnUri
from polynya.turn.client.events import ServerAddress

SERVER = Address("203.0.113.1", 3478)
BASE = Base(flow=Flow(900), host=HostAddress(address=Address("192.0.2.9", 0), interface="eth0"),
            local=Address("192.0.2.9", 5000))  # fmt: skip
ZONE = {
    ("_turn._udp.example.org", RecordType.SRV): ("0 0 3478 a.example",),
    ("_turn._tcp.example.org", RecordType.SRV): ("0 0 3478 a.example", "1 0 443 b.example"),
    ("a.example", RecordType.ADDRESS): ("203.0.113.1",),
    ("b.example", RecordType.ADDRESS): ("203.0.113.2",),
}


class House:
    """The machine with a name server and a clock; its outputs are kept."""

    def __init__(self, *uris: str, families: tuple[int, ...] = (IPV4,)) -> None:
        self.now = Instant(SECOND)
        servers = tuple(TurnCredentials(TurnUri.parse(uri)) for uri in uris or ("turn:example.org",))
        self.relays = Relays(servers, families, random=Random(1), pacer=Pacer(), flow_ids=FlowIds())
        self.sent: list[Send] = []
        self.opened: list[Open] = []
        self.closed: list[Flow] = []
        self.held: list[Resolve] = []
        """Queries whose answers take a long time."""
        self.events: list[object] = []
        self.relays.start(now=self.now)
        self.relays.add_base(BASE, now=self.now)
        self.settle()

    def settle(self) -> None:
        while outputs := self.relays.outputs():
            for output in outputs:
                self._perform(output)
        self.events += self.relays.events()

    def _perform(self, output: Output) -> None:
        if isinstance(output, Resolve) and output.name.startswith("late."):
            self.held.append(output)
        elif isinstance(output, Resolve):
            hosts = ZONE.get((output.name, output.record), ())
            self.relays.receive(
                Resolved(query=output, hosts=hosts, error="" if hosts else "no such name"), now=self.now
            )
        elif isinstance(output, Send):
            self.sent.append(output)
        elif isinstance(output, Open):
            self.opened.append(output)
        elif isinstance(output, Close):
            self.closed.append(output.flow)

    def run(self, seconds: float) -> None:
        end = Instant(self.now + round(seconds * SECOND))
        while (due := self.relays.next_timer()) is not None and due <= end:
            self.now = max(due, self.now)
            self.relays.tick(now=self.now)
            self.settle()
        self.now = end

    def refuse(self, code: int, attributes: dict[Any, Any] | None = None) -> None:
        """Pass in an error to the last Allocate."""
        request = decode(self.sent[-1].data)
        assert request.method == Method.ALLOCATE
        answer = Message.error(request, code, None, attributes).encode()
        self.relays.receive(Datagram(BASE.flow, self.sent[-1].remote, answer), now=self.now)
        self.settle()

    def allocate(self, *relayed: Address) -> None:
        """Pass in a success response to the last Allocate that was sent by UDP."""
        request = decode(self.sent[-1].data)
        relayed = relayed or (Address("203.0.113.1", 50000),)
        values = {XOR_RELAYED_ADDRESS: relayed, XOR_MAPPED_ADDRESS: BASE.local, LIFETIME: 600}
        answer = Message.success(request, values).encode()
        self.relays.receive(Datagram(BASE.flow, self.sent[-1].remote, answer), now=self.now)
        self.settle()


def test_udp_is_asked_first_by_the_bases_own_socket() -> None:
    house = House()
    house.run(0.1)
    assert [(each.flow, each.remote) for each in house.sent] == [(BASE.flow, SERVER)] and house.opened == []


@pytest.mark.parametrize("code", [403, 440, 442, 486, 508])
def test_a_server_that_refuses_is_not_asked_by_another_transport_but_the_next_server_is(code: int) -> None:
    """RFC 8656, section 7.4."""
    house = House()
    house.run(0.1)
    house.refuse(code)
    house.run(1)
    [failed] = [event for event in house.events if isinstance(event, RelayFailed)]
    assert str(code) in failed.reason
    [stream] = house.opened
    assert (stream.transport, stream.remote) == (Transport.TCP, Address("203.0.113.2", 443))
    assert stream.local == Address("192.0.2.9", 0), "from the base's address"


def test_a_server_that_is_silent_by_udp_is_asked_by_tcp_beside_it() -> None:
    """RFC 8656, section 7.4: after a timeout the transport may be blocked; the client does not wait 39.5 s."""
    house = House()
    house.run(0.9)
    assert house.opened == []
    house.run(0.2)
    [stream] = house.opened
    assert (stream.transport, stream.remote) == (Transport.TCP, SERVER)
    house.run(1)
    assert [each.remote for each in house.opened] == [SERVER, Address("203.0.113.2", 443)], (
        "the second one has not answered either"
    )
    house.run(36)
    assert [event for event in house.events if isinstance(event, RelayFailed)] == []
    house.run(2)
    [failed] = [event for event in house.events if isinstance(event, RelayFailed)]
    assert "did not answer 7 sends" in failed.reason and house.relays.pending, "two streams are being opened"


def test_the_first_to_allocate_is_kept_and_what_was_tried_beside_it_is_closed() -> None:
    house = House()
    house.run(1.1)
    [stream] = house.opened
    house.allocate()
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    assert found.server.transport is Transport.UDP and found.mapped == BASE.local
    assert house.closed == [stream.flow] and not house.relays.pending
    house.run(60)
    assert len(house.opened) == 1 and [event for event in house.events if isinstance(event, RelayFound)] == [found]


def test_a_server_that_has_answered_gets_time_to_finish_alone() -> None:
    """It sent a challenge: the allocation takes a round trip more."""
    house = House()
    house.run(0.1)
    request = decode(house.sent[-1].data)
    challenge = Message.error(request, 401, None, {REALM: "example.org", NONCE: b"nonce"}).encode()
    house.relays.receive(Datagram(BASE.flow, SERVER, challenge), now=house.now)
    house.settle()
    house.run(30)
    assert house.opened == []


def test_a_server_that_has_two_names_is_asked_once() -> None:
    """A base has one 5-tuple with a server, and so one allocation."""
    one, again, named = "turn:203.0.113.1", "turn:203.0.113.1:3478?transport=udp", "turn:example.org?transport=udp"
    house = House(one, again, named, f"{one}?transport=tcp")
    house.run(0.4)
    assert len(house.sent) == 1
    assert [each.transport for each in house.opened] == [Transport.TCP], "TCP is another 5-tuple"
    house.allocate()
    assert len([event for event in house.events if isinstance(event, RelayFound)]) == 1
    house.run(60)
    assert len(house.opened) == 1


def test_two_that_are_sent_to_one_server_do_not_take_each_others_answers() -> None:
    """A second name of a redirecting server resolves after the first one has its allocation."""
    house = House("turn:203.0.113.1", "turn:late.example?transport=udp")
    there = Address("203.0.113.7", 3478)
    house.run(0.1)
    house.refuse(300, {ALTERNATE_SERVER: (there,)})
    house.run(0.1)
    assert house.sent[-1].remote == there
    house.allocate()
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    for query in house.held:
        hosts = ("203.0.113.1",) if query.record is RecordType.ADDRESS else ()
        house.relays.receive(Resolved(query=query, hosts=hosts, error="" if hosts else "no such name"), now=house.now)
    house.settle()
    house.run(0.1)
    assert house.sent[-1].remote == SERVER, "the second name is used"
    house.refuse(300, {ALTERNATE_SERVER: (there,)})
    house.relays.want(found.flow, Address("198.51.100.1", 4000), now=house.now)
    house.settle()
    house.run(0.1)
    request = next(
        message for each in reversed(house.sent) if (message := decode(each.data)).method == Method.CREATE_PERMISSION
    )
    answer = Message.success(request).encode()
    house.relays.receive(Datagram(BASE.flow, there, answer), now=house.now)
    house.settle()
    assert house.events[-1] == PathReady(flow=found.flow, host="198.51.100.1")


def test_a_name_without_a_server_is_reported_and_not_waited_for() -> None:
    house = House("turn:nowhere.example")
    [failed] = house.events
    assert isinstance(failed, RelayFailed) and failed.base is None
    assert "nowhere.example" in failed.server and "no such name" in failed.reason
    assert not house.relays.pending and house.relays.next_timer() is None


def test_it_is_pending_until_the_last_server_has_failed() -> None:
    house = House()
    house.run(0.1)
    assert house.relays.pending
    house.run(60)
    assert house.relays.pending, "two streams are being opened"
    for stream in house.opened:
        house.relays.receive(Closed(flow=stream.flow, reason="timed out"), now=house.now)
        house.settle()
    assert not house.relays.pending
    assert len([event for event in house.events if isinstance(event, RelayFailed)]) == 3


def test_a_late_server_continues_and_others_follow() -> None:
    """Gathering does not wait for it, and the first server to allocate is used."""
    house = House()
    house.run(0.1)
    late = house.relays.release()
    assert [(base.flow, server.address) for base, server in late] == [(BASE.flow, SERVER)]
    assert not house.relays.pending
    house.run(5)
    assert len(house.opened) == 2 and not house.relays.pending, "its other servers are late, too"
    house.allocate()
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    assert found.server.address == SERVER and house.closed == [stream.flow for stream in house.opened]


def test_a_name_that_is_looked_up_late_still_gives_a_relay() -> None:
    house = House("turn:late.example?transport=udp")
    house.run(5)
    assert house.relays.release() == [] and not house.relays.pending
    for query in house.held:
        hosts = ("203.0.113.1",) if query.record is RecordType.ADDRESS else ()
        house.relays.receive(Resolved(query=query, hosts=hosts, error="" if hosts else "no such name"), now=house.now)
    house.settle()
    house.run(0.1)
    assert not house.relays.pending
    house.allocate()
    assert [event.relayed.port for event in house.events if isinstance(event, RelayFound)] == [50000]


def test_a_base_that_goes_leaves_no_stream_behind() -> None:
    """This holds for late servers, too."""
    house = House()
    house.run(1.1)
    [stream] = house.opened
    house.relays.release()
    house.relays.remove_base(BASE.flow, "its stream was removed", now=house.now)
    house.settle()
    assert house.closed == [stream.flow]
    assert house.relays.next_timer() is None


def test_a_relay_whose_base_is_let_go_is_freed_but_not_by_a_socket_that_is_closed() -> None:
    for closed in (False, True):
        house = House()
        house.run(0.1)
        house.allocate()
        before = len(house.sent)
        house.relays.remove_base(BASE.flow, "gone", now=house.now, closed=closed)
        house.settle()
        sent = [decode(each.data) for each in house.sent[before:]]
        assert [(each.method, each.get(LIFETIME)) for each in sent] == ([] if closed else [(Method.REFRESH, 0)])
        assert house.relays.next_timer() is None


def lost_house() -> tuple[House, Flow]:
    """A relay that was found, and that the server then reported as lost."""
    house = House("turn:203.0.113.1")
    house.run(0.1)
    house.allocate()
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    house.relays.verify(now=house.now)
    house.settle()
    house.run(0.1)
    answer = Message.error(decode(house.sent[-1].data), 437).encode()
    house.relays.receive(Datagram(BASE.flow, SERVER, answer), now=house.now)
    house.settle()
    [lost] = [event for event in house.events if isinstance(event, RelayLost)]
    assert lost.flow == found.flow
    return house, found.flow


def test_a_lost_relay_is_allocated_again_with_another_flow() -> None:
    house, flow = lost_house()
    house.run(0.1)
    assert decode(house.sent[-1].data).method == Method.ALLOCATE and not house.relays.pending
    house.allocate()
    first, second = [event for event in house.events if isinstance(event, RelayFound)]
    assert first.flow == flow != second.flow


def test_a_lost_relay_is_not_allocated_again_after_its_base_is_gone() -> None:
    house, _ = lost_house()
    house.relays.remove_base(BASE.flow, "gone", now=house.now)
    assert house.relays.next_timer() is None


def test_the_flows_of_lost_relays_are_dropped_when_the_agent_knows() -> None:
    """The tables do not grow for the life of an agent, however often a server restarts."""
    house, flow = lost_house()
    assert house.relays.owns(flow), "the agent may have sent on it"
    house.relays.forget(flow)
    assert not house.relays.owns(flow)
    sizes = []
    for _ in range(5):
        house.run(100)
        house.allocate()
        relayed = [event.flow for event in house.events if isinstance(event, RelayFound)][-1]
        sizes.append(house.relays.size)
        house.relays.verify(now=house.now)
        house.settle()
        house.run(0.1)
        answer = Message.error(decode(house.sent[-1].data), 437).encode()
        house.relays.receive(Datagram(BASE.flow, SERVER, answer), now=house.now)
        house.settle()
        house.relays.forget(relayed)
    assert set(sizes) == {sizes[0]}


def test_every_transition_of_a_relay_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state in State if not TRANSITIONS[state]} == {State.FAILED}


def test_a_relay_over_tcp_has_a_related_address_and_a_hidden_one_has_port_9() -> None:
    """RFC 8839, section 5.1; a mapping of the TCP connection is no server-reflexive candidate."""
    mapped, relayed = Address("198.51.100.1", 40000), Address("203.0.113.1", 50000)
    server = ServerAddress(address=SERVER, transport=Transport.TCP)
    found = RelayFound(base=BASE, flow=Flow(7), relayed=relayed, mapped=None, related=mapped, server=server)
    [shown] = of_relay(found, Policy.ALL)
    [hidden] = of_relay(found, Policy.NO_HOST)
    assert (shown.type, shown.related) == (CandidateType.RELAYED, mapped)
    assert hidden.related == Address("0.0.0.0", 9)


@pytest.mark.parametrize(
    ("uri", "local", "reason"),
    [
        ("turn:203.0.113.1", "127.0.0.1", "a loopback address reaches no server on another host"),
        ("turn:127.0.0.1", "192.0.2.9", "the server is on loopback"),
        ("turn:203.0.113.1", "2001:db8::9", "the server has no IPv6 address"),
        ("turn:203.0.113.1", "fe80::9", "a link-local address reaches no TURN server"),
    ],
)
def test_a_server_that_is_not_asked_from_a_base_is_reported(uri: str, local: str, reason: str) -> None:
    house = House(uri)
    base = replace(BASE, flow=Flow(901), local=Address(local, 5000))
    house.relays.add_base(base, now=house.now)
    house.settle()
    [failed] = [each for each in house.events if isinstance(each, RelayFailed) and each.base == base]
    assert failed.server.startswith(uri) and reason in failed.reason


def test_an_impossible_second_relayed_address_is_reported_and_hides_nothing() -> None:
    """coturn without IPv6 (issue E, line 7): 0.0.0.0:0 took the flow of the relay of its family."""
    house = House(families=(IPV6, IPV4))
    house.run(0.1)
    real, zero = Address("203.0.113.1", 50000), Address("0.0.0.0", 0)
    house.allocate(real, zero)
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    [ignored] = [event for event in house.events if isinstance(event, RelayFailed)]
    assert found.relayed == real and "as relayed address: 0.0.0.0:0 is unspecified" in ignored.reason
    peer = Address("198.51.100.9", 7000)
    house.relays.want(found.flow, peer, now=house.now)
    house.settle()
    request = decode(house.sent[-1].data)
    assert request.method == Method.CREATE_PERMISSION
    house.relays.receive(Datagram(BASE.flow, SERVER, Message.success(request).encode()), now=house.now)
    house.settle()
    assert PathReady(flow=found.flow, host=peer.host) in house.events


@pytest.mark.parametrize("peer", [Address("198.51.100.9", 0), Address("0.0.0.0", 7000), Address("224.0.0.1", 7000)])
def test_data_from_an_impossible_peer_is_dropped(peer: Address) -> None:
    house = House()
    house.run(0.1)
    house.allocate()
    [found] = [event for event in house.events if isinstance(event, RelayFound)]
    house.relays.want(found.flow, peer, now=house.now)
    house.settle()
    values = {XOR_PEER_ADDRESS: (peer,), DATA: b"hello"}
    data = Message.indication(Method.DATA, bytes(12), values).encode()
    house.relays.receive(Datagram(BASE.flow, SERVER, data), now=house.now)
    assert house.relays.inputs() == []
    client = house.relays.client(found.flow)
    assert client is not None and client.counters["Data indication without a possible peer, or without data"] == 1
