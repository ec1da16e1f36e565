"""Gathering where UDP seems to be blocked: it ends early if a relay over TCP or TLS is there (docs/deviations.md)."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.machine import (
    Open,
    Resolve,
    Send,
    StreamData,
)
from polynya.session.options import TurnCredentials
from polynya.stun.attributes import NONCE, REALM, XOR_MAPPED_ADDRESS, XOR_RELAYED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.stun.uris import TurnUri
from tests.reports import flat
from tests.session.conftest import ETH0, FIRST, MAPPED, candidates, ended

RTT = 0.05
TURN_URIS = ("turn:192.0.2.9?transport=tcp", "turn:192.0.2.9")


def with_relay(bench, *uris: str, stun: str = "stun:192.0.2.1", held: str = "", **options: object):
    """Start a session whose TURN server allocates over TCP, 0.15 s after the start."""
    servers = tuple(TurnCredentials(TurnUri.parse(uri)) for uri in uris or TURN_URIS[:1])
    b = bench(stun, turn_servers=servers, **options)
    b.start(ETH0, answer=False)
    b.answer_opens()
    later = [output for output in b.take(Resolve) if output.name == held or b.outputs.append(output)]
    b.answer_names()
    b.outputs += later
    b.advance(RTT)
    [stream] = [each for each in b.outputs if isinstance(each, Open)]
    b.answer_opens()
    b.advance(2 * RTT)
    [request] = [send for send in b.outputs if isinstance(send, Send) and send.flow == stream.flow]
    b.session.receive(StreamData(stream.flow, allocation(request)), now=b.now)
    b.drain()
    return b


def allocation(request: Send) -> bytes:
    values = {XOR_RELAYED_ADDRESS: (Address("192.0.2.9", 50000),), XOR_MAPPED_ADDRESS: Address("10.0.0.2", 5001)}
    return Message.success(decode(request.data), values).encode()


TURN = Address("192.0.2.9", 3478)


def questions(b, server: Address = FIRST) -> list[Send]:
    """Binding requests to a server."""
    sent = [send for send in b.outputs if isinstance(send, Send) and send.remote == server]
    return [send for send in sent if decode(send.data).method == Method.BINDING]


def allocates(b) -> list[Send]:
    """Allocate requests over UDP."""
    [base] = b.session.gathering.bases
    sent = [send for send in b.outputs if isinstance(send, Send) and (send.flow, send.remote) == (base.flow, TURN)]
    return [send for send in sent if decode(send.data).method == Method.ALLOCATE]


def test_with_a_relay_over_tcp_and_no_answer_over_udp_gathering_ends_after_two_round_trips(bench) -> None:
    """Issue E, line 9: an unreachable STUN server got a second more."""
    b = with_relay(bench)  # its one request took 2 * RTT
    assert not ended(b) and len(questions(b)) == 1
    b.advance(2 * 2 * RTT - 0.001)
    assert not ended(b)
    asked = questions(b)
    assert len({decode(send.data).transaction_id for send in asked}) == 4
    b.advance(0.001)
    assert ended(b) and [kind for kind, _ in candidates(b)] == ["host", "relay"]
    assert "UDP seems blocked" in flat(b.session.why())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_of_the_transactions_gives_the_mapping_and_a_late_one_still_does(bench, number: int) -> None:
    b = with_relay(bench)
    b.advance(0.15)
    b.answer_question(questions(b)[number], MAPPED)
    assert ("srflx", MAPPED) in candidates(b) and ended(b)
    late = with_relay(bench)
    late.advance(1)
    assert ended(late)
    late.answer_question(questions(late)[number], MAPPED)
    assert ("srflx", MAPPED) in candidates(late)


def test_the_server_of_the_relay_is_asked_over_udp_since_its_distance_is_known(bench) -> None:
    """The STUN server may be farther away: then an answer of the TURN server gives it the grace period."""
    b = with_relay(bench)
    b.advance(0.19)
    first, *_ = questions(b, TURN)
    assert len(questions(b, TURN)) == 3
    b.answer_question(first, MAPPED)
    assert ("srflx", MAPPED) in candidates(b)
    b.advance(0.99)
    assert not ended(b)
    b.answer_question(questions(b)[0], Address("203.0.113.1", 40009))
    assert ended(b)


def test_the_binding_server_of_a_relay_over_tls_has_the_default_port(bench) -> None:
    b = with_relay(bench, "turns:192.0.2.9:443")
    b.advance(0.19)
    assert questions(b, TURN)


def test_that_is_an_option(bench) -> None:
    b = with_relay(bench, blocked_udp=False)
    b.advance(0.99)
    assert not ended(b)
    b.advance(0.02)
    assert ended(b)


def test_any_answer_over_udp_shows_that_udp_is_open(bench) -> None:
    b = with_relay(bench, *TURN_URIS)
    allocate = allocates(b)[0]
    challenge = Message.error(decode(allocate.data), 401, None, {REALM: "example.org", NONCE: b"nonce"}).encode()
    b.receive(allocate.flow, allocate.remote, challenge)
    b.advance(0.99)
    assert not ended(b), "the STUN server has the whole grace period"


def test_a_silent_turn_server_over_udp_is_asked_again_and_not_waited_for(bench) -> None:
    b = with_relay(bench, *TURN_URIS)
    b.advance(0.19)
    asked = [decode(send.data).transaction_id for send in allocates(b)]
    assert len(set(asked)) == 4 and not ended(b)
    b.advance(0.02)
    assert ended(b)


def test_udp_is_not_blocked_before_a_server_was_asked(bench) -> None:
    """The name of the STUN server takes longer than the relay; the server then gets two round trips."""
    b = with_relay(bench, stun="stun:slow.example", held="slow.example")
    b.advance(0.5)
    assert not ended(b) and questions(b) == []
    b.answer_names(**{"slow.example": ("192.0.2.1",)})
    b.advance(4 * RTT - 0.01)
    assert not ended(b) and questions(b)
    b.advance(0.02)
    assert ended(b)
