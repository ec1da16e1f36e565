"""RFC 8489, sections 2 and 10: one Binding request to one server."""

import random

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Closed, Datagram, IcmpError, IcmpKind, Send, SendFailed
from polynya.stun.attributes import ALTERNATE_SERVER, ERROR_CODE, MAPPED_ADDRESS, XOR_MAPPED_ADDRESS, StunError
from polynya.stun.message import Message, Received, decode
from polynya.stun.probe import BindingProbe, ProbeEnded
from polynya.stun.server import BindingServer
from polynya.stun.transactions import RELIABLE

FLOW = Flow(1)
SERVER = Address("198.51.100.1", 3478)
OTHERS = [Address("198.51.100.1", 3479 + number) for number in range(5)]
MAPPED = Address("203.0.113.7", 40000)
NOW = Instant(0)


def started(**options: object) -> tuple[BindingProbe, Send]:
    probe = BindingProbe(flow=FLOW, server=SERVER, random=random.Random(1), **options)  # type: ignore[arg-type]
    probe.start(now=NOW)
    [send] = probe.outputs()
    return probe, send


def test_a_probe_and_a_server_find_the_mapped_address_and_the_round_trip() -> None:
    probe, send = started()
    server = BindingServer()
    server.receive(Datagram(Flow(9), MAPPED, send.data), now=NOW)
    [answer] = server.outputs()
    assert isinstance(answer, Send)
    probe.receive(Datagram(FLOW, SERVER, answer.data), now=Instant(30 * MILLISECOND))
    [ended] = probe.events()
    assert (ended.flow, ended.server, ended.mapped, ended.rtt) == (FLOW, SERVER, MAPPED, 30 * MILLISECOND)
    assert probe.next_timer() is None


def test_the_same_seed_asks_with_the_same_bytes() -> None:
    assert started()[1] == started()[1]


def answered(probe: BindingProbe, send: Send, message: Message, remote: Address | None = None) -> list[ProbeEnded]:
    data = message.encode()
    probe.receive(Received(FLOW, remote or send.remote, decode(data), data), now=NOW)
    return probe.events()


def test_an_old_server_sends_mapped_address_only() -> None:
    probe, send = started()
    [ended] = answered(probe, send, Message.success(decode(send.data), {MAPPED_ADDRESS: MAPPED}))
    assert ended.mapped == MAPPED
    assert "MAPPED-ADDRESS only" in ended.reason


def test_an_answer_without_an_address_is_a_failure_that_says_so() -> None:
    probe, send = started()
    [ended] = answered(probe, send, Message.success(decode(send.data)))
    assert (ended.mapped, ended.reason) == (None, "the response has no mapped address")


def test_an_error_answer_is_reported_with_code_and_reason() -> None:
    probe, send = started()
    [ended] = answered(probe, send, Message.error(decode(send.data), 500, ""))
    assert (ended.mapped, ended.reason) == (None, "198.51.100.1:3478 refused: 500 Server Error")


@pytest.mark.parametrize(
    ("flow", "remote", "change"),
    [
        (FLOW, OTHERS[0], 0),
        (Flow(2), SERVER, 0),
        (FLOW, SERVER, 1),
    ],
    ids=["another source", "another flow", "another transaction"],
)
def test_an_answer_that_does_not_fit_is_dropped_and_the_probe_lives_on(
    flow: Flow, remote: Address, change: int
) -> None:
    """security.md 12."""
    probe, send = started()
    message = Message.success(decode(send.data), {XOR_MAPPED_ADDRESS: MAPPED})
    message.transaction_id = bytes((message.transaction_id[0] ^ change,)) + message.transaction_id[1:]
    probe.receive(Datagram(flow, remote, message.encode()), now=NOW)
    assert probe.events() == []
    [ended] = answered(probe, send, Message.success(decode(send.data), {XOR_MAPPED_ADDRESS: MAPPED}))
    assert ended.mapped == MAPPED


def test_bytes_that_are_not_stun_are_dropped_and_counted() -> None:
    probe, _ = started()
    probe.receive(Datagram(FLOW, SERVER, b"\0\1"), now=NOW)
    assert probe.events() == []
    assert probe.counters["not STUN"] == 1


def test_an_alternate_server_is_asked_instead() -> None:
    """RFC 8489, section 10: of the same family, and not the one that was asked."""
    probe, send = started()
    away = {ALTERNATE_SERVER: (Address("2001:db8::1", 3478), SERVER, OTHERS[0])}
    assert answered(probe, send, Message.error(decode(send.data), 300, attributes=away)) == []
    [second] = probe.outputs()
    assert second.remote == OTHERS[0]
    assert decode(second.data).transaction_id != decode(send.data).transaction_id
    [ended] = answered(probe, second, Message.success(decode(second.data), {XOR_MAPPED_ADDRESS: MAPPED}))
    assert (ended.server, ended.mapped) == (OTHERS[0], MAPPED)


