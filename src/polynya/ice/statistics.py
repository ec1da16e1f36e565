"""An agent's statistics in the terms of W3C's webrtc-stats: pairs, candidates and transports by their ids.

Members have the names, meanings and units of RTCIceCandidatePairStats, RTCIceCandidateStats and RTCTransportStats
(seconds, bytes). What those do not know is added in the same style: `stream` and `component`, `readable`, `writable`,
`valid` and the `reason` of a pair, a local candidate's `interface`. A transport here is one component of one stream.

An agent does not see application data, and has no calendar: whoever sends the data adds its members and `timestamp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polynya.core.instants import in_seconds

from .candidates import Candidate, LocalCandidate
from .generation import Generation
from .pairs import Pair
from .selection import Selections

Statistics = dict[str, dict[str, Any]]


def pair_id(number: int) -> str:
    """The id of a pair's statistics, from its `PairView.id`."""
    return f"pair-{number}"


def transport_id(stream: int, component: int) -> str:
    """The id of a component's statistics."""
    return f"transport-{stream}-{component}"


def agent_statistics(
    generations: Iterable[Generation],
    locals_: Iterable[LocalCandidate],
    selections: Selections,
    *,
    state: str,
    role: str,
) -> Statistics:
    """Everything there is, the current generation first."""
    found: Statistics = {}
    for generation in generations:
        for stream, component in generation.keys:
            found.setdefault(
                transport_id(stream, component),
                {
                    "type": "transport",
                    "stream": stream,
                    "component": component,
                    "iceRole": role,
                    "iceState": state,
                    "iceLocalUsernameFragment": generation.local.ufrag,
                },
            )
        for local in locals_:
            _add(found, _local_id(local.candidate), _local(local, generation.local.ufrag))
        ufrag = generation.remote.ufrag if generation.remote is not None else None
        for checklist in generation.checklists.lists:
            for remote in checklist.remotes:
                _add(found, _remote_id(remote, checklist.stream), _remote(remote, checklist.stream, ufrag))
        for pair in generation.checklists:
            _add(found, _local_id(pair.seen_local.candidate), _local(pair.seen_local, generation.local.ufrag))
            _add(found, _remote_id(pair.remote, pair.stream), _remote(pair.remote, pair.stream, ufrag))
            found[pair_id(pair.id)] = _pair(pair, selected=selections.holds(pair))
    for selection in selections.all:
        found[transport_id(*selection.key)]["selectedCandidatePairId"] = pair_id(selection.pair.id)
    return found


def _add(found: Statistics, name: str, members: Mapping[str, Any]) -> None:
    if name not in found:
        found[name] = {member: value for member, value in members.items() if value is not None}


def _pair(pair: Pair, *, selected: bool) -> dict[str, Any]:
    members = {
        "type": "candidate-pair",
        "transportId": transport_id(pair.stream, pair.component),
        "localCandidateId": _local_id(pair.seen_local.candidate),
        "remoteCandidateId": _remote_id(pair.remote, pair.stream),
        "state": pair.state.value,
        "nominated": pair.nominated,
        "selected": selected,
        "readable": pair.readable,
        "writable": pair.writable,
        "valid": pair.valid,
        "reason": pair.reason,
        "priority": pair.priority,
        "requestsSent": pair.requests_sent,
        "responsesReceived": pair.responses_received,
        "requestsReceived": pair.requests_received,
        "responsesSent": pair.responses_sent,
        "consentRequestsSent": pair.consent_requests_sent,
        "totalRoundTripTime": in_seconds(pair.rtt_total),
    }
    if pair.rtt is not None:
        members["currentRoundTripTime"] = in_seconds(pair.rtt)
    return members


def _local(local: LocalCandidate, ufrag: str) -> dict[str, Any]:
    relay = local.url if local.type.value == "relay" else ""
    return {
        **_candidate(local.candidate, local.stream, ufrag),
        "type": "local-candidate",
        "url": local.url or None,
        "relayProtocol": _relay_protocol(relay) if relay else None,
        "interface": local.interface or None,
    }


def _remote(candidate: Candidate, stream: int, ufrag: str | None) -> dict[str, Any]:
    return {**_candidate(candidate, stream, ufrag), "type": "remote-candidate"}


def _candidate(candidate: Candidate, stream: int, ufrag: str | None) -> dict[str, Any]:
    related = candidate.related
    return {
        "transportId": transport_id(stream, candidate.component),
        "address": candidate.host_name or candidate.address.host,
        "port": candidate.address.port,
        "protocol": candidate.transport,
        "candidateType": candidate.type.value,
        "priority": candidate.priority,
        "foundation": candidate.foundation,
        "relatedAddress": related.host if related is not None else None,
        "relatedPort": related.port if related is not None else None,
        "usernameFragment": dict(candidate.extensions).get("ufrag", ufrag),
        "tcpType": candidate.tcp_type.value if candidate.tcp_type is not None else None,
    }


def _relay_protocol(url: str) -> str:
    return "tls" if url.startswith("turns:") else url.rpartition("transport=")[2]


def _local_id(candidate: Candidate) -> str:
    return f"local-{candidate.generation}-{candidate.type.value}-{candidate.address}"


def _remote_id(candidate: Candidate, stream: int) -> str:
    where = candidate.host_name or candidate.address
    return f"remote-{candidate.generation}-{stream}-{candidate.component}-{candidate.type.value}-{where}"
