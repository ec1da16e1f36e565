"""Where each component's data goes, and whether it may (RFC 8445, sections 8.1.1 and 12.1; RFC 7675).

Data goes on the first valid pair as soon as there is one, and on the nominated pair once there is that. Another
valid pair takes over only when the selected one is lost. After a restart the old generation's pair carries data
until a pair of the new one is nominated, or is lost.

Consent is asked for on the selected pair of each component. A few of the other valid pairs are asked as often as a
mapping has to be kept alive, so that data may go on over them at once when the selected one is gone or another one is
nominated; and more often when it falls silent. When its consent is lost, what goes on has to have answered within 30 s
itself; otherwise the component is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from polynya.core.instants import Instant

from .config import IceConfig
from .consent import INTERVAL, LIFETIME, Consent
from .events import ConsentLost, SelectedPairChanged
from .generation import Generation
from .journal import Journal
from .pairs import Pair

Key = tuple[int, int]
"""Stream and component."""

_SILENT: Final = 1.5
"""After this many consent intervals without an answer the other valid pairs are asked as well."""
_ASKED: Final = 3
"""How many others at a time: the best first, then those that follow. Some go by what is gone, such as a relay."""
_KEPT_ALIVE: Final = 3
"""Valid pairs of a component, besides the selected one, whose mappings and consent are kept."""


@dataclass(slots=True)
class Selection:
    """Where one component's data goes."""

    pair: Pair
    generation: Generation
    nominated: bool
    consent: Consent | None
    asked: int = 0
    """How many of the others were asked, since the selected pair fell silent."""

    @property
    def key(self) -> Key:
        return self.pair.stream, self.pair.component


