"""What the servers of a session said to its bases: kept for `why()`, and told in the trace as it comes."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.trace import Tracer
from polynya.stun.probe import ProbeEnded

from .options import Base
from .relay_events import CredentialsWanted, RelayEvent, RelayFailed, RelayFound, RelayLost


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What one server said to one base: `mapped` and `rtt` (nanoseconds), or the reason there is none."""

    server: str
    base: Address | None = None
    mapped: Address | None = None
    rtt: int | None = None
    reason: str = ""
    lost: bool = False
    """`mapped` was a relayed address, which is gone."""


class Answers:
    """The record, oldest first."""

    __slots__ = ("_trace", "all")

    def __init__(self, trace: Tracer) -> None:
        self.all: tuple[ServerAnswer, ...] = ()
        self._trace = trace

    def unresolved(self, server: str, reason: str, *, now: Instant) -> None:
        """A server's name leads nowhere."""
        self._add(ServerAnswer(server=server, reason=reason), "unresolved", now=now)

    def ended(self, ended: ProbeEnded, base: Base, *, now: Instant) -> None:
        """A STUN server was asked to the end."""
        answer = ServerAnswer(
            server=str(ended.server), base=base.local, mapped=ended.mapped, rtt=ended.rtt, reason=ended.reason
        )
        self._add(answer, "answered" if ended.mapped else "failed", now=now)

    def late(self, server: str, base: Base, reason: str) -> None:
        """A server is not waited for any more, and asked on."""
        self.all += (ServerAnswer(server=server, base=base.local, reason=f"{reason}, and is asked on"),)

    def relay(self, event: RelayEvent, *, now: Instant) -> None:
        """What a TURN server gives, refuses or has lost."""
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
        """How many of them gave an address that was not lost."""
        return sum(1 for answer in self.all if answer.mapped and not answer.lost)

    def reaches(self, base: Base, server: Address) -> bool:
        """Whether a server has answered from the address of this base, by it or another: then only loss silences it."""
        return any(
            answer.mapped is not None
            and answer.base is not None
            and answer.base.host == base.local.host
            and answer.server == str(server)
            for answer in self.all
        )

    def _add(self, answer: ServerAnswer, state: str, *, now: Instant) -> None:
        self.all += (answer,)
        if self._trace.enabled:
            base = {} if answer.base is None else {"base": str(answer.base)}
            self._trace.server(answer.reason, now=now, server=answer.server, state=state, **base)
