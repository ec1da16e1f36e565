"""A picture of one peer while it is at work, kept from the events of its trace and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from polynya.core.errors import DecodeError
from polynya.core.instants import Instant, in_seconds
from polynya.core.trace import TraceEvent
from polynya.ice.candidates import Candidate

from .records import PairRecord


@dataclass(slots=True)
class PairPicture:
    """A candidate pair as it is now."""

    local: str
    remote: str
    priority: int = 0
    state: str = ""
    writable: bool = False
    readable: bool = False
    valid: bool = False
    nominated: bool = False
    selected: bool = False
    reason: str = ""

    @classmethod
    def of(cls, record: PairRecord) -> PairPicture:
        return cls(**{each.name: getattr(record, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds since this side began to gather; None where it did not come to that."""

    gathered: float | None
    """Every server has answered, or is not waited for any more."""
    checking: float | None
    first_valid_pair: float | None
    nominated: float | None


@dataclass(slots=True)
class PeerPicture:
    """One peer as it is now."""

    name: str
    role: str = ""
    state: str = "starting"
    candidates: dict[str, str] = field(default_factory=dict)
    """Place (`host 127.0.0.1:4000`) to what there is to say of it: its priority, or why it is redundant."""
    pairs: dict[int, PairPicture] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    instants: dict[str, Instant] = field(default_factory=dict)
    """When it first came to each state, of gathering (`gathering complete`) and of the agent (`connected`)."""

    def see(self, event: TraceEvent) -> None:
        """Take in one event of this peer."""
        told: dict[str, Any] = event.fields
        match event.kind:
            case "gathering":
                self._first(f"gathering {told['new']}", event.at)
                self.state = "gathering" if self.state == "starting" else self.state
            case "agent":
                self._first(told["new"], event.at)
                if told["new"] != "closed":  # what it came to is what is to be seen at the end
                    self.state = told["new"]
            case "role":
                self.role = told["new"]
            case "candidate" if told["side"] == "local":
                self._candidate(told["candidate"], event.reason)
            case "pair":
                pair = self.pairs.setdefault(told["pair"], PairPicture(told["local"], told["remote"]))
                pair.local, pair.remote = told["local"], told["remote"]
                pair.priority = told.get("priority", pair.priority)
                pair.state, pair.reason = told["new"], event.reason
            case "pair-flags" if told["pair"] in self.pairs:
                pair = self.pairs[told["pair"]]
                pair.writable, pair.readable = told["writable"], told["readable"]
                pair.valid, pair.nominated = told["valid"], told["nominated"]
                pair.reason = event.reason
            case "selected":
                for number, pair in self.pairs.items():
                    pair.selected = number == told["pair"]
            case _:
                pass

    def times(self) -> Times:
        """How long it took to each step."""
        return Times(
            gathered=self._since("gathering complete"),
            checking=self._since("checking"),
            first_valid_pair=self._since("connected"),
            nominated=self._since("completed"),
        )

    def _candidate(self, text: str, reason: str) -> None:
        try:
            candidate = Candidate.parse(text)
        except DecodeError:  # one that is not used is told by its place alone
            self.candidates[text] = reason
        else:
            self.candidates[candidate.label] = f"priority {candidate.priority}"

    def _first(self, what: str, at: Instant) -> None:
        self.instants.setdefault(what, at)

    def _since(self, what: str) -> float | None:
        began, reached = self.instants.get("gathering gathering"), self.instants.get(what)
        return None if began is None or reached is None else in_seconds(max(0, reached - began))
