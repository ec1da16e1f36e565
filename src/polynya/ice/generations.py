"""Generations of an agent: restarts, and the remote descriptions that answer or cause them (RFC 8445, section 9).

A restart of one side is answered by a restart of the other; the two may cross, and descriptions may be late.
Generations are numbered, and both sides end on the same number, the larger one. A description is classified by its
number and by the remote description that is known:

    number       known description         then
    larger       any                       RESTART: we restart, to that number
    ours         none                      TAKE
    ours         an older one              REPLACE: it answers our restart; our credentials stay
    as known     other credentials         RESTART: the other side restarted and does not count its restarts
    smaller      none                      TAKE, until a better one arrives
    smaller      a newer one               IGNORE: it is late
    any          the same credentials      IGNORE: a repetition

The previous generation stays while data is sent over one of its pairs: its checks are answered, its consent is kept.
"""

from __future__ import annotations

from enum import Enum

from polynya.core.instants import Instant

from .context import Context
from .description import Description, draw_credentials
from .events import RoleChanged
from .generation import RETIRED_LIMIT, Generation
from .roles import role_name


class Answer(Enum):
    """How the agent handles a remote description."""

    IGNORE = "ignore"
    TAKE = "take"
    REPLACE = "replace"
    RESTART = "restart"


class Generations:
    """The current generation of an agent, and the previous one while it is in use."""

    __slots__ = ("_context", "_former", "current", "previous")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._former: tuple[Description, ...] = ()
        """Our own descriptions before the current one, the newest first."""
        self.previous: Generation | None = None
        self.current = self._make(self._describe(0), 0, context.config.components)

    def all(self) -> tuple[Generation, ...]:
        """Return the current generation and, if it is in use, the previous one."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    def is_own(self, description: Description) -> bool:
        """Return whether a description has credentials of ours, of this generation or of a former one."""
        return any(description.same_credentials(own) for own in (self.current.local, *self._former))

    def is_own_ufrag(self, ufrag: str) -> bool:
        """Return whether a ufrag is our own, of this generation or of a former one."""
        return any(ufrag == own.ufrag for own in (self.current.local, *self._former))

    def judge(self, remote: Description) -> Answer:
        """Classify a remote description by the table above."""
        known = self.current.remote
        before = None if self.previous is None else self.previous.remote
        if remote.same_credentials(known) or remote.same_credentials(before):
            return Answer.IGNORE
        if remote.generation > self.current.number:
            return Answer.RESTART
        if known is None:
            return Answer.TAKE
        if remote.generation < known.generation:
            return Answer.IGNORE
        return Answer.REPLACE if remote.generation > known.generation else Answer.RESTART

    def restart(
        self, number: int, *, keep: bool, components: tuple[int, ...] | None = None, now: Instant
    ) -> None:  # fmt: skip
        """Begin generation `number` with new credentials.

        `keep` keeps the present generation, whose pairs carry data. `components` changes the components of the streams.
        """
        old = self.current
        self._former = (old.local, *self._former)[:RETIRED_LIMIT]
        if keep:
            self.drop_previous(now=now)
            self.previous = old
        self.current = self._make(self._describe(number), old.checklists.last_id, self._keep(components))
        self.current.restarted_at = now
        self.current.take_over(old, same_credentials=False)
        if not keep:
            old.end(self.current, now=now)

    def replace(self, components: tuple[int, ...] | None, *, now: Instant) -> None:
        """Begin the present generation again, for new remote credentials or other components."""
        old = self.current
        self.current = self._make(old.local, old.checklists.last_id, self._keep(components))
        self.current.restarted_at = old.restarted_at
        self.current.take_over(old, same_credentials=True)
        old.end(self.current, now=now)

    def switch_role(self, controlling: bool, reason: str, *, now: Instant) -> None:
        """Take the other role for all streams (section 6.1.1), and adapt the pairs of the present generation."""
        role, outbox = self._context.role, self._context.outbox
        outbox.trace.role(reason, now=now, old=role.name, new=role_name(controlling))
        role.controlling = controlling
        self.current.checklists.role_changed()
        outbox.events.append(RoleChanged(controlling=controlling, reason=reason))

    def drop_previous(self, *, now: Instant) -> None:
        """End the previous generation."""
        if self.previous is not None:
            self.previous.end(self.current, now=now)
            self.previous = None

    def end(self, *, now: Instant) -> None:
        """End every generation."""
        self.drop_previous(now=now)
        self.current.end(None, now=now)

    def _describe(self, number: int) -> Description:
        config = self._context.config
        ufrag, password = draw_credentials(self._context.random)
        if number == 0 and config.ufrag is not None and config.password is not None:
            ufrag, password = config.ufrag, config.password
        return Description(
            ufrag=ufrag,
            password=password,
            options=(*config.options, "renomination") if config.renomination else config.options,
            lite=config.lite,
            pacing=config.pacing,
            generation=number,
        )

    def _keep(self, components: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the components of the next generation, and remove the local candidates of all others."""
        if components is None:
            return self.current.components
        components += (0,) * (len(self.current.components) - len(components))  # a stream keeps its place
        self._context.locals.retain(components)
        return components

    def _make(self, local: Description, last_pair: int, components: tuple[int, ...]) -> Generation:
        self._context.outbox.name(local.ufrag)
        self._context.locals.renew(local.generation, local.ufrag)
        return Generation(local, self._context, components=components, last_pair=last_pair)
