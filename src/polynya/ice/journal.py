"""Where the parts of one agent put what leaves it: datagrams, events, trace lines and counts.

Every change of a pair goes through `move` or `flag`, so that it cannot happen without its event, its line in the
trace and its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Output, Send
from polynya.core.trace import NO_TRACE, Tracer

from .events import IceEvent, PairChanged
from .pairs import Pair, PairEvent

if TYPE_CHECKING:
    from .checklist import Checklist, ChecklistState


class Journal:
    """The outbox of an agent, shared by its parts."""

    __slots__ = ("counters", "events", "label", "outputs", "trace")

    def __init__(self, trace: Tracer = NO_TRACE, label: str = "") -> None:
        self.trace = trace
        self.label = label
        """Tells the agents of one process apart in the trace: the local ufrag."""
        self.outputs: list[Output] = []
        self.events: list[IceEvent] = []
        self.counters: dict[str, int] = {}

    def send(self, flow: Flow, remote: Address, data: bytes) -> None:
        self.outputs.append(Send(flow, remote, data))

    def event(self, event: IceEvent) -> None:
        self.events.append(event)

    def count(self, name: str, number: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + number

    def note(self, what: str, *, now: Instant) -> None:
        if self.trace.enabled:
            self.trace.note(what, now=now, agent=self.label)

    def checklist(self, checklist: Checklist, state: ChecklistState, *, now: Instant) -> None:
        """Set the state of a checklist."""
        if checklist.state is not state:
            if self.trace.enabled:
                old, new = checklist.state.value, state.value
                self.trace.checklist(now=now, stream=checklist.stream, old=old, new=new, agent=self.label)
            checklist.state = state

    def dropped(self, remote: Address, reason: str, *, now: Instant, packet: int = 0) -> None:
        """A message was dropped: counted, and said why."""
        self.count("messages dropped")
        if self.trace.enabled:
            self.trace.message_dropped(reason, now=now, remote=str(remote), packet=packet, agent=self.label)

    def move(self, pair: Pair, event: PairEvent, reason: str, *, now: Instant, packet: int = 0) -> bool:
        """Let `event` move the pair; whether its table has such a move. Staying in a state is not told to the user."""
        old = pair.apply(event, reason, now=now, packet=packet)
        if old is None:
            return False
        if old is not pair.state:
            if self.trace.enabled:
                self.trace.pair(
                    reason,
                    now=now,
                    pair=pair.id,
                    local=pair.seen_local.candidate.label,
                    remote=pair.remote.label,
                    old=old.value,
                    new=pair.state.value,
                    stream=pair.stream,
                    component=pair.component,
                    packet=packet,
                    agent=self.label,
                )
            self.event(PairChanged(pair=pair.view(), old=old, new=pair.state, reason=reason))
        return True

    def new_pair(self, pair: Pair, reason: str, *, now: Instant) -> None:
        if self.trace.enabled:
            self.trace.pair(
                reason,
                now=now,
                pair=pair.id,
                local=pair.local.candidate.label,
                remote=pair.remote.label,
                old=None,
                new=pair.state.value,
                stream=pair.stream,
                component=pair.component,
                priority=pair.priority,
                agent=self.label,
            )
        self.event(PairChanged(pair=pair.view(), old=None, new=pair.state, reason=reason))

    def flag(
        self,
        pair: Pair,
        reason: str,
        *,
        now: Instant,
        writable: bool | None = None,
        readable: bool | None = None,
        valid: bool | None = None,
        nominated: bool | None = None,
    ) -> bool:
        """Set flags of the pair; whether any changed."""
        if not pair.flag(writable=writable, readable=readable, valid=valid, nominated=nominated):
            return False
        if self.trace.enabled:
            self.trace.pair_flags(
                reason,
                now=now,
                pair=pair.id,
                writable=pair.writable,
                readable=pair.readable,
                valid=pair.valid,
                nominated=pair.nominated,
                agent=self.label,
            )
        self.event(PairChanged(pair=pair.view(), old=pair.state, new=pair.state, reason=reason))
        return True
