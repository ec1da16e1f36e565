"""`why()` of a session: what was gathered and what was not, then what the agent did with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polynya.core.instants import MILLISECOND
from polynya.ice.agent import IceAgent

from .answers import ServerAnswer
from .gathering import Gathering
from .gathering_events import GatheringState
from .interfaces import Refused
from .options import Base
from .shared_bases import SharedBases


@dataclass(frozen=True, slots=True)
class SessionReport:
    """`data` is fit for JSON; `str()` is for people."""

    data: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def session_report(gathering: Gathering, agent: IceAgent) -> SessionReport:
    """What both know. Round trips are milliseconds."""
    return _report(gathering.state, gathering.bases, gathering.refused, gathering.answers.all, agent)


def shared_report(shared: SharedBases, agent: IceAgent) -> SessionReport:
    """The same of an agent on sockets that it shares; of each server, what it said last."""
    return _report(shared.state, shared.bases, shared.refused, shared.answers, agent)


def _report(
    state: GatheringState,
    bases: Iterable[Base],
    refused: Iterable[Refused],
    answers: Iterable[ServerAnswer],
    agent: IceAgent,
) -> SessionReport:
    ice = agent.why()
    data = {
        "gathering": {
            "state": state.value,
            "sockets": [
                {"interface": base.host.interface, "local": str(base.local), "note": base.note} for base in bases
            ],
            "refused": [{"interface": no.interface, "host": no.host, "reason": no.reason} for no in refused],
            "servers": [_answer(answer) for answer in answers],
        },
        "ice": ice.data,
    }
    return SessionReport(data, "\n".join([*_lines(data["gathering"]), str(ice)]))


def _answer(answer: ServerAnswer) -> dict[str, Any]:
    return {
        "server": answer.server,
        "base": None if answer.base is None else str(answer.base),
        "mapped": None if answer.mapped is None else str(answer.mapped),
        "rtt": None if answer.rtt is None else answer.rtt / MILLISECOND,
        "lost": answer.lost,
        "reason": answer.reason,
    }


def _lines(gathering: dict[str, Any]) -> list[str]:
    lines = [f"gathering {gathering['state']}"]
    lines += [
        f"  {socket['interface']}: {socket['local']}" + (f" ({socket['note']})" if socket["note"] else "")
        for socket in gathering["sockets"]
    ]
    lines += [f"  {no['interface']}: {no['host']} is not used: {no['reason']}" for no in gathering["refused"]]
    for answer in gathering["servers"]:
        asked = answer["server"] if answer["base"] is None else f"{answer['server']} asked from {answer['base']}"
        lost = " is lost" if answer["lost"] else ""
        lines.append(f"  {asked}: {answer['mapped'] or 'no answer'}{lost} ({answer['reason']})")
    return lines
