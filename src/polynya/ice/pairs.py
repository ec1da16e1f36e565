"""Candidate pairs and their states (RFC 8445, sections 6.1.2 and 7.2.5).

A pair is one path: a local flow and a remote address. Local reflexive candidates are replaced by their base before
pairs are made, so a path has exactly one pair. A response shows the candidate that the other side sees (`seen`); base
and `seen` together make the *valid* pair of section 7.2.5.3.2.

    state        unfreeze   check sent    answered    failed    triggered   set aside
    FROZEN       WAITING                  SUCCEEDED   FAILED    WAITING
    WAITING                 IN_PROGRESS   SUCCEEDED   FAILED    WAITING     FROZEN
    IN_PROGRESS                           SUCCEEDED   FAILED    WAITING     FROZEN
    SUCCEEDED                             SUCCEEDED   FAILED
    FAILED                                SUCCEEDED             WAITING

*Answered* moves a pair from any state: a response to a check that a newer one replaced still counts (section 7.3.1.4).
*Triggered* is a check of the other side; it revives a failed pair. *Set aside* applies to the open pairs of a component
when another pair is nominated (section 8.1.2).

A pair has four flags beside its state: *writable* (our check was answered), *readable* (the other side's check
arrived), *valid* (it may carry data) and *nominated*. Every change of a state or flag has a reason.

Only the methods of `Pair` assign its attributes; a test checks this. `ChecklistSet` calls them and reports the changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import History
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant, in_seconds

from .candidates import Candidate, CandidateType, LocalCandidate, pair_priority


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
    """One path between the two agents. Its methods are the only writers of its attributes."""

    __slots__ = (
        "answered_at",
        "answered_from",
        "checked_at",
        "component",
        "consent_requests_sent",
        "first_request_at",
        "foundation",
        "gated",
        "hints",
        "history",
        "id",
        "last_request_at",
        "local",
        "nominate_on_success",
        "nominated",
        "nominated_order",
        "nominating",
        "nominating_at",
        "nominating_order",
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
        "withdrawn",
        "writable",
    )

    def __init__(self, number: int, local: LocalCandidate, remote: Candidate, address: Address) -> None:
        self.id = number
        self.local = local
        self.remote = remote
        self.stream = local.stream
        self.component = local.component
        self.path: FlowPath = (local.flow, address)
        """The flow and the remote address, which has the zone of the flow."""
        self.foundation = _foundation(local, remote)
        self.priority = 0
        self.valid_priority = 0
        self.state = PairState.FROZEN
        self.reason = "new"
        self.writable = self.readable = self.valid = self.nominated = False
        self.seen: LocalCandidate | None = None
        """The local candidate that the other side sees, from the response to a check."""
        self.gated = local.gated
        """The path is not open yet: the pair keeps its state and takes no pacing slot."""
        self.nominate_on_success = False
        """The other side nominated it before our own check was answered (RFC 8445, section 7.3.1.5)."""
        self.nominating = False
        """Our nominating check is queued or under way."""
        self.nominating_at: Instant | None = None
        """Time of our last nominating check."""
        self.nominating_order = 0
        """The place of this check among the nominating checks of the component; the last one has the highest."""
        self.withdrawn = False
        """Our early nomination had no answer in time."""
        self.nomination = 0
        """The number of the nomination under way, if nominations are numbered."""
        self.nominated_order = 0
        """The number of the nomination in force; among several nominated pairs the highest counts."""
        self.history: History[PairState] = History()
        self.tried_at: Instant | None = None
        """Time of the first check."""
        self.checked_at: Instant | None = None
        """Time of the last check."""
        self.valid_at: Instant | None = None
        self.answered_at: Instant | None = None
        """Time of the last response: consent lasts from here."""
        self.first_request_at: Instant | None = None
        """Time of the first check of the other side."""
        self.last_request_at: Instant | None = None
        """Time of the last check of the other side."""
        self.rtt: int | None = None
        """The last round-trip time, nanoseconds."""
        self.rtt_total = 0
        self.requests_sent = self.responses_received = self.requests_received = self.responses_sent = 0
        self.consent_requests_sent = 0
        self.hints: dict[str, int] | None = None
        """Observations that may explain a failure later, and how often each was made."""
        self.transaction: bytes | None = None
        """The transaction id of the check under way."""
        self.answered_from: Address | None = None
        """Another address, from which a check was answered: no check on this pair can succeed."""
        self.revoked = False
        """Consent was lost: its credentials are never used on this path again (RFC 7675, section 5.1)."""

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
        """Whether the path has a relay, as far as this side knows."""
        return CandidateType.RELAYED in (self.local.type, self.remote.type)

    @property
    def promising(self) -> bool:
        """Whether a check under way will probably succeed: the other side's check arrived."""
        return self.readable and not self.withdrawn and self.state in (PairState.WAITING, PairState.IN_PROGRESS)

    @property
    def name(self) -> str:
        """Both candidates, for people: `host 10.0.0.2:4000 -> srflx 198.51.100.1:5000`."""
        return f"{self.seen_local.candidate.label} -> {self.remote.label}"

    # ------------------------------------------------------------------------------------------------ state and flags

    def apply(self, event: PairEvent, reason: str, *, now: Instant, packet: int = 0) -> PairState | None:
        """Move the state by `event`. Returns the old state, or None if the table has no such move."""
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
        """Set the given flags. Returns whether any of them changed."""
        before = (self.writable, self.readable, self.valid, self.nominated)
        self.writable = self.writable if writable is None else writable
        self.readable = self.readable if readable is None else readable
        self.valid = self.valid if valid is None else valid
        self.nominated = self.nominated if nominated is None else nominated
        return before != (self.writable, self.readable, self.valid, self.nominated)

    # ------------------------------------------------------------------------------------------------------ formation

    def prioritize(self, controlling: bool) -> None:
        """Compute the priorities from the candidates and the role."""
        ours, seen, theirs = self.local.candidate.priority, self.seen_local.candidate.priority, self.remote.priority
        self.priority = self.valid_priority = _priority(ours, theirs, controlling)
        if seen != ours:
            self.valid_priority = _priority(seen, theirs, controlling)

    def readopt(self, remote: Candidate) -> None:
        """Replace a peer-reflexive remote candidate by the one that the other side signaled."""
        self.remote = remote
        self.foundation = _foundation(self.local, remote)

    def path_opened(self) -> None:
        """Let checks be sent: the path is open, for example by a TURN permission."""
        self.gated = False

    # --------------------------------------------------------------------------------------------------------- checks

    def check_sent(self, transaction: bytes, *, now: Instant) -> None:
        """Record a connectivity check and its transaction id."""
        self.requests_sent += 1
        self.transaction = transaction
        self.checked_at = now
        if self.tried_at is None:
            self.tried_at = now

    def consent_check_sent(self) -> None:
        """Count a consent check."""
        self.consent_requests_sent += 1

    def check_over(self) -> None:
        """Forget the check under way: it ended, or it is not resent any more."""
        self.transaction = None

    def request_received(self, *, now: Instant) -> None:
        """Record a check of the other side and our response."""
        self.requests_received += 1
        self.responses_sent += 1
        self.last_request_at = now
        if self.first_request_at is None:
            self.first_request_at = now

    def response_received(self, rtt: int | None) -> None:
        """Count a verified response. `rtt` is its round-trip time in nanoseconds, if known."""
        self.responses_received += 1
        if rtt is not None:
            self.rtt = rtt
            self.rtt_total += rtt

    def answered(self, *, now: Instant) -> None:
        """Record a success response: consent is fresh from now on (RFC 7675)."""
        self.answered_at = now

    def seen_as(self, local: LocalCandidate) -> None:
        """Record the local candidate that a response shows."""
        self.seen = local

    def answered_elsewhere(self, remote: Address) -> None:
        """Record that a check was answered from another address."""
        self.answered_from = remote

    def validated(self, *, now: Instant) -> None:
        """Record since when the pair is valid."""
        self.valid_at = now

    def failed(self) -> None:
        """Drop the check under way and every pending nomination."""
        self.transaction = None
        self.nominating = self.nominate_on_success = False

    def revoke(self) -> None:
        """Record the loss of consent, which is final for these credentials."""
        self.revoked = True

    # ----------------------------------------------------------------------------------------------------- nomination

    def begin_nomination(self) -> None:
        """Let the next check carry the nomination."""
        self.nominating = True

    def nominating_sent(self, order: int, *, now: Instant) -> None:
        """Record a nominating check and its place among those of the component."""
        self.nominating_order = order
        self.nominating_at = now

    def end_nomination(self) -> None:
        """Let no further check carry the nomination."""
        self.nominating = False

    def withdraw(self) -> None:
        """Let no further check carry the early nomination, which had no answer in time."""
        self.nominating = False
        self.withdrawn = True

    def number_nomination(self, number: int) -> None:
        """Record the number of the nomination that is sent next."""
        self.nomination = number

    def nomination_received(self, number: int) -> None:
        """Record a nomination by the other side: the pair is nominated when our own check succeeds (7.3.1.5)."""
        self.nominate_on_success = True
        self.nomination = max(self.nomination, number)

    def nomination_taken(self) -> None:
        """Clear the other side's pending nomination: it is in force, or void."""
        self.nominate_on_success = False

    def nominated_as(self, order: int) -> None:
        """Record the number of the nomination in force."""
        self.nominated_order = order

    def role_changed(self, *, forget_numbers: bool) -> None:
        """Drop pending nominations, which belong to the old role; `forget_numbers` drops their numbers as well."""
        self.nominate_on_success = self.nominating = False
        if forget_numbers:
            self.nomination = self.nominated_order = 0

    # ------------------------------------------------------------------------------------------------- for the reports

    def hint(self, what: str) -> None:
        """Record an observation that may explain a failure later."""
        self.hints = self.hints or {}
        if what in self.hints or len(self.hints) < 8:
            self.hints[what] = self.hints.get(what, 0) + 1

    def explain(self, reason: str) -> str:
        """Return `reason` with the recorded observations."""
        if not self.hints:
            return reason
        return f"{reason} ({', '.join(f'{what}: {count} times' for what, count in self.hints.items())})"

    def view(self, *, selected: bool = False) -> PairView:
        """Return an immutable copy for users."""
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
            rtt=None if self.rtt is None else in_seconds(self.rtt),
            reason=self.reason,
            relayed=self.relayed,
        )


