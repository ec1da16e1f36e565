"""security.md, line 3: a request with one forbidden peer installs none; every way to a peer asks the rule."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.stun.attributes import ADDITIONAL_ADDRESS_FAMILY
from polynya.turn.server.policy import PeerPolicy
from tests.turn.server.harness import PEER, PEER6, Person, Table, code, config

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
    alice.allocate({ADDITIONAL_ADDRESS_FAMILY: 6})
    assert code(alice.permit(PEER, Address("::1", 1), PEER6)) == 403
    assert table.server.plane.size["permissions"] == 0


def test_the_data_plane_asks_by_itself_for_data_in_both_directions() -> None:
    """Even if a permission came to be there, the rule is asked again where packets pass."""
    table = Table(config(policy=PeerPolicy(allow=("10.0.0.0/8",))))
    alice = Person(table)
    alice.allocate()
    assert code(alice.permit(FORBIDDEN)) == 0 and len(alice.send(b"x", FORBIDDEN)) == 1
    from functools import partial

    from polynya.turn.server.commands import SetPolicy

    table.server.plane.execute(partial(SetPolicy, policy=PeerPolicy())(number=10**6), now=table.now)
    assert alice.send(b"x", FORBIDDEN) == []
    assert table.from_peer(alice.relayed[0], b"x", FORBIDDEN) == []
    assert table.server.plane.counters["peer denied by policy"] == 2


def test_a_plane_that_was_told_no_rules_reaches_nobody() -> None:
    import random

    from polynya.core.flows import FlowIds
    from polynya.turn.server.forwarder import Forwarder

    assert Forwarder(FlowIds(), random=random.Random(1))._forbidden(PEER) != ""  # type: ignore[arg-type]
