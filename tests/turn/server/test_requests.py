"""RFC 8656, sections 5 to 8: allocations are made, refreshed and ended; clients on streams."""

from __future__ import annotations

import errno

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow
from polynya.core.instants import SECOND
from polynya.core.machine import Closed, Datagram, Send, StreamData
from polynya.stun import attributes as a
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.server.alternates import Alternate
from polynya.turn.server.commands import Done, Relay, RelayLost, SetExpiry
from polynya.turn.server.config import Limits, RelayHost, ServerConfig
from polynya.turn.server.events import AllocationCreated, AllocationEnded, Drained, RequestRefused
from tests.turn.server.harness import (
    CLIENT,
    HOST,
    HOST6,
    LISTENER,
    OTHER,
    PEER,
    PEER6,
    Person,
    Table,
    code,
    config,
)

# ----------------------------------------------------------------------------------------------------------- allocate


@pytest.mark.parametrize("algorithm", [2, 1, None], ids=["SHA-256", "MD5 chosen", "MD5 of RFC 5389"])
def test_the_response_to_an_allocate_has_its_addresses_and_is_signed(table: Table, algorithm: int | None) -> None:
    alice = Person(table, algorithm=algorithm)
    answer = alice.allocate()
    assert answer.cls is Class.SUCCESS
    [relayed] = answer[a.XOR_RELAYED_ADDRESS]
    assert relayed.host == HOST and 50000 <= relayed.port <= 50099
    assert answer[a.XOR_MAPPED_ADDRESS] == CLIENT
    assert answer[a.LIFETIME] == 600
    assert answer.verify(alice.key)
    assert answer.has_integrity_sha256 is (algorithm is not None)
    assert list(table.flows.values()) == [relayed]
    [created] = table.events(AllocationCreated)
    assert (created.client.remote, created.user, created.relayed) == (CLIENT, "alice", (relayed,))


def test_the_relay_port_is_open_before_the_response_is_sent(table: Table) -> None:
    alice = Person(table)
    alice.learn(alice.say(alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
    request = alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})
    table.server.receive(Datagram(LISTENER, CLIENT, request), now=table.now)
    [opening] = table.server.outputs()
    assert opening.local.host == HOST, "the port is opened before the response is sent"


def test_ports_that_other_programs_use_are_skipped(table: Table) -> None:
    for port in range(50000, 50090):
        table.taken[Address(HOST, port)] = errno.EADDRINUSE
    found = [Person(table, Address("198.51.100.1", 1000 + n)) for n in range(4)]
    for person in found:
        for _ in range(40):
            if code(person.allocate()) == 0:
                break
            table.run_for(1)
    assert {person.relayed[0].port >= 50090 for person in found} == {True}


def test_if_no_port_can_be_opened_the_response_is_508_and_no_state_is_left(table: Table) -> None:
    for port in range(50000, 50100):
        table.taken[Address(HOST, port)] = errno.EMFILE
    assert code(Person(table).allocate()) == 508
    assert table.server.control.allocations.ports_resting == 1, "no other port is tried after such an error"
    assert "no relay port can be opened: in use" in table.events(RequestRefused)[-1].reason, (
        "the log has the system's error"
    )
    assert table.server.control.allocations.claimed == 0
    table.taken.clear()
    assert code(Person(table).allocate()) == 0


def test_a_retransmitted_allocate_gets_the_same_response_and_no_second_port(table: Table) -> None:
    alice = Person(table)
    alice.learn(alice.say(alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
    request = alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})
    [first], [second] = table.from_client(request), table.from_client(request)
    assert first == second
    assert len(table.flows) == 1


def test_a_request_that_is_retransmitted_while_in_progress_gets_one_response(table: Table) -> None:
    alice = Person(table)
    alice.learn(alice.say(alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
    request = alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})
    for _ in range(3):
        table.server.receive(Datagram(LISTENER, CLIENT, request), now=table.now)
    assert len(table.drain()) == 1
    assert len(table.flows) == 1


