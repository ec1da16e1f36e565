"""security.md, line 12: a wrong MAC gets 401, unexpected messages are dropped, and the allocation is kept."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.stun import attributes as a
from polynya.stun.message import Message
from polynya.stun.registry import Class, Method
from polynya.turn.client import State
from tests.turn.client.relay import SERVER, USER, Relay, World
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


def test_only_its_client_can_use_an_allocation() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate(), alice.bind(0x4000)
    mallory = Person(table, OTHER, "bob")
    assert mallory.channel(0x4000, b"x") == [] and mallory.send(b"x") == []


@pytest.mark.parametrize("cls", [Class.SUCCESS, Class.ERROR])
@pytest.mark.parametrize("wrong", ["transaction id", "source", "integrity", "no integrity", "method"])
def test_a_client_ignores_responses_that_do_not_match_its_request(cls: Class, wrong: str) -> None:
    """A forged response to a pending Refresh, which would end the allocation."""
    world = World()
    world.run(1)
    world.lose = lambda data, outward: not outward and data[:2] in (b"\x01\x04", b"\x01\x14") and data not in forged
    forged: list[bytes] = []
    world.do(world.client.renew)
    request = world.relay.requests
    world.run(0.1)
    real = request[-1]
    assert real.method == Method.REFRESH
    asked = Message.request(
        Method.CREATE_PERMISSION if wrong == "method" else Method.REFRESH,
        bytes(12) if wrong == "transaction id" else real.transaction_id,
    )
    answer = Message.success(asked, {a.LIFETIME: 0}) if cls is Class.SUCCESS else Message.error(asked, 437)
    key = None if wrong == "no integrity" else Relay().key(USER.username)
    data = answer.encode(integrity=key)
    if wrong == "integrity":
        data = data[:-1] + bytes((data[-1] ^ 1,))
    forged.append(data)
    source = Address("198.51.100.66", 3478) if wrong == "source" else SERVER
    assert world.client.flow is not None
    world.inward(world.client.flow, source, data)
    world.run(1)
    assert world.client.state is State.ALLOCATED
    world.lose = lambda data, outward: False
    world.run(3600)
    assert world.client.state is State.ALLOCATED, "the allocation is kept"