def test_a_chain_of_alternate_servers_ends() -> None:
    probe, send = started()
    for hop in range(3):
        away = {ALTERNATE_SERVER: (OTHERS[hop],)}
        assert answered(probe, send, Message.error(decode(send.data), 300, attributes=away)) == []
        [send] = probe.outputs()
    [ended] = answered(probe, send, Message.error(decode(send.data), 300, attributes={ALTERNATE_SERVER: (OTHERS[3],)}))
    assert ended.mapped is None
    assert probe.outputs() == []


@pytest.mark.parametrize("servers", [(), (SERVER,), (Address("2001:db8::1", 1),), (Address("192.0.2.9", 0),)])
def test_an_alternate_that_cannot_be_asked_ends_the_probe(servers: tuple[Address, ...]) -> None:
    probe, send = started()
    [ended] = answered(probe, send, Message.error(decode(send.data), 300, attributes={ALTERNATE_SERVER: servers}))
    assert ended.mapped is None
    assert probe.outputs() == []


def test_silence_ends_the_probe_after_seven_sends() -> None:
    probe, _ = started()
    sends = 1
    while (due := probe.next_timer()) is not None:
        probe.tick(now=due)
        sends += len(probe.outputs())
    [ended] = probe.events()
    assert (sends, due, ended.reason) == (7, None, "198.51.100.1:3478 did not answer 7 sends")


def test_over_a_stream_it_asks_once_and_waits_39_and_a_half_seconds() -> None:
    probe, _ = started(schedule=RELIABLE)
    assert probe.next_timer() == 39_500 * MILLISECOND
    probe.tick(now=Instant(39_500 * MILLISECOND))
    assert probe.outputs() == []
    assert len(probe.events()) == 1


def test_a_hard_icmp_error_ends_it_and_a_soft_one_does_not() -> None:
    probe, _ = started()
    probe.receive(IcmpError(flow=FLOW, remote=SERVER, kind=IcmpKind.NET_UNREACHABLE), now=NOW)
    probe.receive(SendFailed(flow=FLOW, remote=SERVER, errno=1), now=NOW)
    assert probe.events() == []
    probe.receive(IcmpError(flow=FLOW, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE), now=NOW)
    [ended] = probe.events()
    assert ended.reason == "198.51.100.1:3478 is unreachable: port unreachable"


def test_a_flow_that_is_closed_ends_it() -> None:
    probe, _ = started()
    probe.receive(Closed(flow=FLOW, reason="the network changed"), now=Instant(SECOND))
    [ended] = probe.events()
    assert "the network changed" in ended.reason


def test_an_unknown_required_attribute_spoils_an_answer() -> None:
    """RFC 8489, section 6.3.3: a success response with one is a failure of the transaction."""
    probe, send = started()
    body = bytes.fromhex("7ffe0000")
    data = bytes.fromhex("010100042112a442") + decode(send.data).transaction_id + body
    probe.receive(Datagram(FLOW, SERVER, data), now=NOW)
    [ended] = probe.events()
    assert ended.mapped is None
    assert "0x7ffe" in ended.reason


def test_an_error_answer_without_a_code_is_a_failure() -> None:
    probe, send = started()
    message = Message.error(decode(send.data), 400)
    del message.attributes[ERROR_CODE]
    [ended] = answered(probe, send, message)
    assert ended.mapped is None
    assert str(StunError(400)) == "400 Bad Request"


def test_a_second_transaction_goes_to_the_same_server_and_the_first_response_counts() -> None:
    for answered_one in (0, 1):
        probe, first = started()
        probe.ask_again(now=Instant(100 * MILLISECOND))
        [second] = probe.outputs()
        ids = {decode(send.data).transaction_id for send in (first, second)}
        assert (second.flow, second.remote) == (first.flow, first.remote) and len(ids) == 2
        request = decode((first, second)[answered_one].data)
        answer = Message.success(request, {XOR_MAPPED_ADDRESS: MAPPED}).encode()
        probe.receive(Datagram(FLOW, SERVER, answer), now=Instant(150 * MILLISECOND))
        [ended] = probe.events()
        assert (ended.mapped, ended.rtt) == (MAPPED, (150, 50)[answered_one] * MILLISECOND)
        assert probe.next_timer() is None
        probe.ask_again(now=Instant(200 * MILLISECOND))
        assert probe.outputs() == [], "it has ended"


def test_a_probe_with_two_transactions_fails_once_and_with_the_later_one() -> None:
    probe, _ = started()
    probe.ask_again(now=Instant(SECOND))
    while (due := probe.next_timer()) is not None:
        probe.tick(now=due)
        last = due
    [ended] = probe.events()
    assert ended.mapped is None and last == 40.5 * SECOND
    probe, _ = started()
    probe.ask_again(now=Instant(SECOND))
    probe.receive(IcmpError(flow=FLOW, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE), now=Instant(SECOND))
    [ended] = probe.events()
    assert "port unreachable" in ended.reason.lower()
