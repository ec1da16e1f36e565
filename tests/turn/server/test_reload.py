"""The configuration changes while the server runs: it takes effect at once and allocations are kept."""

from __future__ import annotations

from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.stun import attributes as a
from polynya.stun.registry import Method
from polynya.turn.server.config import ChannelRange, Limits, RelayHost
from polynya.turn.server.lookups import UserFound
from polynya.turn.server.users import ExternalUsers, StaticUsers, User
from tests.turn.server.harness import CLIENT, HOST, PEER, REALM, Person, Table, code, config


def test_new_limits_apply_to_new_requests_only() -> None:
    table = Table(config())
    people = [Person(table, Address(CLIENT.host, 1000 + number)) for number in range(3)]
    assert [code(person.allocate()) for person in people[:2]] == [0, 0]
    table.server.control.set_config(config(limits=Limits(allocations=2)), now=table.now)
    assert code(people[2].allocate()) == 486
    assert [code(person.refresh(600)) for person in people[:2]] == [0, 0]


def test_new_lifetimes_and_channel_range_apply_at_once() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate()
    changed = config(channel_range=ChannelRange.RFC8656, max_lifetime=700 * 10**9)
    table.server.control.set_config(changed, now=table.now)
    assert code(alice.bind(0x5000, PEER)) == 400
    table.server.control.set_config(config(max_lifetime=700 * 10**9), now=table.now)
    assert code(alice.bind(0x5000, PEER)) == 0
    assert alice.refresh(3600)[a.LIFETIME] == 700


def test_an_allocation_of_a_removed_user_is_kept_until_its_next_request() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate()
    table.server.control.set_directory(StaticUsers(REALM, [User.with_password("carol", REALM, "new")]), now=table.now)
    assert code(Person(table, Address(CLIENT.host, 1), "carol", "new").allocate()) == 0
    assert len(table.server.control.allocations.by_client) == 2
    assert code(alice.refresh(600)) == 401, "her user was removed"


def test_a_new_directory_clears_the_cache_of_lookups() -> None:
    table = Table(config(), ExternalUsers())
    carol = Person(table, name="carol", password="sea")
    for _ in range(2):
        carol.learn(carol.say(carol.build(Method.REFRESH)))
    table.give(UserFound("carol", User.with_password("carol", REALM, "sea")))
    assert code(carol.say(carol.build(Method.REFRESH))) == 437
    table.server.control.set_directory(ExternalUsers(), now=table.now)
    assert carol.say(carol.build(Method.REFRESH)) is None, "the user is looked up again"
    table.give(UserFound("carol", None))
    assert code(carol.say(carol.build(Method.REFRESH))) == 401


@pytest.mark.parametrize(
    "change", [{"realm": "other"}, {"ports": (50000, 50001)}, {"relays": (RelayHost(host=HOST),)}, {"algorithms": (1,)}]
)
def test_fields_that_clients_depend_on_cannot_change(change: dict[str, Any]) -> None:
    table = Table(config())
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        table.server.control.set_config(config(**change), now=table.now)
