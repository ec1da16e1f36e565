"""Selection of the pair that carries the data of each component (RFC 8445, sections 8.1.1 and 12.1; RFC 7675).

Data is sent on the best valid pair, and on the nominated pair once there is one. Before the nomination, a better pair
replaces the selected one as soon as it is valid: the other side accepts data from there, since it has answered our
check. The former pair stays open for data on its way. After the nomination another valid pair replaces the selected one
only when that is lost. After a restart the pair of the old generation carries data until a pair of the new one is
nominated, or until the old pair is lost. A restart asks for consent on it at once. If it does not answer, as after a
change of the network, data moves to the best valid pair of the new generation.

The selected pair of each component has consent checks. A few of the other valid pairs are checked as often as
keepalives are sent, so that data can move to them at once when the selected pair is lost or another one is nominated.
They are checked more often while the selected pair is silent. When its consent is lost, a pair without a response in
the last 30 s cannot replace it; without another pair the component is lost.

The owner may have a reason to doubt that the other side is there. Then `ask` has all valid pairs checked at once, and
those that do not answer within two seconds are lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from polynya.core.instants import Instant

from .config import durations
from .consent import Consent
from .context import Context
from .events import ConsentLost, SelectedPairChanged
from .generation import Generation
from .inquiry import Inquiry
from .pairs import Pair

Key = tuple[int, int]
"""Stream and component."""

_SILENT: Final = 1.5
"""After this many consent intervals without a response, the other valid pairs are checked as well."""
_CHECKED: Final = 3
"""How many of them at a time, the best first. Several may share the part that failed, such as a relay."""
_KEPT_ALIVE: Final = 3
"""Valid pairs of a component, besides the selected one, whose NAT mappings and consent are kept."""


@dataclass(slots=True)
class Selection:
    """The selected pair of one component."""

    pair: Pair
    generation: Generation
    nominated: bool
    consent: Consent | None
    checked: int = 0
    """How many of the other pairs were checked since the last response on the selected one."""

    @property
    def key(self) -> Key:
        return self.pair.stream, self.pair.component

    def follow(self) -> None:
        """Record whether the pair is nominated now."""
        self.nominated = self.pair.nominated


class Selections:
    """The selected pair of every component."""

    __slots__ = ("_config", "_context", "_inquiry", "_keepalive_at", "_outbox", "all")

    def __init__(self, context: Context) -> None:
        self.all: list[Selection] = []
        self._context = context
        self._config = context.config
        self._outbox = context.outbox
        self._keepalive_at: Instant | None = None
        self._inquiry: Inquiry | None = None

    def at(self, key: Key) -> Selection | None:
        """Return the selection of a component."""
        return next((selection for selection in self.all if selection.key == key), None)

    def of(self, generation: Generation) -> bool:
        """Return whether a pair of this generation is selected."""
        return any(selection.generation is generation for selection in self.all)

    def holds(self, pair: Pair) -> bool:
        """Return whether a pair is selected."""
        return any(selection.pair is pair for selection in self.all)

    def update(self, current: Generation, *, now: Instant) -> None:
        """Select a pair for every component, and report the changes."""
        for selection in list(self.all):
            if selection.key not in current.keys:
                self._remove(selection)
                self._report(selection.key, None, "its stream was removed", now=now)
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
                self._report(key, None, selected.pair.reason, now=now)
            return
        if selected is None or selected.pair is not pair:
            consent = None
            if self._config.consent and not self._config.lite:
                consent = Consent(pair, durations(self._config), self._context.random, now=now)
            selection = Selection(pair, generation, pair.nominated, consent)
            if selected is not None:
                self._remove(selected)
            self.all.append(selection)
            self._report(key, pair, reason, now=now)
            if consent is not None:
                self._check_consent(selection, consent, now=now)
        elif selected.nominated != pair.nominated:
            selected.follow()
            self._report(key, pair, reason, now=now)
        if self._keepalive_at is None:
            self._keepalive_at = Instant(now + durations(self._config).keepalive)

    def _remove(self, selection: Selection) -> None:
        self.all = [other for other in self.all if other is not selection]

    def _choose(
        self, key: Key, current: Generation, selected: Selection | None
    ) -> tuple[Pair | None, Generation, str]:  # fmt: skip
        nominated = current.checklists.chosen(*key)
        if nominated is not None:
            return nominated, current, "it was nominated"
        stays = selected is not None and selected.pair.valid
        former = selected is not None and selected.generation is not current
        if selected is not None and stays and former and not self._silent(selected, current):
            return selected.pair, selected.generation, "it stays"
        for pair in current.checklists.lists[key[0]].of(key[1]):
            if pair.valid:
                if selected is None:
                    return pair, current, "the first valid pair"
                return pair, current, "a better pair is valid" if stays and not former else "the best that is left"
        if selected is not None and stays:
            return selected.pair, selected.generation, "it stays"
        return None, current, ""

    @staticmethod
    def _silent(selected: Selection, current: Generation) -> bool:
        """Return whether a pair of the former generation has not answered since the restart."""
        if selected.generation is current or selected.consent is None or current.restarted_at is None:
            return False
        return (selected.pair.answered_at or 0) <= current.restarted_at

    def _lost(self, key: Key, selected: Selection, *, now: Instant) -> None:
        """Report the loss of consent; pairs whose last response is as old fail as well."""
        pair = selected.pair
        if not pair.revoked:
            return
        self._outbox.trace.consent(pair.reason, now=now, pair=pair.id, state="lost")
        self._outbox.events.append(ConsentLost(stream=key[0], component=key[1], pair=pair.view(), reason=pair.reason))
        for other in list(selected.generation.checklists.lists[key[0]].of(key[1])):
            if other.valid and (other.answered_at or 0) + durations(self._config).consent_timeout <= now:
                selected.generation.checklists.fail(other, "its last answer is as old as the lost consent", now=now)

    def _report(self, key: Key, pair: Pair | None, reason: str, *, now: Instant) -> None:
        self._outbox.trace.selected(
            reason,
            now=now,
            pair=None if pair is None else pair.id,
            local=None if pair is None else pair.seen_local.candidate.label,
            remote=None if pair is None else pair.remote.label,
            nominated=pair is not None and pair.nominated,
            stream=key[0],
            component=key[1],
        )
        self._outbox.events.append(
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
        """Send the consent checks and keepalives that are due, and revoke expired consent."""
        for selection in self.all:
            if selection.consent is not None and selection.pair.valid:
                self._check_consent(selection, selection.consent, now=now)
        if self._inquiry is not None:
            self._inquire(self._inquiry, now=now)
        if self._keepalive_at is not None and now >= self._keepalive_at:
            self._keepalive_at = Instant(now + durations(self._config).keepalive)
            self._keep_alive(current, now=now)

    def _check_consent(self, selection: Selection, consent: Consent, *, now: Instant) -> None:
        pair = selection.pair
        lost = consent.lost(now=now)
        if lost is not None:
            selection.generation.checklists.revoke(pair, lost, now=now)
        elif consent.due(now=now):
            selection.generation.client.consent_check(pair, now=now)
            consent.sent(now=now)
            if (
                pair.answered_at is not None
                and now - pair.answered_at > durations(self._config).consent_interval * _SILENT
            ):
                for other in self._next_others(selection):
                    selection.generation.client.consent_check(other, now=now)
            else:
                selection.checked = 0

    def restarted(self, *, now: Instant) -> None:
        """Ask for consent on the selected pairs now: a pair that does not answer yields to the first new one."""
        for selection in self.all:
            if selection.consent is not None and selection.pair.valid:
                selection.generation.client.consent_check(selection.pair, now=now, reason="a restart")
                selection.consent.sent(now=now)

    def ask(self, *, now: Instant) -> None:
        """Check all valid pairs now, and lose those that do not answer in time."""
        if self._inquiry is None and any(selection.consent is not None for selection in self.all):
            self._inquiry = Inquiry(now=now)
            self._inquire(self._inquiry, now=now)

    def stop_asking(self) -> None:
        """End what `ask` began: the usual consent checks go on."""
        self._inquiry = None

    def _inquire(self, inquiry: Inquiry, *, now: Instant) -> None:
        silent = [
            selection for selection in self.all if selection.consent is not None and inquiry.awaits(selection.pair)
        ]
        if not silent:
            self._inquiry = None
            return
        due, over = inquiry.due(now=now), inquiry.over(now=now)
        for selection in silent:
            generation = selection.generation
            others = [pair for pair in self._others(selection.pair, generation) if inquiry.awaits(pair)]
            if due:
                for pair in (selection.pair, *others):
                    generation.client.consent_check(pair, now=now, reason="is the other side still there?")
            elif over:
                for pair in others:
                    generation.checklists.fail(pair, inquiry.reason, now=now)
                generation.checklists.revoke(selection.pair, inquiry.reason, now=now)
        if over:
            self._inquiry = None

    def farewell(self) -> None:
        """Notify the other side, on each selected pair, that this agent closes."""
        for selection in self.all:
            selection.generation.client.farewell(selection.pair)

    def show_role(self, *, now: Instant) -> None:
        """Check the selected pairs now: the owner changed our role, and the other side must see it."""
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
                    current.client.consent_check(pair, now=now, reason="another valid pair")

    def _next_others(self, selection: Selection) -> list[Pair]:
        """Return the next few of the other valid pairs to check, in turn."""
        others = self._others(selection.pair, selection.generation)
        start = selection.checked % len(others) if others else 0
        selection.checked = start + _CHECKED
        return (others[start:] + others[:start])[:_CHECKED]

    def _others(self, selected: Pair, generation: Generation) -> list[Pair]:
        """Return the other valid pairs of the component, the best first."""
        pairs = generation.checklists.lists[selected.stream].of(selected.component)
        return [pair for pair in pairs if pair.valid and pair is not selected]

    def next_timer(self) -> Instant | None:
        if not self.all:
            return None
        due = [s.consent.next_timer() for s in self.all if s.consent is not None]
        if self._keepalive_at is not None:
            due.append(self._keepalive_at)
        if self._inquiry is not None:
            due.append(self._inquiry.next_timer())
        return min(due, default=None)

    def clear(self) -> None:
        """Select no pair any more."""
        self.all = []
        self._keepalive_at = None
        self._inquiry = None