def test_a_second_allocation_of_a_5_tuple_is_refused_with_437(alice: Person) -> None:
    assert code(alice.allocate()) == 437


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, 400),
        ({a.REQUESTED_TRANSPORT: 6}, 442),
        ({a.REQUESTED_TRANSPORT: 17, a.REQUESTED_ADDRESS_FAMILY: 4, a.RESERVATION_TOKEN: bytes(8)}, 400),
        ({a.REQUESTED_TRANSPORT: 17, a.EVEN_PORT: False, a.RESERVATION_TOKEN: bytes(8)}, 400),
        ({a.REQUESTED_TRANSPORT: 17, a.RESERVATION_TOKEN: bytes(8)}, 508),
        ({a.REQUESTED_TRANSPORT: 17, a.ADDITIONAL_ADDRESS_FAMILY: 4}, 400),
        ({a.REQUESTED_TRANSPORT: 17, a.ADDITIONAL_ADDRESS_FAMILY: 6, a.REQUESTED_ADDRESS_FAMILY: 4}, 400),
        ({a.REQUESTED_TRANSPORT: 17, a.ADDITIONAL_ADDRESS_FAMILY: 6, a.EVEN_PORT: True}, 400),
    ],
)
def test_requests_that_cannot_be_allocated_get_their_error_code(table: Table, attributes: dict, expected: int) -> None:
    answer = Person(table).ask(Method.ALLOCATE, attributes)
    assert code(answer) == expected
    assert table.flows == {}
    assert table.server.control.allocations.claimed == 0


def test_an_unsupported_address_family_gets_440() -> None:
    table = Table(config(relays=(RelayHost(host=HOST),)))
    assert code(Person(table).allocate({a.REQUESTED_ADDRESS_FAMILY: 6})) == 440
    assert code(Person(Table(config(relays=(RelayHost(host=HOST6),)))).allocate()) == 440


def test_unknown_required_attributes_get_420_after_authentication(table: Table) -> None:
    alice = Person(table)
    alice.allocate()
    answer = alice.say(alice.build_raw(Method.REFRESH, "7ffe0000"))
    assert code(answer) == 420
    assert answer is not None and answer[a.UNKNOWN_ATTRIBUTES] == (0x7FFE,)
    assert answer.verify(alice.key)


@pytest.mark.parametrize(
    ("method", "attributes"),
    [
        (Method.ALLOCATE, "0019000211000000"),
        (Method.ALLOCATE, "0019000411000000 0022000401020304"),
        (Method.REFRESH, "000d000203840000"),
        (Method.CREATE_PERMISSION, "0012000800051388cb007109"),
        (Method.CREATE_PERMISSION, "00120008000132990a127b4b 0012000400010000"),
        (Method.CHANNEL_BIND, "000c000240000000 00120008000132990a127b4b"),
    ],
    ids=["REQUESTED-TRANSPORT", "RESERVATION-TOKEN", "LIFETIME", "of no family", "second peer", "CHANNEL-NUMBER"],
)
def test_a_malformed_attribute_gets_400_after_authentication(table: Table, method: Method, attributes: str) -> None:
    """RFC 8656, sections 7.2 and 10.2. Without a response the client would retransmit for 39.5 seconds."""
    alice = Person(table)
    if method == Method.ALLOCATE:
        assert alice.learn(alice.say(alice.build(method)))
    else:
        alice.allocate()
    answer = alice.say(alice.build_raw(method, attributes))
    assert code(answer) == 400 and answer is not None and answer.verify(alice.key)
    assert "success responses CREATE_PERMISSION" not in table.server.control.counters
    assert len(table.flows) == (method != Method.ALLOCATE)


def test_a_malformed_request_without_credentials_gets_401(table: Table) -> None:
    data = Message.request(Method.ALLOCATE, bytes(12)).encode()
    [sent] = table.from_client(data[:2] + b"\0\x08" + data[4:] + bytes.fromhex("0019000211000000"))
    assert code(decode(sent.data)) == 401
    assert table.from_client(bytes.fromhex("000100082112a442") + bytes(12) + bytes.fromhex("0003000211000000")) == []


