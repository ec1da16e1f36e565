"""security.md, line 5: unauthenticated responses are short and limited for each source; amplification is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from polynya.core.addresses import Address
from polynya.stun import attributes as a
from polynya.stun.budget import Budget, source_of
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.server.config import Limits
from tests.security import amplification
from tests.turn.server.harness import CLIENT, OTHER, Person, Table, code, config

ALLOCATE = {a.REQUESTED_TRANSPORT: 17}
PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "security.md"


def provoke(table: Table, kind: int, client: Address, number: int) -> bytes:
    """Return a request without valid credentials that gets this error code."""
    person = Person(table, client)
    if kind == 401:
        return Message.request(Method.ALLOCATE, number.to_bytes(12, "big"), ALLOCATE).encode()
    if kind == 420:
        return bytes.fromhex("000100042112a442") + number.to_bytes(12, "big") + bytes.fromhex("7ffe0000")
    if kind == 400:
        return Message.request(Method.ALLOCATE, number.to_bytes(12, "big"), ALLOCATE).encode(integrity=person.key)
    person.nonce = b"obMatJos2AAADAAAAAAAAAAA"
    return person.build(Method.ALLOCATE, ALLOCATE)


@pytest.mark.parametrize("kind", [400, 401, 420, 438])
def test_unauthenticated_responses_have_the_required_attributes_only(kind: int) -> None:
    table = Table(config())
    request = provoke(table, kind, CLIENT, 1)
    [send] = table.from_client(request)
    answer = decode(send.data)
    assert answer[a.ERROR_CODE] == (kind, "")
    assert a.SOFTWARE not in answer and not answer.has_integrity
    assert len(send.data) <= 84


def test_amplification_by_unauthenticated_requests_is_small() -> None:
    """coturn/coturn#1588, #2025: coturn amplified 2.4 to 5.4 times."""
    rows = amplification.measure()
    assert max(row.on_the_wire for row in rows) < 2.4
    usual = next(row for row in rows if row.request == "Allocate, usual form")
    assert usual.on_the_wire == 2.0
    assert {row.answer for row in rows} == {"success", "400", "401", "420", "438", "nothing"}


def test_the_tables_of_the_documentation_are_as_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for rows in (amplification.measure(), amplification.measure_discovery()):
        assert amplification.table(rows) in page, "python -m tests.security.amplification"


def test_behavior_discovery_amplifies_only_by_the_attributes_of_its_rfc() -> None:
    """RFC 5780, section 6.1: four addresses in each response. PADDING and CHANGE-REQUEST do not amplify."""
    rows = amplification.measure_discovery()
    assert max(row.on_the_wire for row in rows) < 2.5
    assert {row.answer for row in rows} == {"success"}
    [padded] = [row for row in rows if "PADDING" in row.request]
    assert padded.on_the_wire < 1.1


@pytest.mark.parametrize(
    "attributes",
    [{a.CHANGE_REQUEST: a.ChangeRequest(port=True)}, {a.RESPONSE_PORT: 5000}, {a.PADDING: bytes(100)}],
    ids=["CHANGE-REQUEST", "RESPONSE-PORT", "PADDING"],
)
def test_binding_responses_to_or_from_another_address_share_the_budget(attributes: dict) -> None:
    table = amplification.discovering(4)
    limits = Limits(unauthenticated_answers_per_second=10, unauthenticated_burst=20)
    table.server.control.set_config(config(limits=limits), now=table.now)
    request = Message.request(Method.BINDING, bytes(12), attributes).encode()
    assert sum(len(table.from_client(request, CLIENT)) for _ in range(100)) == 20
    assert table.server.control.counters["dropped: too many unauthenticated responses"] == 80
    assert table.from_client(provoke(table, 401, CLIENT, 1)) == [], "they share one budget"
    table.run_for(1)
    assert sum(len(table.from_client(request, CLIENT)) for _ in range(100)) == 10


@pytest.mark.parametrize("kind", [400, 401, 420, 438])
def test_unauthenticated_responses_are_limited_for_each_source(kind: int) -> None:
    table = Table(config(limits=Limits(unauthenticated_answers_per_second=10, unauthenticated_burst=20)))
    ports = iter(range(1024, 60_000))

    def answered(count: int, host: str = CLIENT.host) -> int:
        return sum(
            len(table.from_client(provoke(table, kind, client, client.port), client))
            for client in (Address(host, next(ports)) for _ in range(count))
        )

    assert answered(100) == 20
    assert answered(5, OTHER.host) == 5, "another source has a budget of its own"
    table.run_for(1)
    assert answered(100) == 10


@pytest.mark.parametrize(("kind", "method"), [(437, Method.REFRESH), (441, Method.REFRESH)])
def test_signed_errors_that_a_client_can_provoke_share_the_budget(kind: int, method: Method) -> None:
    table = Table(config(limits=Limits(unauthenticated_answers_per_second=10, unauthenticated_burst=20)))
    person = Person(table, CLIENT, "bob")
    if kind == 441:
        Person(table, CLIENT).allocate()
    assert code(person.ask(method)) == kind
    answers = [code(person.say(person.build(method))) for _ in range(50)]
    assert 0 < answers.count(kind) < 20
    table.run_for(1)
    assert code(person.say(person.build(method))) == kind


def test_a_budget_is_for_an_ipv4_host_or_an_ipv6_prefix() -> None:
    assert source_of("192.0.2.1") != source_of("192.0.2.2")
    assert source_of("2001:db8:1:2::1") == source_of("2001:db8:1:2:ffff::2") != source_of("2001:db8:1:3::1")


def test_the_table_of_budgets_is_bounded() -> None:
    from polynya.core.instants import Instant

    budget = Budget(10, sources=100)
    for number in range(1000):
        budget.take(str(number), now=Instant(0))
    assert len(budget) == 100
