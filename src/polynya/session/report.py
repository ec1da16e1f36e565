"""`why()` of a session: what was gathered and what was not, then what the agent did with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polynya.core.instants import MILLISECOND
from polynya.ice.agent import IceAgent

from .answers import ServerAnswer
from .gathering import Gathering


@dataclass(frozen=True, slots=True)
class SessionReport:
    """`data` is fit for JSON; `str()` is for people."""

    data: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def session_report(gathering: Gathering, agent: IceAgent) -> SessionReport:
    """What both know. Round trips are milliseconds."""
    ice = agent.why()
    data = {
        "gathering": {
            "state": gathering.state.value,
            "sockets": [
                {"interface": base.host.interface, "local": str(base.local), "note": base.note}
                for base in gathering.bases
            ],
            "refused": [{"interface": no.interface, "host": no.host, "reason": no.reason} for no in gathering.refused],
            "servers": [_answer(answer) for answer in gathering.answers.all],
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