def test_ipv6_alone(table: Table) -> None:
    answer = Person(table).allocate({a.REQUESTED_ADDRESS_FAMILY: 6})
    assert [each.host for each in answer[a.XOR_RELAYED_ADDRESS]] == [HOST6]


def test_a_dual_allocation_has_both_families(table: Table) -> None:
    alice = Person(table)
    answer = alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    assert [each.host for each in answer[a.XOR_RELAYED_ADDRESS]] == [HOST, HOST6]
    assert a.ADDRESS_ERROR_CODE not in answer
    assert code(alice.permit(PEER, PEER6)) == 0
    assert [each.remote for each in alice.send(b"6", PEER6) + alice.send(b"4", PEER)] == [PEER6, PEER]


def test_a_dual_allocation_can_be_requested_by_the_attribute_of_the_draft(table: Table) -> None:
    """coturn's turnutils_uclient 4.6.1 does."""
    answer = Person(table).allocate({a.SSODA_ADDITIONAL_ADDRESS_FAMILY: 6})
    assert [each.family for each in answer[a.XOR_RELAYED_ADDRESS]] == [4, 6]
    answer = Person(Table(config(relays=(RelayHost(host=HOST),)))).allocate({a.SSODA_ADDITIONAL_ADDRESS_FAMILY: 6})
    assert answer[a.SSODA_ADDRESS_ERROR_CODE].code == 440 and a.ADDRESS_ERROR_CODE not in answer


def test_a_dual_allocation_gets_one_family_and_address_error_code_for_the_other() -> None:
    answer = Person(Table(config(relays=(RelayHost(host=HOST),)))).allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    assert [each.host for each in answer[a.XOR_RELAYED_ADDRESS]] == [HOST]
    assert answer[a.ADDRESS_ERROR_CODE][:2] == (6, 440)
    table = Table(config())
    for port in range(50000, 50100):
        table.taken[Address(HOST6, port)] = errno.EMFILE
    answer = Person(table).allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    assert answer[a.ADDRESS_ERROR_CODE][:2] == (6, 508)


def test_one_family_of_a_dual_allocation_can_be_deleted(table: Table) -> None:
    alice = Person(table)
    alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    alice.permit(PEER, PEER6)
    answer = alice.refresh(0, {a.REQUESTED_ADDRESS_FAMILY: 6})
    assert (code(answer), answer[a.LIFETIME]) == (0, 0)
    assert [each.host for each in table.flows.values()] == [HOST]
    assert code(alice.refresh(700, {a.REQUESTED_ADDRESS_FAMILY: 6})) == 443
    assert code(alice.permit(PEER6)) == 443
    assert [each.remote for each in alice.send(b"x")] == [PEER]
    assert code(alice.refresh(0)) == 0
    assert table.flows == {} and table.server.control.allocations.claimed == 0


def test_the_families_of_a_dual_allocation_expire_independently(table: Table) -> None:
    alice = Person(table)
    alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    alice.refresh(3000, {a.REQUESTED_ADDRESS_FAMILY: 4})
    table.run_for(601)
    assert [each.host for each in table.flows.values()] == [HOST]
    table.run_for(2400)
    assert table.flows == {}


@pytest.mark.parametrize(("requested", "granted"), [(None, 600), (1, 600), (1200, 1200), (100_000, 3600)])
def test_lifetimes_are_kept_within_bounds(table: Table, requested: int | None, granted: int) -> None:
    alice = Person(table)
    answer = alice.allocate({} if requested is None else {a.LIFETIME: requested})
    assert answer[a.LIFETIME] == granted
    table.run_for(granted - 1)
    assert len(table.flows) == 1
    table.run_for(2)
    assert table.flows == {}
    [ended] = table.events(AllocationEnded)
    assert (ended.reason, ended.client.remote) == ("expired", CLIENT)


