"""The outbox of an agent: the one queue of its outputs and the one of its events, with its trace and counters.

All parts of an agent share it. It reports changes and makes none: a pair is changed by `Pair`, a checklist by
`Checklist`.
"""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Output, Send
from polynya.core.trace import NO_TRACE, Tracer

from .candidates import Candidate
from .description import MAX_IGNORED
from .events import IceEvent, InternalEvent, PairChanged
from .pairs import Pair, PairState


class Outbox:
    """Outputs, events, trace and counters of one agent."""

    __slots__ = ("counters", "events", "ignored", "outputs", "trace")

    def __init__(self, trace: Tracer = NO_TRACE) -> None:
        self.trace = trace
        self.outputs: Queue[Output] = Queue()
        self.events: Queue[IceEvent | InternalEvent] = Queue()
        self.counters: dict[str, int] = {}
        self.ignored: dict[str, None] = {}
        """Lines of the other side's texts that were ignored, with the reasons, in order."""

    def name(self, ufrag: str) -> None:
        """Mark all further trace events with the local ufrag, which identifies the agent."""
        self.trace = self.trace.bind(agent=ufrag)

    def send(self, flow: Flow, remote: Address, data: bytes) -> None:
        self.outputs.append(Send(flow, remote, data))

    def count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    def dropped(self, remote: Address, reason: str, *, now: Instant, packet: int = 0) -> None:
        """Count and trace a dropped message."""
        self.count("messages dropped")
        self.trace.message_dropped(reason, now=now, remote=remote, packet=packet)

    def ignore(self, line: str, *, now: Instant) -> None:
        """Count and trace a line of the other side's description that could not be used."""
        self.count("remote lines ignored")
        self.trace.note(f"a line of the remote description was ignored: {line}", now=now)
        if len(self.ignored) < MAX_IGNORED:
            self.ignored[line] = None

    def candidate(self, side: str, candidate: Candidate, reason: str, *, now: Instant) -> None:
        """Trace a candidate; `side` is `local` or `remote`."""
        self.trace.candidate(reason, now=now, side=side, candidate=candidate)

    def pair_made(self, pair: Pair, reason: str, *, now: Instant) -> None:
        """Report a new pair."""
        self.trace.pair(
            reason,
            now=now,
            pair=pair.id,
            local=lambda: pair.local.candidate.label,
            remote=lambda: pair.remote.label,
            old=None,
            new=pair.state,
            stream=pair.stream,
            component=pair.component,
            priority=pair.priority,
        )
        self.events.append(PairChanged(pair=pair.view(), old=None, new=pair.state, reason=reason))

    def pair_moved(self, pair: Pair, old: PairState, reason: str, *, now: Instant, packet: int = 0) -> None:
        """Report the new state of a pair."""
        self.trace.pair(
            reason,
            now=now,
            pair=pair.id,
            local=lambda: pair.seen_local.candidate.label,
            remote=lambda: pair.remote.label,
            old=old,
            new=pair.state,
            stream=pair.stream,
            component=pair.component,
            packet=packet,
        )
        self.events.append(PairChanged(pair=pair.view(), old=old, new=pair.state, reason=reason))

    def pair_flagged(self, pair: Pair, reason: str, *, now: Instant) -> None:
        """Report the new flags of a pair."""
        self.trace.pair_flags(
            reason,
            now=now,
            pair=pair.id,
            writable=pair.writable,
            readable=pair.readable,
            valid=pair.valid,
            nominated=pair.nominated,
        )
        self.events.append(PairChanged(pair=pair.view(), old=pair.state, new=pair.state, reason=reason))
