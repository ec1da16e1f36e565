"""`Agent.stats()`: webrtc-stats of the ICE agent, with the application data of its connections added."""

from __future__ import annotations

import time
from collections.abc import Iterable

from polynya.ice.report import Statistics, pair_id, transport_id

from .connection import Connection, Traffic


def whole_statistics(known: Statistics, connections: Iterable[Connection]) -> Statistics:
    """Adds application data and the time of day to the dictionaries of pairs, candidates and transports.

    Besides the standard's members, transports have `packetsRefusedOnSend`, `bytesRefusedOnSend`, `packetsWithoutPath`
    and `packetsDroppedOnReceive`.
    """
    timestamp = time.time() * 1000
    for name, members in known.items():
        members.update(id=name, timestamp=timestamp)
        if members["type"] == "candidate-pair":
            members.update(_members_of_pair(Traffic()))
        elif members["type"] == "transport":
            members.update(_members_of_transport(Traffic()))
    for connection in connections:
        for pair, traffic in connection._traffic_by_pair().items():
            if (members_of_pair := known.get(pair_id(pair))) is not None:  # else it ended with its generation
                members_of_pair.update(_members_of_pair(traffic))
        transport = known.get(transport_id(connection.stream, connection.component))
        if transport is not None:
            transport.update(
                _members_of_transport(
                    connection._traffic,
                    changes=connection.pair_changes,
                    without_path=connection.datagrams_without_path,
                    dropped=connection.datagrams_dropped,
                )
            )
    return known


def _members_of_pair(traffic: Traffic) -> dict[str, float]:
    members = _members(traffic)
    members["packetsDiscardedOnSend"] = traffic.packets_refused
    members["bytesDiscardedOnSend"] = traffic.bytes_refused
    if traffic.sent_at:
        members["lastPacketSentTimestamp"] = traffic.sent_at * 1000
    if traffic.received_at:
        members["lastPacketReceivedTimestamp"] = traffic.received_at * 1000
    return members


def _members_of_transport(
    traffic: Traffic, *, changes: int = 0, without_path: int = 0, dropped: int = 0
) -> dict[str, float]:  # fmt: skip
    return {
        **_members(traffic),
        "selectedCandidatePairChanges": changes,
        "packetsRefusedOnSend": traffic.packets_refused,
        "bytesRefusedOnSend": traffic.bytes_refused,
        "packetsWithoutPath": without_path,
        "packetsDroppedOnReceive": dropped,
    }


def _members(traffic: Traffic) -> dict[str, float]:
    return {
        "packetsSent": traffic.packets_sent,
        "bytesSent": traffic.bytes_sent,
        "packetsReceived": traffic.packets_received,
        "bytesReceived": traffic.bytes_received,
    }