def test_even_port_gives_an_even_port_and_reserves_the_next_for_its_token(table: Table) -> None:
    alice = Person(table)
    answer = alice.allocate({a.EVEN_PORT: True})
    [relayed] = answer[a.XOR_RELAYED_ADDRESS]
    assert relayed.port % 2 == 0
    assert sorted(each.port for each in table.flows.values()) == [relayed.port, relayed.port + 1]
    second = Person(table, Address(CLIENT.host, 40001))
    follow = second.allocate({a.RESERVATION_TOKEN: answer[a.RESERVATION_TOKEN]})
    assert follow[a.XOR_RELAYED_ADDRESS] == (relayed.with_port(relayed.port + 1),)
    second.permit(PEER)
    assert [each.flow for each in second.send(b"x")] == [
        flow for flow, local in table.flows.items() if local.port == relayed.port + 1
    ]
    again = Person(table, Address(CLIENT.host, 40002))
    assert code(again.allocate({a.RESERVATION_TOKEN: answer[a.RESERVATION_TOKEN]})) == 508


def test_even_port_without_a_reservation_takes_one_port(table: Table) -> None:
    answer = Person(table).allocate({a.EVEN_PORT: False})
    assert answer[a.XOR_RELAYED_ADDRESS][0].port % 2 == 0
    assert a.RESERVATION_TOKEN not in answer and len(table.flows) == 1


def test_clients_get_the_external_address_of_a_relay() -> None:
    table = Table(config(relays=(RelayHost(host="10.0.0.5", external=HOST),)))
    answer = Person(table).allocate()
    [bound] = table.flows.values()
    assert answer[a.XOR_RELAYED_ADDRESS] == (Address(HOST, bound.port),)
    assert bound.host == "10.0.0.5"


def test_a_draining_server_redirects_clients_by_address_family() -> None:
    """RFC 8489, section 14.15: the alternate has the address family of the client."""
    table = Table(config())
    there = [Address(f"192.0.2.{number}", 3478) for number in (98, 99)]
    there6 = Address("2001:db8::99", 3478)
    for alternates, host, expected in (
        ((*there, there6), OTHER.host, {*there}),
        ((*there, there6), "2001:db8:7::1", {there6}),
        ((there6,), OTHER.host, set()),
    ):
        table.server.control.drain(now=table.now, alternates=tuple(map(Alternate, alternates)))
        answers = [Person(table, Address(host, 5000 + number)).allocate() for number in range(20)]
        assert {code(answer) for answer in answers} == {300 if expected else 508}
        assert {each for answer in answers for each in answer.get(a.ALTERNATE_SERVER) or ()} == expected


def test_a_draining_server_redirects_new_clients_and_keeps_allocations(table: Table, alice: Person) -> None:
    table.server.control.drain(now=table.now, alternates=(Alternate(Address("192.0.2.99", 3478)),))
    answer = Person(table, OTHER).allocate()
    assert code(answer) == 300 and answer[a.ALTERNATE_SERVER] == (Address("192.0.2.99", 3478),)
    assert code(alice.refresh()) == 0
    assert not table.events(Drained)
    alice.refresh(0)
    assert len(table.events(Drained)) == 1


def test_draining_waits_for_a_reservation_that_outlives_its_allocation(table: Table) -> None:
    alice = Person(table)
    alice.allocate({a.EVEN_PORT: True})
    table.server.control.drain(now=table.now)
    alice.refresh(0)
    table.run_for(29)
    assert table.events(Drained) == []
    table.run_for(2)
    assert len(table.events(Drained)) == 1 and table.flows == {}
    table.run_for(100)
    assert len(table.events(Drained)) == 1, "emitted once"


def test_drained_is_emitted_only_while_draining(table: Table, alice: Person) -> None:
    alice.refresh(0)
    assert table.events(Drained) == []


# ------------------------------------------------------------------------------------------------------------ refresh


def test_refresh_extends_an_allocation_and_lifetime_zero_ends_it(table: Table, alice: Person) -> None:
    table.run_for(500)
    assert alice.refresh(900)[a.LIFETIME] == 900
    table.run_for(890)
    assert len(table.flows) == 1
    answer = alice.refresh(0)
    assert (code(answer), answer[a.LIFETIME]) == (0, 0)
    assert table.flows == {}
    assert code(alice.refresh()) == 437
    assert code(alice.allocate()) == 0


