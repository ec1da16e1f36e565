"""What is told to the other side: our candidates as they are found, their end, and a new generation (RFC 8838).

Every generation tells all of it anew, with credentials of its own: a candidate carries the ufrag that it belongs to
(RFC 8838, section 13 asks signaling to keep generations apart; this does it where signaling does not).
"""

from __future__ import annotations

from polynya.core.instants import Instant

from .candidates import Gathered, LocalCandidate, LocalCandidates
from .events import LocalCandidateAdded, LocalCandidatesEnded, Restarted
from .generations import Generations
from .journal import Journal


class Signals:
    """Tells of our candidates. `ended`: there are no more to come."""

    __slots__ = ("_generations", "_journal", "_locals", "ended")

    def __init__(self, generations: Generations, locals_: LocalCandidates, journal: Journal) -> None:
        self.ended = False
        self._generations = generations
        self._locals = locals_
        self._journal = journal

    def candidate(self, gathered: Gathered, *, now: Instant) -> LocalCandidate | None:
        """Take in an address that was found; None, and a line in the trace, when it is redundant."""
        local = self._locals.add(gathered)
        if isinstance(local, str):
            if self._journal.trace.enabled:
                place = f"{gathered.type.value} {gathered.address}"
                self._journal.trace.candidate(local, now=now, side="local", candidate=place, agent=self._journal.label)
            return None
        self._announce(local, now=now)
        return local

    def end(self) -> bool:
        """No more candidates of ours; False when that was said before."""
        if self.ended:
            return False
        self.ended = True
        self._journal.event(LocalCandidatesEnded(generation=self._generations.current.number))
        return True

    def restarted(self, reason: str, *, now: Instant) -> None:
        """A new generation began: tell all anew."""
        number = self._generations.current.number
        self._journal.event(Restarted(generation=number, reason=reason))
        for local in self._locals.all:
            self._announce(local, now=now)
        if self.ended:
            self._journal.event(LocalCandidatesEnded(generation=number))

    def _announce(self, local: LocalCandidate, *, now: Instant) -> None:
        generation = self._generations.current
        generation.note_candidate("local", local.candidate, "gathered", now=now)
        if local.advertise:
            self._journal.event(LocalCandidateAdded(candidate=local.candidate, local=local))
