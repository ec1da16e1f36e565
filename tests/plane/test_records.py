"""The traffic of a relay is the sum over all workers that have served it."""

from __future__ import annotations

import socket

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.plane.records import Record
from polynya.turn.server.commands import Client, OpenRelay, Relay, Traffic

RELAY = Relay(Address("127.0.0.1", 50000))


def test_traffic_in_former_workers_counts_with_its_drop_reasons() -> None:
    client = Client(Flow(1), Address("127.0.0.1", 4000))
    command = OpenRelay(
        number=1, relay=RELAY, client=client, external=Address("192.0.2.1", 50000), stream=False, until=Instant(1)
    )
    with socket.socket() as sock:
        record = Record(command, sock, 0)
    first, second = Traffic(relay=RELAY, to_peers=2), Traffic(relay=RELAY, to_peers=3)
    first.drop("no permission to peer")
    first.drop("peer denied by policy")
    second.drop("no permission to peer")
    record.add_former_traffic(first)
    for _ in range(2):  # reported twice, counted once
        total = record.add_traffic(second)
    assert (total.to_peers, total.dropped) == (5, 3)
    assert total.reasons == {"no permission to peer": 2, "peer denied by policy": 1}
    assert first.reasons == {"no permission to peer": 1, "peer denied by policy": 1}, (
        "an earlier report does not change"
    )
