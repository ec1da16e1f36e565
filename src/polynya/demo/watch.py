"""The current state of one peer, derived from its trace events alone."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

from polynya.core.errors import DecodeError
from polynya.core.instants import Instant, in_seconds
from polynya.core.trace import TraceEvent
from polynya.ice.candidates import Candidate

from .records import PairRecord

OVER: Final = ("the other side closed", "the other side left")
"""Reasons of what happens when the other peer has ended."""


@dataclass(slots=True)
class PairRow:
    """The current state of a candidate pair."""

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
    def of(cls, record: PairRecord) -> PairRow:
        return cls(**{each.name: getattr(record, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds from the start of gathering to each step; None for a step that was not reached."""

    gathered: float | None
    """Gathering is complete: every server has answered or timed out."""
    checking: float | None
    first_valid_pair: float | None
    nominated: float | None


@dataclass(slots=True)
class PeerView:
    """The current state of one peer."""

    name: str
    role: str = ""
    state: str = "starting"
    candidates: dict[str, str] = field(default_factory=dict)
    """Label (`host 127.0.0.1:4000`) -> priority, or why the candidate is redundant."""
    pairs: dict[int, PairRow] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    instants: dict[str, Instant] = field(default_factory=dict)
    """When each state was first entered: of gathering (`gathering complete`) and of the agent (`connected`)."""

    def apply(self, event: TraceEvent) -> None:
        """Apply one trace event of this peer. The state before the end stays visible, whichever side ends first."""
        if event.reason.startswith(OVER):
            return
        fields: dict[str, Any] = event.fields
        match event.kind:
            case "gathering":
                self._reached(f"gathering {fields['new']}", event.at)
                self.state = "gathering" if self.state == "starting" else self.state
            case "agent":
                self._reached(fields["new"], event.at)
                if fields["new"] != "closed":
                    self.state = fields["new"]
            case "role":
                self.role = fields["new"]
            case "candidate" if fields["side"] == "local":
                self._candidate(fields["candidate"], event.reason)
            case "pair":
                pair = self.pairs.setdefault(fields["pair"], PairRow(fields["local"], fields["remote"]))
                pair.local, pair.remote = fields["local"], fields["remote"]
                pair.priority = fields.get("priority", pair.priority)
                pair.state, pair.reason = fields["new"], event.reason
            case "pair-flags" if fields["pair"] in self.pairs:
                pair = self.pairs[fields["pair"]]
                pair.writable, pair.readable = fields["writable"], fields["readable"]
                pair.valid, pair.nominated = fields["valid"], fields["nominated"]
                pair.reason = event.reason
            case "selected":
                for number, pair in self.pairs.items():
                    pair.selected = number == fields["pair"]
            case _:
                pass

    def times(self) -> Times:
        """Return the time from the start of gathering to each step."""
        return Times(
            gathered=self._since("gathering complete"),
            checking=self._since("checking"),
            first_valid_pair=self._since("connected", "completed"),
            nominated=self._since("completed"),
        )

    def _candidate(self, text: str, reason: str) -> None:
        try:
            candidate = Candidate.parse(text)
        except DecodeError:  # a redundant candidate is traced by its label alone
            self.candidates[text] = reason
        else:
            self.candidates[candidate.label] = f"priority {candidate.priority}"

    def _reached(self, step: str, at: Instant) -> None:
        self.instants.setdefault(step, at)

    def _since(self, *steps: str) -> float | None:
        """Return the time from the start of gathering to the first of the steps."""
        began = self.instants.get("gathering gathering")
        reached = min((self.instants[step] for step in steps if step in self.instants), default=None)
        return None if began is None or reached is None else in_seconds(max(0, reached - began))
