"""`why()` of a session: the sockets, the servers' answers and the addresses without a socket, then the ICE report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polynya.core.addresses import Address
from polynya.core.instants import Instant, in_seconds
from polynya.core.trace import Tracer
from polynya.core.wrapping import wrapped
from polynya.ice.agent import IceAgent
from polynya.ice.report import Report
from polynya.stun.probe import ProbeEnded
from polynya.stun.redaction import Redactor

from .events import CredentialsWanted, GatheringState, RelayEvent, RelayFailed, RelayFound, RelayLost
from .interfaces import Refused
from .options import Base
from .summary import summary


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """The answer of one server to one base: `mapped` and `rtt` (nanoseconds), or the reason why there is none."""

    server: str
    base: Address | None = None
    mapped: Address | None = None
    rtt: int | None = None
    reason: str = ""
    lost: bool = False
    """Whether `mapped` was a relayed address that is lost."""


class Answers:
    """The answers of a session's servers, oldest first; each is also traced."""

    __slots__ = ("_trace", "all")

    def __init__(self, trace: Tracer) -> None:
        self.all: tuple[ServerAnswer, ...] = ()
        self._trace = trace

    def unresolved(self, server: str, reason: str, *, now: Instant) -> None:
        """Record a server whose name has no address."""
        self._add(ServerAnswer(server=server, reason=reason), "unresolved", now=now)

    def ended(self, ended: ProbeEnded, base: Base, *, now: Instant) -> None:
        """Record the result of a Binding probe."""
        answer = ServerAnswer(
            server=str(ended.server), base=base.local, mapped=ended.mapped, rtt=ended.rtt, reason=ended.reason
        )
        self._add(answer, "answered" if ended.mapped else "failed", now=now)

    def late(self, server: str, base: Base, reason: str) -> None:
        """Record a server that gathering does not wait for any longer."""
        self.all += (ServerAnswer(server=server, base=base.local, reason=f"{reason}; its requests continue"),)

    def relay(self, event: RelayEvent, *, now: Instant) -> None:
        """Record what a TURN server allocated, refused or lost."""
        match event:
            case RelayFound():
                server, base = str(event.server), event.base.local
                answer = ServerAnswer(server=server, base=base, mapped=event.relayed, reason="a relayed address")
                self._add(answer, "allocated", now=now)
            case RelayFailed():
                local = None if event.base is None else event.base.local
                self._add(ServerAnswer(server=event.server, base=local, reason=event.reason), "failed", now=now)
            case RelayLost():
                server, base = event.server, event.base.local
                lost = ServerAnswer(server=server, base=base, mapped=event.relayed, reason=event.reason, lost=True)
                self._add(lost, "lost", now=now)
            case CredentialsWanted():
                wanted = ServerAnswer(server=str(event.server.uri), reason=event.reason)
                self._add(wanted, "credentials wanted", now=now)
            case _:
                pass

    @property
    def mapped(self) -> int:
        """Number of answers with an address that is not lost."""
        return sum(1 for answer in self.all if answer.mapped and not answer.lost)

    def reaches(self, base: Base, server: Address) -> bool:
        """Whether a server has answered any base of the same address: its silence then means packet loss only."""
        return any(
            answer.mapped is not None
            and answer.base is not None
            and answer.base.host == base.local.host
            and answer.server == str(server)
            for answer in self.all
        )

    def _add(self, answer: ServerAnswer, state: str, *, now: Instant) -> None:
        if answer.base is not None or answer not in self.all:  # credentials are asked for again and again
            self.all += (answer,)
        base = {} if answer.base is None else {"base": answer.base}
        self._trace.server(answer.reason, now=now, server=answer.server, state=state, **base)


@dataclass(frozen=True, slots=True, repr=False)
class SessionReport:
    """Report of a session: `data` can be written as JSON, `str()` is for people. Times are seconds.

    The text begins with one sentence that says what came of the connection, and why. It fits 80 columns.
    """

    data: dict[str, Any]

    def __str__(self) -> str:
        gathered = wrapped([summary(self.data), *_lines(self.data["gathering"])])
        return f"{gathered}\n{Report(self.data['ice'])}"

    def redacted(self, redactor: Redactor) -> SessionReport:
        """Returns the same report with addresses, names and ufrags replaced, to be shown to others."""
        return SessionReport(redactor.data(self.data))

    def __repr__(self) -> str:
        gathering = self.data["gathering"]
        return (
            f"<SessionReport: gathering {gathering['state']}, agent {self.data['ice']['state']}; print it for details>"
        )


def session_report(
    agent: IceAgent,
    *,
    state: GatheringState,
    bases: Iterable[Base],
    refused: Iterable[Refused],
    answers: Iterable[ServerAnswer],
) -> SessionReport:
    """Return the report of gathering and of the agent."""
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
    return SessionReport(data)


def _answer(answer: ServerAnswer) -> dict[str, Any]:
    return {
        "server": answer.server,
        "base": None if answer.base is None else str(answer.base),
        "mapped": None if answer.mapped is None else str(answer.mapped),
        "rtt": None if answer.rtt is None else in_seconds(answer.rtt),
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
