"""security.md, line 7: limits on allocations, permissions, channels, bytes and requests; quotas; ports that rest."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import Datagram, StreamData
from polynya.stun import attributes as a
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.turn.server.config import Limits
from polynya.turn.server.users import StaticUsers, User
from tests.turn.server.harness import CLIENT, LISTENER, OTHER, PEER, REALM, Person, Table, code, config


@pytest.mark.parametrize("frame", ["40000000", "4fff000161000000", "001600082112a442" + 12 * "00" + "0013000474657374"])
def test_data_on_a_stream_without_an_allocation_closes_it(frame: str) -> None:
    table = Table(config())
    table.open_stream(Flow(700), CLIENT)
    alice = Person(table, at(1), stream=Flow(701))
    table.open_stream(Flow(701), alice.address)
    assert code(alice.allocate()) == 0
    for flow in (Flow(700), Flow(701)):
        table.give(StreamData(flow, bytes.fromhex(frame) * 3))
    assert table.closed == [Flow(700)]
    assert table.server.control.counters["dropped: stream closed"] == 1
    assert code(alice.refresh(0)) == 0
    table.give(StreamData(Flow(701), bytes.fromhex(frame)))
    assert table.closed[-1] == Flow(701)


def test_binding_requests_on_streams_are_limited_for_each_source() -> None:
    table = Table(config(limits=Limits(unauthenticated_answers_per_second=10, unauthenticated_burst=20)))
    request = Message.request(Method.BINDING, bytes(12)).encode()
    for number, address in enumerate((CLIENT, at(2), OTHER)):
        table.open_stream(Flow(700 + number), address)
    assert len(table.give(StreamData(Flow(700), request * 500))) == 20
    assert table.give(StreamData(Flow(701), request)) == [], "another stream of the same source"
    assert len(table.give(StreamData(Flow(702), request))) == 1
    assert len(table.from_client(request)) == 1, "over UDP there is another limit, as its source may be forged"
    assert table.server.control.counters["dropped: too many Binding requests on streams"] == 481
    table.run_for(1)
    assert len(table.give(StreamData(Flow(700), request * 50))) == 10


def at(number: int, host: str = CLIENT.host) -> Address:
    return Address(host, 10_000 + number)


@pytest.mark.parametrize(
    ("limits", "others"),
    [
        (Limits(allocations_per_user=3), ("bob", CLIENT.host)),
        (Limits(allocations_per_address=3), ("alice", OTHER.host)),
        (Limits(allocations=3), None),
    ],
    ids=["a user", "an address", "in all"],
)
def test_the_number_of_allocations_is_limited(limits: Limits, others: tuple[str, str] | None) -> None:
    table = Table(config(limits=limits))
    people = [Person(table, at(number)) for number in range(4)]
    assert [code(person.allocate()) for person in people] == [0, 0, 0, 486]
    if others:
        assert code(Person(table, at(9, others[1]), others[0]).allocate()) == 0
    assert code(people[0].refresh(0)) == 0
    assert code(people[3].allocate()) == 0


def test_a_users_own_limit_overrides_the_common_one() -> None:
    directory = StaticUsers(REALM, [User.with_password("alice", REALM, "wonder", max_allocations=1)])
    table = Table(config(), directory)
    assert [code(Person(table, at(number)).allocate()) for number in range(2)] == [0, 486]


def test_a_quota_is_held_until_the_plane_has_freed_the_port() -> None:
    table = Table(config(limits=Limits(allocations_per_user=1)))
    alice = Person(table)
    alice.allocate()
    control = table.server.control
    allocation = next(iter(control.allocations.by_client.values()))
    control.receive(Datagram(LISTENER, CLIENT, alice.build(Method.REFRESH, {a.LIFETIME: 0})), now=table.now)
    outputs = control.outputs()
    assert [type(each).__name__ for each in outputs] == ["FreeRelay"], "the response is not sent yet"
    assert allocation.client not in control.allocations.by_client and control.allocations.claimed == 1
    for output in outputs:
        table.server.plane.execute(output, now=table.now)  # type: ignore[arg-type]
    table.server.settle(now=table.now)
    assert len(table.drain()) == 1 and control.allocations.claimed == 0


def test_a_reservation_counts_towards_the_quota() -> None:
    table = Table(config(limits=Limits(allocations_per_user=1)))
    assert code(Person(table).allocate({a.EVEN_PORT: True})) == 486
    assert table.flows == {} and table.server.control.allocations.claimed == 0


def test_the_permissions_of_an_allocation_are_limited() -> None:
    table = Table(config(limits=Limits(permissions=5, peers_per_request=4)))
    alice = Person(table)
    alice.allocate()
    hosts = [Address(f"203.0.113.{number}", 1) for number in range(20)]
    assert code(alice.permit(*hosts[:5])) == 508, "too many in one request"
    assert code(alice.permit(*hosts[:4])) == 0
    assert code(alice.permit(*hosts[3:5])) == 0, "one of them has a permission already"
    assert code(alice.permit(*hosts[4:6])) == 508
    assert alice.send(b"x", hosts[5]) == [] and len(alice.send(b"x", hosts[4])) == 1
    table.run_for(301)
    assert code(alice.permit(*hosts[10:14])) == 0, "expired permissions do not count"


def test_the_channels_of_an_allocation_are_limited() -> None:
    table = Table(config(limits=Limits(channels=3)))
    alice = Person(table)
    alice.allocate()
    bound = [code(alice.bind(0x4000 + number, PEER.with_port(1 + number))) for number in range(4)]
    assert bound == [0, 0, 0, 508]
    assert code(alice.bind(0x4001, PEER.with_port(2))) == 0, "refreshing a channel is no new one"


def test_the_bytes_a_second_of_a_relay_are_limited() -> None:
    table = Table(config(limits=Limits(bytes_per_second=10_000)))
    alice = Person(table)
    alice.allocate()
    alice.bind(0x4000)
    passed = sum(len(alice.channel(0x4000, bytes(972))) for _ in range(30))
    assert passed == 10
    table.run_for(0.5)
    outward = sum(len(alice.channel(0x4000, bytes(972))) for _ in range(3))
    inward = sum(len(table.from_peer(alice.relayed[0], bytes(972))) for _ in range(30))
    assert (outward, inward) == (3, 2), "both directions share the limit"


def test_the_requests_a_second_of_a_source_are_limited() -> None:
    table = Table(config(limits=Limits(requests_per_second=50)))
    request = Message.request(Method.BINDING, bytes(12)).encode()
    assert sum(len(table.from_client(request)) for _ in range(200)) == 50
    assert len(table.from_client(request, OTHER)) == 1
    table.run_for(1)
    assert sum(len(table.from_client(request)) for _ in range(200)) == 50


def test_a_freed_port_rests() -> None:
    table = Table(config(ports=(50000, 50000)))
    alice = Person(table)
    alice.allocate(), alice.refresh(0)
    assert code(alice.allocate()) == 508
    table.run_for(2)
    assert code(alice.allocate()) == 0


def test_the_allocation_cycle_leaks_nothing() -> None:
    table = Table(config())
    alice = Person(table)
    for _ in range(300):
        assert code(alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})) == 0
        alice.bind(0x4000)
        assert code(alice.refresh(0)) == 0
        table.run_for(0.1)
    allocations = table.server.control.allocations
    assert (allocations.claimed, len(allocations.relayed), len(allocations.by_relay)) == (0, 0, 0)
    assert set(table.server.plane.size.values()) == {0}
    assert set(allocations.size.values()) == {0}, allocations.size