def test_a_refresh_during_which_the_allocation_ends_gets_437(table: Table, alice: Person) -> None:
    """The port is lost while the command with the new expiry is pending."""
    control, [relay] = table.server.control, alice.relayed
    control.receive(Datagram(LISTENER, CLIENT, alice.build(Method.REFRESH)), now=table.now)
    [command] = control.outputs()
    assert isinstance(command, SetExpiry)
    control.receive(RelayLost(Relay(relay), "gone"), now=table.now)
    control.receive(Done(command.number), now=table.now)
    answers = [decode(output.data) for output in control.outputs() if isinstance(output, Send)]
    assert [code(answer) for answer in answers] == [437]


def test_a_retransmitted_final_refresh_gets_the_same_response(table: Table, alice: Person) -> None:
    request = alice.build(Method.REFRESH, {a.LIFETIME: 0})
    [first], [second] = table.from_client(request), table.from_client(request)
    assert first == second
    table.run_for(41)
    assert code(alice.say(request)) == 437


def test_another_user_cannot_touch_an_allocation(table: Table, alice: Person) -> None:
    bob = Person(table, CLIENT, "bob")
    for answer in (bob.refresh(0), bob.permit(PEER), bob.bind(0x4000)):
        assert code(answer) == 441
    assert len(table.flows) == 1


def test_requests_without_an_allocation_get_437(table: Table) -> None:
    alice = Person(table)
    assert [code(each) for each in (alice.refresh(), alice.permit(PEER), alice.bind(0x4000))] == [437] * 3


def test_a_lost_relay_port_ends_the_allocation(table: Table, alice: Person) -> None:
    [flow] = table.flows
    del table.flows[flow]
    table.give(Closed(flow=flow, reason="the interface is gone"))
    assert code(alice.refresh()) == 437
    [ended] = table.events(AllocationEnded)
    assert "the interface is gone" in ended.reason
    assert table.server.control.allocations.claimed == 0


# ------------------------------------------------------------------------------------------------------------ streams


def test_a_client_on_a_stream(table: Table) -> None:
    stream = Flow(700)
    table.open_stream(stream)
    alice = Person(table, stream=stream)
    assert code(alice.allocate()) == 0
    assert code(alice.bind(0x4000)) == 0
    assert [each.data for each in alice.channel(0x4000, b"abcde")] == [b"abcde"]
    assert [each.data for each in alice.send(b"xyz")] == [b"xyz"]
    [back] = table.from_peer(alice.relayed[0], b"abc")
    assert (back.flow, back.data) == (stream, b"\x40\x00\x00\x03abc\0"), "padded"
    both = b"\x40\x00\x00\x01x\0\0\0" * 2
    assert [each.data for part in (both[:5], both[5:]) for each in table.give(StreamData(stream, part))] == [b"x"] * 2


def test_data_before_the_end_of_an_allocation_is_relayed_though_both_arrive_at_once(table: Table) -> None:
    stream = Flow(700)
    table.open_stream(stream)
    alice = Person(table, stream=stream)
    assert code(alice.allocate()) == 0
    assert code(alice.bind(0x4000)) == 0
    end = alice.build(Method.REFRESH, {a.LIFETIME: 0})
    sent = table.give(StreamData(stream, b"\x40\x00\x00\x01x\0\0\0" + end + b"\x40\x00\x00\x01y\0\0\0"))
    assert [each.data for each in sent if each.remote == PEER] == [b"x"]
    assert table.server.control.allocations.claimed == 0


def test_a_stream_that_closes_ends_its_allocation(table: Table) -> None:
    stream = Flow(700)
    table.open_stream(stream)
    alice = Person(table, stream=stream)
    alice.allocate()
    table.give(Closed(flow=stream, reason="closed by the other side"))
    assert table.flows == {} and table.server.control.allocations.claimed == 0


