"""RFC 5928: which servers a TURN URI stands for."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.core.instants import Instant
from polynya.core.machine import RecordType, Resolve, Resolved
from polynya.stun.uris import TurnUri
from polynya.turn.client import ServerAddress
from polynya.turn.discovery import Discovered, Discovery

NOW = Instant(0)
HOSTS = {
    ("example.org", RecordType.ADDRESS): ("192.0.2.1", "2001:db8::1"),
    ("a.example.org", RecordType.ADDRESS): ("192.0.2.2",),
    ("b.example.org", RecordType.ADDRESS): ("192.0.2.3",),
}
UDP = ("_turn._udp.example.org", RecordType.SRV)
TCP = ("_turn._tcp.example.org", RecordType.SRV)
TLS = ("_turns._tcp.example.org", RecordType.SRV)
NAPTR = ("example.org", RecordType.NAPTR)


def discover(uri: str, zone: dict[Any, Any], seed: int = 1, **options: Any) -> tuple[Discovered, list[list[Resolve]]]:
    """Run a discovery; returns its result and the queries of each round."""
    machine = Discovery(TurnUri.parse(uri), random=Random(seed), **options)
    machine.start(now=NOW)
    rounds: list[list[Resolve]] = []
    while queries := machine.outputs():
        rounds.append(queries)
        for query in queries:
            hosts = zone.get((query.name, query.record), ())
            machine.receive(
                Resolved(query=query, hosts=hosts, error="" if hosts else f"{query.name}: no such"), now=NOW
            )
            machine.receive(Resolved(query=query, hosts=("192.0.2.99",)), now=NOW)  # an answer counts once
    [found] = machine.events()
    assert machine.next_timer() is None
    return found, rounds


def places(found: Discovered) -> list[str]:
    return [f"{server.address} {server.transport.value}" for server in found.servers]


def test_an_address_needs_no_query() -> None:
    for uri, expected in (
        ("turn:192.0.2.7", "192.0.2.7:3478 udp"),
        ("turns:192.0.2.7", "192.0.2.7:5349 tls"),
        ("turn:[2001:db8::7]:99?transport=tcp", "[2001:db8::7]:99 tcp"),
    ):
        found, rounds = discover(uri, {})
        assert places(found) == [expected] and rounds == []


def test_a_name_with_a_port_has_its_addresses_in_their_order() -> None:
    found, rounds = discover("turn:example.org:1000", HOSTS)
    assert places(found) == ["192.0.2.1:1000 udp", "[2001:db8::1]:1000 udp"]
    assert [query.record for query in rounds[0]] == [RecordType.ADDRESS] and len(rounds) == 1


def test_a_name_alone_costs_one_round_trip_where_there_are_no_records() -> None:
    found, rounds = discover("turn:example.org", HOSTS)
    assert places(found) == ["192.0.2.1:3478 udp", "[2001:db8::1]:3478 udp"]
    assert len(rounds) == 1 and len(rounds[0]) == 4


def test_srv_records_are_followed_by_transport_and_priority() -> None:
    zone = {
        **HOSTS,
        UDP: ("20 0 1002 b.example.org.", "10 0 1001 a.example.org."),
        TCP: ("0 0 443 a.example.org.",),
        TLS: ("0 0 444 a.example.org.",),
    }
    found, _ = discover("turn:example.org", zone)
    assert places(found) == ["192.0.2.2:1001 udp", "192.0.2.3:1002 udp", "192.0.2.2:443 tcp"]
    found, _ = discover("turn:example.org?transport=tcp", zone)
    assert places(found) == ["192.0.2.2:443 tcp"]
    found, _ = discover("turns:example.org", zone)
    assert found.servers == (
        ServerAddress(address=Address("192.0.2.2", 444), transport=Transport.TLS, name="example.org"),
    )


def test_weights_are_drawn_once_and_in_proportion() -> None:
    zone = {**HOSTS, UDP: ("0 30 1 a.example.org.", "0 10 2 b.example.org.")}
    first = Counter(places(discover("turn:example.org?transport=udp", zone, seed=seed)[0])[0] for seed in range(400))
    assert 250 < first["192.0.2.2:1 udp"] < 350 and first.total() == 400


def test_naptr_records_come_first_in_their_order() -> None:
    zone = {
        **HOSTS,
        NAPTR: (
            '100 60 "s" "RELAY:turn.udp" "" alt.example.org.',
            '100 50 "a" "RELAY:turn.tcp" "" b.example.org.',
            '100 10 "s" "RELAY:turn.tls" "" _turns._tcp.example.org.',
            '50 10 "s" "SIP+D2U" "" _sip._udp.example.org.',
        ),
        ("alt.example.org", RecordType.SRV): ("0 0 7 a.example.org.",),
        UDP: ("0 0 1001 a.example.org.",),
    }
    found, rounds = discover("turn:example.org", zone)
    assert places(found) == ["192.0.2.3:3478 tcp", "192.0.2.2:7 udp"]
    assert len(rounds) == 2


def test_naptr_records_may_lead_to_others_but_not_in_a_circle() -> None:
    zone = {
        **HOSTS,
        NAPTR: ('1 1 "" "RELAY:turn.udp" "" other.example.org.',),
        ("other.example.org", RecordType.NAPTR): ('1 1 "a" "RELAY:turn.udp:turn.tcp" "" a.example.org.',),
    }
    assert places(discover("turn:example.org", zone)[0]) == ["192.0.2.2:3478 udp"]
    zone["other.example.org", RecordType.NAPTR] = ('1 1 "" "RELAY:turn.udp" "" example.org.',)
    assert places(discover("turn:example.org", zone)[0]) == ["192.0.2.1:3478 udp", "[2001:db8::1]:3478 udp"]


def test_records_that_make_no_sense_are_passed_over() -> None:
    zone = {
        **HOSTS,
        NAPTR: ("x", '1 1 "s" "RELAY:turn.udp" "!.*!x!" .', '-1 1 "s" "RELAY:turn.udp" "" x.'),
        UDP: ("0 0 0 .", "1 2 3", "a b c d", "0 0 99999 a.example.org.", "0 0 5 a.example.org."),
        ("a.example.org", RecordType.ADDRESS): ("not an address", "192.0.2.2", "192.0.2.2"),
    }
    assert places(discover("turn:example.org?transport=udp", zone)[0]) == ["192.0.2.2:5 udp"]
    assert places(discover("turn:example.org", zone)[0]) == ["192.0.2.2:5 udp"]


def test_unusable_families_and_transports_are_left_out() -> None:
    assert places(discover("turn:example.org", HOSTS, families=(6,))[0]) == ["[2001:db8::1]:3478 udp"]
    found, _ = discover("turn:example.org", HOSTS, transports=(Transport.TCP,))
    assert found.servers == () and "no such" in found.reason


def test_a_transport_that_is_not_usable_is_named_and_no_query_is_sent() -> None:
    found, rounds = discover("turns:example.org", HOSTS, transports=(Transport.UDP, Transport.TCP))
    assert found.servers == () and "needs tls, which is not supported here" in found.reason and rounds == []


def test_a_name_that_does_not_exist_says_so() -> None:
    found, _ = discover("turn:nowhere.example", {})
    assert found.servers == () and "nowhere.example: no such" in found.reason


@pytest.mark.parametrize("count", [40])
def test_the_list_is_bounded(count: int) -> None:
    zone = {("many.example", RecordType.ADDRESS): tuple(f"192.0.2.{number}" for number in range(count))}
    assert len(discover("turn:many.example:1", zone)[0].servers) == 16


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "::ffff:192.0.2.1"])
def test_impossible_addresses_of_a_name_are_skipped_with_the_reason(host: str) -> None:
    """A filtering resolver answers 0.0.0.0 for names that it blocks."""
    zone = {("example.org", RecordType.ADDRESS): (host,)}
    found, _ = discover("turn:example.org:3478?transport=udp", zone)
    assert found.servers == () and f"{Address.of(host, 3478)} is " in found.reason
    zone = {("example.org", RecordType.ADDRESS): (host, "192.0.2.1")}
    found, _ = discover("turn:example.org:3478?transport=udp", zone)
    assert places(found) == ["192.0.2.1:3478 udp"]
