"""security.md, line 11: what is counted has names of our own, however clients call themselves."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.stun.registry import Method
from tests.turn.server.harness import CLIENT, Person, Table, config


def test_counters_have_a_bounded_set_of_names() -> None:
    table = Table(config())

    def visit(first: int) -> None:
        for number in range(first, first + 50):
            person = Person(table, Address(CLIENT.host, 2000 + number), f"user-{number}\u2603", "x")
            person.ask(Method.ALLOCATE, {})
            person.ask(Method.REFRESH, {})
            table.from_client(bytes((number,)) * number, person.address)
            table.run_for(1)

    visit(0)
    names = set(table.server.control.counters) | set(table.server.plane.counters)
    visit(50)
    assert set(table.server.control.counters) | set(table.server.plane.counters) == names
    assert not any("user-" in name or CLIENT.host in name for name in names)
