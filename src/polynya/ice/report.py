"""Reports of an agent: `why()` as data and as text, and statistics in the terms of W3C's webrtc-stats.

Members of the statistics have the names, meanings and units of RTCIceCandidatePairStats, RTCIceCandidateStats and
RTCTransportStats (seconds, bytes). Additional members follow the same style: `stream` and `component`; `readable`,
`writable`, `valid` and `reason` of a pair; `interface` of a local candidate. A transport is one component of one
stream. An agent sees no application data and has no calendar: the sender of the data adds its members and `timestamp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polynya.core.compact import History
from polynya.core.instants import Instant, in_seconds
from polynya.core.wrapping import wrapped

from .candidates import Candidate, LocalCandidate
from .context import Context
from .events import AgentState
from .generation import Generation
from .outcome import Outcome
from .pairs import Pair
from .selection import Selections

Statistics = dict[str, dict[str, Any]]
"""Members of each pair, candidate and transport, by its id."""


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """Report of an agent. `data` is fit for JSON, times are seconds; `str()` is for people."""

    data: dict[str, Any]

    def __str__(self) -> str:
        return wrapped(_lines(self.data))

    def __repr__(self) -> str:
        return f"<Report {self.data['state']}: {self.data['reason']}; {len(self.data['pairs'])} pairs>"


@dataclass(frozen=True, slots=True, repr=False)
class PairReport:
    """Report of one pair. `data` is fit for JSON, times are seconds; `str()` is for people."""

    data: dict[str, Any]

    def __str__(self) -> str:
        return wrapped(_pair_lines(self.data))

    def __repr__(self) -> str:
        data = self.data
        return f"<PairReport {data['id']}: {data['local']} -> {data['remote']}, {data['state']}: {data['reason']}>"


# ------------------------------------------------------------------------------------------- what `why` returns


def pair_report(pair: Pair, *, selected: bool, since: Instant) -> dict[str, Any]:
    """Return the report of one pair, with its transitions. Times are seconds, those of transitions since `since`."""
    return {
        "id": pair.id,
        "stream": pair.stream,
        "component": pair.component,
        "local": pair.seen_local.candidate.label,
        "base": str(pair.local.base),
        "remote": pair.remote.label,
        "flow": str(pair.flow),
        "state": pair.state.value,
        "writable": pair.writable,
        "readable": pair.readable,
        "valid": pair.valid,
        "nominated": pair.nominated,
        "selected": selected,
        "relayed": pair.relayed,
        "priority": pair.priority,
        "rtt": None if pair.rtt is None else in_seconds(pair.rtt),
        "reason": pair.explain(pair.reason) if pair.state.value != "failed" else pair.reason,
        "requests_sent": pair.requests_sent,
        "responses_received": pair.responses_received,
        "requests_received": pair.requests_received,
        "responses_sent": pair.responses_sent,
        "transitions": [
            {
                "at": in_seconds(transition.at - since),
                "old": transition.old.value,
                "new": transition.new.value,
                "reason": transition.reason,
                "packet": transition.packet,
            }
            for transition in pair.history.transitions()
        ],
    }


def beginning(history: History[AgentState], generation: Generation) -> Instant:
    """Return the instant that the times of a report count from: the first transition of the agent."""
    changes = history.transitions()
    return changes[0].at if changes else generation.started_at or Instant(0)


def agent_report(
    context: Context, outcome: Outcome, generation: Generation, selections: Selections, names: Mapping[str, str]
) -> Report:  # fmt: skip
    """Return the report of an agent; `names` has what became of each name of a remote candidate."""
    since = beginning(outcome.history, generation)
    return Report(
        {
            "state": outcome.state.value,
            "reason": outcome.reason,
            "role": context.role.name,
            "generation": generation.number,
            "ufrag": generation.local.ufrag,
            "remote_ufrag": generation.remote.ufrag if generation.remote is not None else None,
            "local_candidates": [str(local.candidate) for local in context.locals.all],
            "remote_candidates": [
                str(candidate) for checklist in generation.checklists.lists for candidate in checklist.remotes
            ],
            "pairs": [
                pair_report(pair, selected=selections.holds(pair), since=since) for pair in generation.checklists
            ],
            "history": [
                {
                    "at": in_seconds(change.at - since),
                    "old": change.old.value,
                    "new": change.new.value,
                    "reason": change.reason,
                }
                for change in outcome.history.transitions()
            ],
            "names": dict(names),
            "ignored_lines": list(context.outbox.ignored),
            "counters": dict(context.outbox.counters),
        }
    )


def _lines(data: dict[str, Any]) -> list[str]:
    lines = [f"{data['state']}: {data['reason']} ({data['role']}, generation {data['generation']})"]
    lines += [f"  {change['at']:8.3f} s  {change['new']}: {change['reason']}" for change in data["history"]]
    lines.append(
        f"{len(data['local_candidates'])} local candidates, {len(data['remote_candidates'])} remote candidates"
    )
    lines += [f"remote name {name} {outcome}" for name, outcome in data["names"].items()]
    lines += [f"ignored in the remote description, {line}" for line in data["ignored_lines"]]
    for pair in data["pairs"]:
        lines += _pair_lines(pair)
    return lines


def _pair_lines(pair: dict[str, Any]) -> list[str]:
    flags = [flag for flag in ("writable", "readable", "valid", "nominated", "selected", "relayed") if pair[flag]]
    rtt = "" if pair["rtt"] is None else f", {pair['rtt'] * 1000:.1f} ms"
    lines = [
        f"pair {pair['id']}: {pair['local']} -> {pair['remote']}",
        f"  {pair['state']}{rtt} [{' '.join(flags)}]: {pair['reason']}",
    ]
    for step in pair["transitions"]:
        packet = f" (packet {step['packet']})" if step["packet"] else ""
        lines.append(f"  {step['at']:8.3f} s  {step['new']}: {step['reason']}{packet}")
    return lines


# ---------------------------------------------------------------------------------------------------- webrtc-stats


def pair_id(number: int) -> str:
    """Return the id of the statistics of a pair, from its `PairView.id`."""
    return f"pair-{number}"


def transport_id(stream: int, component: int) -> str:
    """Return the id of the statistics of a component."""
    return f"transport-{stream}-{component}"


def agent_statistics(
    context: Context, outcome: Outcome, generations: Iterable[Generation], selections: Selections
) -> Statistics:  # fmt: skip
    """Return the statistics of every pair, candidate and transport, the current generation first."""
    state, role = outcome.state.value, context.role.name
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
        for local in context.locals.all:
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
