"""security.md, line 3: a request with one denied peer installs no permission; every datagram is judged."""

from __future__ import annotations

import random

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Opened
from polynya.stun import attributes as a
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.turn.server.commands import Client, OpenRelay, PeerForbidden, Permit, Relay, SetPolicy
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.policy import PeerPolicy
from tests.turn.server.harness import CLIENT, HOST, LISTENER, PEER, PEER6, Person, Table, code, config

FORBIDDEN = Address("10.0.0.1", 80)


@pytest.mark.parametrize("where", range(3))
def test_one_forbidden_peer_and_none_is_permitted(where: int) -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate()
    peers = [PEER, Address("203.0.113.10", 1)]
    peers.insert(where, FORBIDDEN)
    assert code(alice.permit(*peers)) == 403
    assert [alice.send(b"x", peer) for peer in peers] == [[], [], []]
    assert table.server.plane.size["permissions"] == 0


def test_one_forbidden_peer_of_another_family_and_none_is_permitted() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    assert code(alice.permit(PEER, Address("::1", 1), PEER6)) == 403
    assert table.server.plane.size["permissions"] == 0


def test_the_data_plane_asks_by_itself_for_data_in_both_directions() -> None:
    """The peer policy applies to each datagram even if there is a permission."""
    table = Table(config(policy=PeerPolicy(allow=("10.0.0.0/8",))))
    alice = Person(table)
    alice.allocate()
    assert code(alice.permit(FORBIDDEN)) == 0 and len(alice.send(b"x", FORBIDDEN)) == 1
    table.server.plane.execute(SetPolicy(policy=PeerPolicy(), number=10**6), now=table.now)
    assert alice.send(b"x", FORBIDDEN) == []
    assert table.from_peer(alice.relayed[0], b"x", FORBIDDEN) == []
    assert table.server.plane.counters["peer denied by policy"] == 2


def test_a_plane_without_a_policy_relays_to_no_peer() -> None:
    chance, now, later = random.Random(1), Instant(0), Instant(SECOND)
    plane = Forwarder(FlowIds(), random=chance)
    relay, client = Relay(Address(HOST, 50000)), Client(LISTENER, CLIENT)
    plane.execute(OpenRelay(number=1, relay=relay, external=relay, client=client, until=later), now=now)
    [opening] = plane.outputs()
    plane.receive(Opened(flow=opening.flow, local=relay), now=now)
    plane.execute(Permit(number=2, relay=relay, hosts=(PEER.host,), until=later), now=now)
    data = Message.indication(Method.SEND, bytes(12), {a.XOR_PEER_ADDRESS: (PEER,), a.DATA: b"x"}).encode()
    plane.receive(Datagram(LISTENER, CLIENT, data), now=now)
    assert plane.outputs() == []
    [report] = [each for each in plane.reports() if isinstance(each, PeerForbidden)]
    assert (report.peer, report.rule) == (PEER, "no peer policy is set")
