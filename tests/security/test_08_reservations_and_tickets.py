"""security.md, line 8: a port that EVEN-PORT reserved needs its token and its user, and is freed after 30 s."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.stun import attributes as a
from tests.turn.server.harness import CLIENT, OTHER, PEER, Person, Table, code, config


def test_a_reserved_port_is_for_the_user_with_the_token() -> None:
    table = Table(config(ports=(50000, 50001)))
    token = Person(table).allocate({a.EVEN_PORT: True})[a.RESERVATION_TOKEN]
    assert code(Person(table, Address(CLIENT.host, 40001)).allocate()) == 508
    bob = Person(table, OTHER, "bob")
    assert code(bob.allocate({a.RESERVATION_TOKEN: token})) == 508, "another user cannot redeem it"
    alice = Person(table, Address(CLIENT.host, 40002))
    assert code(alice.allocate({a.RESERVATION_TOKEN: token})) == 0, "its own user can"


def test_a_reserved_port_relays_nothing_until_it_is_redeemed() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate({a.EVEN_PORT: True})
    alice.permit(PEER)
    [relay] = alice.relayed
    assert table.from_peer(relay.with_port(relay.port + 1), b"x") == []
    bob = Person(table, OTHER, "bob")
    bob.allocate(), bob.permit(relay)
    assert bob.send(b"x", relay.with_port(relay.port + 1)) == []


def test_a_reservation_expires_with_its_token() -> None:
    table = Table(config())
    alice = Person(table)
    token = alice.allocate({a.EVEN_PORT: True})[a.RESERVATION_TOKEN]
    table.run_for(29)
    assert len(table.flows) == 2
    table.run_for(2)
    assert len(table.flows) == 1 and table.server.control.allocations.claimed == 1
    late = Person(table, Address(CLIENT.host, 40001))
    assert code(late.allocate({a.RESERVATION_TOKEN: token})) == 508


def test_a_reservation_outlives_the_allocation_that_made_it() -> None:
    table = Table(config())
    alice = Person(table)
    token = alice.allocate({a.EVEN_PORT: True})[a.RESERVATION_TOKEN]
    alice.refresh(0)
    second = Person(table, Address(CLIENT.host, 40001))
    assert code(second.allocate({a.RESERVATION_TOKEN: token})) == 0
    second.refresh(0)
    assert table.flows == {} and table.server.control.allocations.claimed == 0
