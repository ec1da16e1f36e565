"""`why()`: what an agent did and why, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polynya.core.instants import MILLISECOND, Instant, in_seconds

from .candidates import LocalCandidate
from .events import AgentState
from .generation import Generation
from .history import History
from .pairs import Pair


@dataclass(frozen=True, slots=True)
class Report:
    """`data` is fit for JSON; `str()` is for people."""

    data: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(_lines(self.data))


@dataclass(frozen=True, slots=True)
class PairReport:
    """The same of one pair."""

    data: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(_pair_lines(self.data))


def pair_report(pair: Pair, *, selected: bool, since: Instant) -> dict[str, Any]:
    """One pair with every transition that is remembered. Times are seconds since `since`, round trips milliseconds."""
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
        "rtt": None if pair.rtt is None else pair.rtt / MILLISECOND,
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
    """What the times of a report are counted from: the agent's first change."""
    changes = history.transitions()
    return changes[0].at if changes else generation.started_at or Instant(0)


def agent_report(
    *,
    state: str,
    reason: str,
    role: str,
    generation: Generation,
    locals_: Iterable[LocalCandidate],
    selected: Iterable[Pair],
    counters: Mapping[str, int],
    history: History[AgentState],
) -> Report:
    """The whole agent."""
    changes = history.transitions()
    since = beginning(history, generation)
    chosen = list(selected)
    return Report(
        {
            "state": state,
            "reason": reason,
            "role": role,
            "generation": generation.number,
            "ufrag": generation.local.ufrag,
            "remote_ufrag": generation.remote.ufrag if generation.remote is not None else None,
            "local_candidates": [str(local.candidate) for local in locals_],
            "remote_candidates": [
                str(candidate) for checklist in generation.checklists.lists for candidate in checklist.remotes
            ],
            "pairs": [
                pair_report(pair, selected=any(pair is one for one in chosen), since=since)
                for pair in generation.checklists
            ],
            "history": [
                {
                    "at": in_seconds(change.at - since),
                    "old": change.old.value,
                    "new": change.new.value,
                    "reason": change.reason,
                }
                for change in changes
            ],
            "counters": dict(counters),
        }
    )


def _lines(data: dict[str, Any]) -> list[str]:
    lines = [f"{data['state']}: {data['reason']} (we are {data['role']}, generation {data['generation']})"]
    lines += [f"  {change['at']:8.3f} s  {change['new']}: {change['reason']}" for change in data["history"]]
    lines.append(f"{len(data['local_candidates'])} candidates of ours, {len(data['remote_candidates'])} of theirs")
    for pair in data["pairs"]:
        lines += _pair_lines(pair)
    return lines


def _pair_lines(pair: dict[str, Any]) -> list[str]:
    flags = [flag for flag in ("writable", "readable", "valid", "nominated", "selected", "relayed") if pair[flag]]
    rtt = "" if pair["rtt"] is None else f", {pair['rtt']:.1f} ms"
    lines = [
        f"pair {pair['id']}: {pair['local']} -> {pair['remote']}",
        f"  {pair['state']}{rtt} [{' '.join(flags)}]: {pair['reason']}",
    ]
    for step in pair["transitions"]:
        packet = f" (packet {step['packet']})" if step["packet"] else ""
        lines.append(f"  {step['at']:8.3f} s  {step['new']}: {step['reason']}{packet}")
    return lines
