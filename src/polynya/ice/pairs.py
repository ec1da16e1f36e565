"""Candidate pairs and the life of each (RFC 8445, sections 6.1.2 and 7.2.5).

A pair is a way that packets may take: one local flow and one remote address. Local reflexive candidates are replaced
by their base before pairs are made, so a path has exactly one pair; what the answers show of the local end (`seen`)
is kept with it and makes the *valid* pair of section 7.2.5.3.2.

    state        unfreeze   check sent    answered    failed    triggered   set aside
    FROZEN       WAITING                  SUCCEEDED   FAILED    WAITING
    WAITING                 IN_PROGRESS   SUCCEEDED   FAILED    WAITING     FROZEN
    IN_PROGRESS                           SUCCEEDED   FAILED    WAITING     FROZEN
    SUCCEEDED                             SUCCEEDED   FAILED
    FAILED                                SUCCEEDED             WAITING

*Answered* moves a pair from any state: the answer to a check that was given up for a newer one still counts (section
7.3.1.4). *Triggered* is the other side's check arriving; it revives a pair that had failed. *Set aside* happens to
what is still open when another pair of the component was nominated (section 8.1.2).

Four flags stand beside the state: *writable* (our check was answered), *readable* (the other side's check reached
us), *valid* (it may carry data) and *nominated*. `Pair.apply` and `Pair.flag` are the only writers, and each change
has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant

from .candidates import Candidate, CandidateType, LocalCandidate
from .history import History
from .priorities import pair_priority


class PairState(Enum):
    """State of a candidate pair (RFC 8445, section 6.1.2.6)."""

    FROZEN = "frozen"
    WAITING = "waiting"
    IN_PROGRESS = "in-progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class PairEvent(Enum):
    UNFREEZE = "unfreeze"
    CHECK_SENT = "check sent"
    ANSWERED = "answered"
    FAILED = "failed"
    TRIGGERED = "triggered"
    SET_ASIDE = "set aside"


TRANSITIONS: Final[dict[PairState, dict[PairEvent, PairState]]] = {
    PairState.FROZEN: {
        PairEvent.UNFREEZE: PairState.WAITING,
        PairEvent.ANSWERED: PairState.SUCCEEDED,
        PairEvent.FAILED: PairState.FAILED,
        PairEvent.TRIGGERED: PairState.WAITING,
    },
    PairState.WAITING: {
        PairEvent.CHECK_SENT: PairState.IN_PROGRESS,
        PairEvent.ANSWERED: PairState.SUCCEEDED,
        PairEvent.FAILED: PairState.FAILED,
        PairEvent.TRIGGERED: PairState.WAITING,
        PairEvent.SET_ASIDE: PairState.FROZEN,
    },
    PairState.IN_PROGRESS: {
        PairEvent.ANSWERED: PairState.SUCCEEDED,
        PairEvent.FAILED: PairState.FAILED,
        PairEvent.TRIGGERED: PairState.WAITING,
        PairEvent.SET_ASIDE: PairState.FROZEN,
    },
    PairState.SUCCEEDED: {
        PairEvent.ANSWERED: PairState.SUCCEEDED,
        PairEvent.FAILED: PairState.FAILED,
    },
    PairState.FAILED: {
        PairEvent.ANSWERED: PairState.SUCCEEDED,
        PairEvent.TRIGGERED: PairState.WAITING,
    },
}


class Pair:
    """One path between the two agents."""

    __slots__ = (
        "answered_at",
        "asymmetric",
        "checked_at",
        "component",
        "consent_requests_sent",
        "foundation",
        "gated",
        "hints",
        "history",
        "id",
        "local",
        "nominate_on_success",
        "nominated",
        "nominated_order",
        "nominating",
        "nomination",
        "path",
        "priority",
        "readable",
        "reason",
        "remote",
        "requests_received",
        "requests_sent",
        "responses_received",
        "responses_sent",
        "revoked",
        "rtt",
        "rtt_total",
        "seen",
        "state",
        "stream",
        "transaction",
        "tried_at",
        "valid",
        "valid_at",
        "valid_priority",
        "writable",
    )

    def __init__(self, number: int, local: LocalCandidate, remote: Candidate, address: Address) -> None:
        self.id = number
        self.local = local
        self.remote = remote
        self.stream = local.stream
        self.component = local.component
        self.path: tuple[Flow, Address] = (local.flow, address)
        """Where packets go: the flow, and the remote address with the zone that the flow needs."""
        self.foundation = _foundation(local.candidate.foundation, remote.foundation)
        self.priority = 0
        self.valid_priority = 0
        self.state = PairState.FROZEN
        self.reason = "new"
        self.writable = self.readable = self.valid = self.nominated = False
        self.seen: LocalCandidate | None = None
        """The local candidate that the other side sees us as, once a check was answered."""
        self.gated = local.gated
        """Nothing can be sent on the path yet: the pair keeps its state and takes no slot."""
        self.nominate_on_success = False
        """The other side nominated it before our own check was answered (RFC 8445, section 7.3.1.5)."""
        self.nominating = False
        """Our nominating check is under way or queued."""
        self.nomination = 0
        """The number of the nomination that is asked for or under way, where such numbers are in use."""
        self.nominated_order = 0
        self.history: History[PairState] = History()
        self.tried_at: Instant | None = None
        """When the first check was sent, and when the last one."""
        self.checked_at: Instant | None = None
        self.valid_at: Instant | None = None
        self.answered_at: Instant | None = None
        self.rtt: int | None = None
        self.rtt_total = 0
        self.requests_sent = self.responses_received = self.requests_received = self.responses_sent = 0
        self.consent_requests_sent = 0
        self.hints: dict[str, int] | None = None
        """What happened on the way that did not decide anything but may explain a failure, and how often."""
        self.transaction: bytes | None = None
        """The check that is under way."""
        self.asymmetric = False
        """It was answered from elsewhere than asked: no check on it can succeed, whatever comes by it."""
        self.revoked = False
        """Consent was lost: these credentials are not used on this path again (RFC 7675, section 5.1)."""

    @property
    def flow(self) -> Flow:
        return self.path[0]

    @property
    def remote_address(self) -> Address:
        return self.path[1]

    @property
    def seen_local(self) -> LocalCandidate:
        return self.seen or self.local

    @property
    def relayed(self) -> bool:
        """Whether a relay is in the path as far as this side can know."""
        return CandidateType.RELAYED in (self.local.type, self.remote.type)

    @property
    def name(self) -> str:
        """For people: `host 10.0.0.2:4000 -> srflx 198.51.100.1:5000`."""
        return f"{self.seen_local.candidate.label} -> {self.remote.label}"

    def prioritize(self, controlling: bool) -> None:
        """Compute the priorities anew: the role or a candidate changed."""
        ours, seen, theirs = self.local.candidate.priority, self.seen_local.candidate.priority, self.remote.priority
        self.priority = self.valid_priority = _priority(ours, theirs, controlling)
        if seen != ours:
            self.valid_priority = _priority(seen, theirs, controlling)

    def apply(self, event: PairEvent, reason: str, *, now: Instant, packet: int = 0) -> PairState | None:
        """Let `event` move the state; the one it leaves, or None where the table has no such move."""
        old, new = self.state, TRANSITIONS[self.state].get(event)
        if new is None:
            return None
        self.history.add(now, old, new, reason, packet)
        self.state = new
        self.reason = reason
        return old

    def flag(
        self,
        *,
        writable: bool | None = None,
        readable: bool | None = None,
        valid: bool | None = None,
        nominated: bool | None = None,
    ) -> bool:
        """Set the flags that are given; whether any of them changed."""
        before = (self.writable, self.readable, self.valid, self.nominated)
        self.writable = self.writable if writable is None else writable
        self.readable = self.readable if readable is None else readable
        self.valid = self.valid if valid is None else valid
        self.nominated = self.nominated if nominated is None else nominated
        return before != (self.writable, self.readable, self.valid, self.nominated)

    def hint(self, what: str) -> None:
        """Remember what may explain a failure later."""
        self.hints = self.hints or {}
        if what in self.hints or len(self.hints) < 8:
            self.hints[what] = self.hints.get(what, 0) + 1

    def explain(self, reason: str) -> str:
        """`reason` together with what was noticed on the way."""
        if not self.hints:
            return reason
        return f"{reason} ({', '.join(f'{what}: {count} times' for what, count in self.hints.items())})"

    def readopt(self, remote: Candidate) -> None:
        """The other side has signaled the candidate that we had learnt: everything else is kept."""
        self.remote = remote
        self.foundation = _foundation(self.local.candidate.foundation, remote.foundation)

    def view(self, *, selected: bool = False) -> PairView:
        return PairView(
            id=self.id,
            stream=self.stream,
            component=self.component,
            flow=self.path[0],
            remote_address=self.path[1],
            base=self.local.base,
            local=self.seen_local.candidate,
            remote=self.remote,
            state=self.state,
            writable=self.writable,
            readable=self.readable,
            valid=self.valid,
            nominated=self.nominated,
            selected=selected,
            priority=self.priority,
            rtt=self.rtt,
            reason=self.reason,
        )


@lru_cache(maxsize=256)
def _foundation(ours: str, theirs: str) -> tuple[str, str]:
    """The foundation of a pair: few differ, so they are shared."""
    return ours, theirs


def _priority(ours: int, theirs: int, controlling: bool) -> int:
    return pair_priority(ours, theirs) if controlling else pair_priority(theirs, ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """A pair at one moment. `rtt` is the last round trip in nanoseconds."""

    id: int
    stream: int
    component: int
    flow: Flow
    remote_address: Address
    base: Address
    """What our packets are sent from; `local` is what the other side sees, as far as it is known."""
    local: Candidate
    remote: Candidate
    state: PairState
    writable: bool
    readable: bool
    valid: bool
    nominated: bool
    selected: bool
    priority: int
    rtt: int | None
    reason: str

    @property
    def relayed(self) -> bool:
        return CandidateType.RELAYED in (self.local.type, self.remote.type)

    def __str__(self) -> str:
        return f"{self.local.label} -> {self.remote.label}"
