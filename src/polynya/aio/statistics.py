"""The whole of webrtc-stats: what the agent knows of its pairs, and what its connections sent and received."""

from __future__ import annotations

import time
from collections.abc import Iterable

from polynya.ice.report import Statistics, pair_id, transport_id

from .connection import Connection, Traffic


def whole_statistics(known: Statistics, connections: Iterable[Connection]) -> Statistics:
    """What is known of pairs, candidates and transports, with application data and the time of day added."""
    timestamp = time.time() * 1000
    for name, members in known.items():
        members.update(id=name, timestamp=timestamp)
        if members["type"] == "candidate-pair":
            members.update(_members_of_pair(Traffic()))
        elif members["type"] == "transport":
            members.update(_members(Traffic()), selectedCandidatePairChanges=0)
    for connection in connections:
        for pair, traffic in connection.traffic_by_pair().items():
            if (members_of_pair := known.get(pair_id(pair))) is not None:  # else it ended with its generation
                members_of_pair.update(_members_of_pair(traffic))
        transport = known.get(transport_id(connection.stream, connection.component))
        if transport is not None:
            transport.update(_members(connection.traffic))
            transport["selectedCandidatePairChanges"] = connection.pair_changes
    return known


def _members_of_pair(traffic: Traffic) -> dict[str, float]:
    members = _members(traffic)
    members["packetsDiscardedOnSend"] = traffic.packets_discarded
    members["bytesDiscardedOnSend"] = traffic.bytes_discarded
    if traffic.sent_at:
        members["lastPacketSentTimestamp"] = traffic.sent_at * 1000
    if traffic.received_at:
        members["lastPacketReceivedTimestamp"] = traffic.received_at * 1000
    return members


def _members(traffic: Traffic) -> dict[str, float]:
    return {
        "packetsSent": traffic.packets_sent,
        "bytesSent": traffic.bytes_sent,
        "packetsReceived": traffic.packets_received,
        "bytesReceived": traffic.bytes_received,
    }