class Selections:
    """The selected pair of every component."""

    __slots__ = ("_config", "_journal", "_keepalive_at", "_random", "all")

    def __init__(self, config: IceConfig, journal: Journal, random: Random) -> None:
        self.all: tuple[Selection, ...] = ()
        self._config = config
        self._journal = journal
        self._random = random
        self._keepalive_at: Instant | None = None

    def at(self, key: Key) -> Selection | None:
        """Where a component's data goes."""
        return next((selection for selection in self.all if selection.key == key), None)

    def of(self, generation: Generation) -> bool:
        """Whether some component's data goes on a pair of this generation."""
        return any(selection.generation is generation for selection in self.all)

    def holds(self, pair: Pair) -> bool:
        return any(selection.pair is pair for selection in self.all)

    def update(self, current: Generation, *, now: Instant) -> None:
        """Choose anew for every component, and say so where it changed."""
        for selection in self.all:
            if selection.key not in current.keys:
                self._remove(selection)
                self._tell(selection.key, None, "its stream was removed", now=now)
        for key in current.keys:
            self._update(key, current, now=now)

    def _update(self, key: Key, current: Generation, *, now: Instant) -> None:
        selected = self.at(key)
        if selected is not None and not selected.pair.valid:
            self._lost(key, selected, now=now)
        pair, generation, reason = self._choose(key, current, selected)
        if pair is None:
            if selected is not None:
                self._remove(selected)
                self._tell(key, None, selected.pair.reason, now=now)
            return
        if selected is None or selected.pair is not pair:
            consent = Consent(pair, self._random, now=now) if self._config.consent and not self._config.lite else None
            selection = Selection(pair, generation, pair.nominated, consent)
            if selected is not None:
                self._remove(selected)
            self.all += (selection,)
            self._tell(key, pair, reason, now=now)
            if consent is not None:
                self._ask(selection, consent, now=now)
        elif selected.nominated != pair.nominated:
            selected.nominated = pair.nominated
            self._tell(key, pair, reason, now=now)
        if self._keepalive_at is None:
            self._keepalive_at = Instant(now + self._config.keepalive)

    def _remove(self, selection: Selection) -> None:
        self.all = tuple(other for other in self.all if other is not selection)

    def _choose(
        self, key: Key, current: Generation, selected: Selection | None
    ) -> tuple[Pair | None, Generation, str]:  # fmt: skip
        nominated = current.verdicts.chosen(*key)
        if nominated is not None:
            return nominated, current, "it was nominated"
        if selected is not None and selected.pair.valid:
            return selected.pair, selected.generation, "it stays"
        for pair in current.checklists.lists[key[0]].of(key[1]):
            if pair.valid:
                return pair, current, "the first valid pair" if selected is None else "the best that is left"
        return None, current, ""

    def _lost(self, key: Key, selected: Selection, *, now: Instant) -> None:
        """The selected pair is no longer valid; pairs whose consent is as old go with it."""
        pair = selected.pair
        if not pair.revoked:
            return
        if self._journal.trace.enabled:
            self._journal.trace.consent(pair.reason, now=now, pair=pair.id, state="lost", agent=self._journal.label)
        self._journal.event(ConsentLost(stream=key[0], component=key[1], pair=pair.view(), reason=pair.reason))
        for other in list(selected.generation.checklists.lists[key[0]].of(key[1])):
            if other.valid and (other.answered_at or 0) + LIFETIME <= now:
                selected.generation.verdicts.fail(other, "its last answer is as old as the lost consent", now=now)

    def _tell(self, key: Key, pair: Pair | None, reason: str, *, now: Instant) -> None:
        if self._journal.trace.enabled:
            self._journal.trace.selected(
                reason,
                now=now,
                pair=None if pair is None else pair.id,
                local=None if pair is None else pair.seen_local.candidate.label,
                remote=None if pair is None else pair.remote.label,
                nominated=pair is not None and pair.nominated,
                stream=key[0],
                component=key[1],
                agent=self._journal.label,
            )
        self._journal.event(
            SelectedPairChanged(
                stream=key[0],
                component=key[1],
                pair=None if pair is None else pair.view(selected=True),
                nominated=pair is not None and pair.nominated,
                reason=reason,
            )
        )

    # ----------------------------------------------------------------------------------------- consent and keepalives

    def tick(self, current: Generation, *, now: Instant) -> None:
        """Ask for consent where it is due; what has had no answer for too long is lost."""
        for selection in self.all:
            if selection.consent is not None and selection.pair.valid:
                self._ask(selection, selection.consent, now=now)
        if self._keepalive_at is not None and now >= self._keepalive_at:
            self._keepalive_at = Instant(now + self._config.keepalive)
            self._keep_alive(current, now=now)

    def _ask(self, selection: Selection, consent: Consent, *, now: Instant) -> None:
        pair = selection.pair
        lost = consent.lost(now=now)
        if lost is not None:
            selection.generation.verdicts.revoke(pair, lost, now=now)
        elif consent.due(now=now):
            selection.generation.client.consent_check(pair, now=now)
            consent.sent(now=now)
            if pair.answered_at is not None and now - pair.answered_at > INTERVAL * _SILENT:
                for other in self._next_others(selection):
                    selection.generation.client.consent_check(other, now=now)
            else:
                selection.asked = 0

    def show_role(self, *, now: Instant) -> None:
        """Our role was changed by hand: the other side is to know of it at once."""
        for selection in () if self._config.lite else self.all:
            selection.generation.client.show_role(selection.pair, now=now)

    def _keep_alive(self, current: Generation, *, now: Instant) -> None:
        for selection in self.all:
            if selection.consent is None:
                selection.generation.client.keepalive(selection.pair)
            for pair in self._others(selection.pair, current)[:_KEPT_ALIVE]:
                if selection.consent is None:
                    current.client.keepalive(pair)
                else:
                    current.client.consent_check(pair, now=now, reason="another pair that works")

    def _next_others(self, selection: Selection) -> list[Pair]:
        """Whom to ask now: a few, those that were not asked yet, all of them again and again."""
        others = self._others(selection.pair, selection.generation)
        start = selection.asked % len(others) if others else 0
        selection.asked = start + _ASKED
        return (others[start:] + others[:start])[:_ASKED]

    def _others(self, selected: Pair, generation: Generation) -> list[Pair]:
        """The best of the component's other valid pairs."""
        pairs = generation.checklists.lists[selected.stream].of(selected.component)
        return [pair for pair in pairs if pair.valid and pair is not selected]

    def next_timer(self) -> Instant | None:
        if not self.all:
            return None
        due = [s.consent.next_timer() for s in self.all if s.consent is not None]
        if self._keepalive_at is not None:
            due.append(self._keepalive_at)
        return min(due, default=None)

    def clear(self) -> None:
        self.all = ()
        self._keepalive_at = None
