"""A table with a server, and a person who has an allocation on it."""

from __future__ import annotations

import pytest

from tests.turn.server.harness import Person, Table, code, config


@pytest.fixture
def table() -> Table:
    return Table(config())


@pytest.fixture
def alice(table: Table) -> Person:
    person = Person(table)
    assert code(person.allocate()) == 0
    return person
