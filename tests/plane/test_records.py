"""What a relay carried is told whole, whichever workers it has been in."""

from __future__ import annotations

import socket

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.plane.records import Record
from polynya.turn.server.commands import Client, OpenRelay, Relay, Traffic

RELAY = Relay(Address("127.0.0.1", 50000))


def test_traffic_of_workers_that_a_relay_has_left_counts_with_its_reasons() -> None:
    client = Client(Flow(1), Address("127.0.0.1", 4000))
    command = OpenRelay(
        number=1, relay=RELAY, client=client, external=Address("192.0.2.1", 50000), stream=False, until=Instant(1)
    )
    with socket.socket() as sock:
        record = Record(command, sock, 0)
    first, second = Traffic(relay=RELAY, to_peers=2), Traffic(relay=RELAY, to_peers=3)
    first.drop("no permission")
    first.drop("forbidden peer")
    second.drop("no permission")
    record.left(first)
    for _ in range(2):  # told twice, counted once
        told = record.carried(second)
    assert (told.to_peers, told.dropped) == (5, 3)
    assert told.reasons == {"no permission": 2, "forbidden peer": 1}
    assert first.reasons == {"no permission": 1, "forbidden peer": 1}, "what was told before stays as it was"
