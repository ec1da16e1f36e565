"""Fixtures: a server with its network, and a client with an allocation."""

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