def _foundation(local: LocalCandidate, remote: Candidate) -> tuple[str, str, str]:
    """Return the foundation of a pair: those of both candidates, and the host of the remote one.

    Some peers give all their candidates one foundation. Checks to different hosts need not wait for each other.
    """
    return _shared(local.candidate.foundation, remote.foundation, remote.address.host)


@lru_cache(maxsize=256)
def _shared(ours: str, theirs: str, host: str) -> tuple[str, str, str]:
    """Return one object for equal foundations."""
    return ours, theirs, host


def _priority(ours: int, theirs: int, controlling: bool) -> int:
    return pair_priority(ours, theirs) if controlling else pair_priority(theirs, ours)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PairView:
    """A candidate pair at one moment."""

    id: int
    stream: int
    component: int
    flow: Flow
    remote_address: Address
    base: Address
    """The address that our packets are sent from."""
    local: Candidate
    """Our candidate as the other side sees it, as far as known."""
    remote: Candidate
    state: PairState
    writable: bool
    """Our check was answered."""
    readable: bool
    """A check of the other side arrived."""
    valid: bool
    """It may carry data."""
    nominated: bool
    selected: bool
    """It carries the data of its component."""
    priority: int
    rtt: float | None
    """The last round-trip time, seconds."""
    reason: str
    """The reason of the last change of state."""
    relayed: bool = False
    """The path has a relay, as far as this side knows: ours, whatever `local` is to the other side, or theirs."""

    def __str__(self) -> str:
        return f"{self.local.label} -> {self.remote.label}"

    def __repr__(self) -> str:
        flags = [flag for flag in ("valid", "nominated", "selected") if getattr(self, flag)]
        rtt = [] if self.rtt is None else [f"{self.rtt * 1000:.1f} ms"]
        return f"<PairView {self.id}: {self}, {', '.join([self.state.value, *flags, *rtt])}>"