def test_a_stream_that_closes_while_its_port_opens_leaves_no_state(table: Table) -> None:
    stream = Flow(700)
    table.open_stream(stream)
    alice = Person(table, stream=stream)
    alice.learn(alice.say(alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
    table.server.receive(StreamData(stream, alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})), now=table.now)
    table.server.receive(Closed(flow=stream, reason="gone"), now=table.now)
    assert table.drain() == []
    assert table.flows == {} and table.server.control.allocations.claimed == 0
    assert set(table.server.plane.size.values()) == {0}


def test_a_stream_without_an_allocation_is_closed_after_the_timeout(table: Table) -> None:
    table.open_stream(Flow(700))
    alice = Person(table, OTHER, stream=Flow(701))
    table.open_stream(Flow(701), OTHER)
    alice.allocate()
    table.run_for(31)
    assert table.closed == [Flow(700)]
    alice.refresh(0)
    table.run_for(31)
    assert table.closed[-1] == Flow(701)


def test_data_on_a_closed_stream_is_dropped(table: Table) -> None:
    table.open_stream(Flow(700))
    table.run_for(31)
    assert table.closed == [Flow(700)]
    for flow in (Flow(700), Flow(999)):
        assert table.give(StreamData(flow, Message.request(Method.BINDING, bytes(12)).encode())) == []
    assert table.server.control.counters["data on a stream that is not open"] == 2


def test_a_stream_with_a_malformed_frame_is_closed(table: Table) -> None:
    table.open_stream(Flow(700))
    table.give(StreamData(Flow(700), b"\x16\x03\x01\x02\x00\x01\x00\x01"))
    assert table.closed == [Flow(700)]


def test_a_stream_without_an_allocation_buffers_little(table: Table) -> None:
    table.open_stream(Flow(700))
    table.give(StreamData(Flow(700), b"GET / HTTP/1.1\r\n" + bytes(1000)))
    assert table.closed == []
    table.give(StreamData(Flow(700), bytes(2000)))
    assert table.closed == [Flow(700)]


# ------------------------------------------------------------------------------------------------------------ binding


def test_binding_requests_are_answered_without_credentials(table: Table) -> None:
    request = Message.request(Method.BINDING, bytes(12)).encode()
    [send] = table.from_client(request)
    assert decode(send.data)[a.XOR_MAPPED_ADDRESS] == CLIENT
    table.open_stream(Flow(700), OTHER)
    [send] = table.give(StreamData(Flow(700), request))
    assert (send.flow, decode(send.data)[a.XOR_MAPPED_ADDRESS]) == (Flow(700), OTHER)


def test_error_responses_are_emitted_as_events_with_the_clients_address(table: Table, alice: Person) -> None:
    alice.allocate()
    refused = table.events(RequestRefused)
    assert [(each.code, each.user) for each in refused] == [(401, ""), (437, "alice")]
    assert {each.client.remote for each in refused} == {CLIENT}


def test_allocation_ended_has_the_final_traffic(table: Table, alice: Person) -> None:
    [relay] = alice.relayed
    alice.permit(PEER)
    alice.send(b"12345")
    table.from_peer(relay, b"123")
    alice.refresh(0)
    [ended] = table.events(AllocationEnded)
    [traffic] = ended.traffic
    assert (traffic.to_peers, traffic.bytes_to_peers, traffic.from_peers, traffic.bytes_from_peers) == (1, 5, 1, 3)


def test_limits_are_validated_when_they_are_set() -> None:
    with pytest.raises(ValueError, match="permissions"):
        Limits(permissions=-1)


def test_defaults_follow_the_rfc_and_unsafe_values_are_refused() -> None:
    """RFC 8656, sections 5 and 7.2."""
    usual = ServerConfig(realm="example.org", relays=(RelayHost(host=HOST),))
    assert usual.ports == (49152, 65535)
    assert (usual.default_lifetime, usual.max_lifetime) == (600 * SECOND, 3600 * SECOND)
    assert usual.nonce_lifetime <= 3600 * SECOND
    for changes in ({"ports": (1023, 2000)}, {"ports": (80, 80)}, {"nonce_lifetime": 3601 * SECOND}):
        with pytest.raises(ConfigurationError):
            config(**changes)
