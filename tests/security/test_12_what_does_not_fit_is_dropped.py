"""security.md, line 12, the server's part: a bad MAC is answered 401, responses are dropped, all else lives on."""

from __future__ import annotations

from polynya.stun import attributes as a
from polynya.stun.message import Message
from polynya.stun.registry import Method
from tests.turn.server.harness import OTHER, PEER, Person, Table, code, config


def test_a_request_with_a_bad_mac_changes_nothing_for_the_allocation() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate(), alice.bind(0x4000)
    forger = Person(table, alice.address, "alice", "guess")
    forger.nonce, forger.offered = alice.nonce, alice.offered
    assert code(forger.say(forger.build(Method.REFRESH, {a.LIFETIME: 0}))) == 401
    assert len(alice.channel(0x4000, b"x")) == 1 and code(alice.refresh()) == 0


def test_responses_and_stray_indications_are_dropped() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate(), alice.permit(PEER)
    request = Message.request(Method.REFRESH, bytes(12), {a.LIFETIME: 0})
    for message in (
        Message.success(request, {a.LIFETIME: 0}),
        Message.error(request, 437),
        Message.indication(Method.REFRESH, bytes(12), {a.LIFETIME: 0}),
        Message.indication(Method.DATA, bytes(12), {a.XOR_PEER_ADDRESS: (PEER,), a.DATA: b"x"}),
        Message.indication(Method.BINDING, bytes(12)),
        Message.request(Method.CONNECT, bytes(12), {a.XOR_PEER_ADDRESS: (PEER,)}),
    ):
        assert table.from_client(message.encode(integrity=alice.key), alice.address) == []
    assert len(table.flows) == 1


def test_nobody_else_can_send_by_an_allocation() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate(), alice.bind(0x4000)
    mallory = Person(table, OTHER, "bob")
    assert mallory.channel(0x4000, b"x") == [] and mallory.send(b"x") == []
