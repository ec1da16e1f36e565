"""Which generation is it: restarts, their answers, and what is left of the one before (RFC 8445, section 9).

A restart of one side is answered by a restart of the other; they may cross, and descriptions may be late. Generations
are numbered, and both sides end on the same number, the larger. A description is judged by its number and by what is
known of the other side:

    number       known already             then
    larger       anything                  we restart, to that number
    ours         nothing                   it is the other side's
    ours         an older one              it answers our restart: what was known is replaced, our credentials stay
    as known     other credentials         a restart of a side that does not count: we restart
    smaller      nothing                   it is the other side's, until a better one comes
    smaller      a newer one               it is late: nothing
    any          the same credentials      a repetition: nothing

The generation before stays while data still goes over one of its pairs: its checks are answered, its consent is kept.
"""

from __future__ import annotations

from enum import Enum
from random import Random

from polynya.core.instants import Instant

from .candidates import LocalCandidates
from .config import IceConfig
from .description import Description, draw_credentials
from .events import RoleChanged
from .generation import Generation
from .journal import Journal
from .roles import Role, role_name


class Answer(Enum):
    """What a description of the other side asks for."""

    IGNORE = "ignore"
    TAKE = "take"
    REPLACE = "replace"
    RESTART = "restart"


class Generations:
    """The current generation of an agent, and the one before it while that is in use."""

    __slots__ = ("_config", "_journal", "_locals", "_random", "_role", "current", "previous")

    def __init__(
        self, config: IceConfig, *, locals_: LocalCandidates, role: Role, journal: Journal, random: Random
    ) -> None:
        self._config = config
        self._locals = locals_
        self._role = role
        self._journal = journal
        self._random = random
        self.previous: Generation | None = None
        self.current = self._make(self._describe(0), 0, config.components)

    def all(self) -> tuple[Generation, ...]:
        return (self.current,) if self.previous is None else (self.current, self.previous)

    def judge(self, remote: Description) -> Answer:
        """What to do about a description: the table above."""
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
        """Begin generation `number` with credentials of its own; `keep` the present one, whose pairs carry data.

        `components` changes what the streams are made of.
        """
        old = self.current
        if keep:
            self.drop_previous(now=now)
            self.previous = old
        self.current = self._make(self._describe(number), old.checklists.last_id, self._keep(components))
        self.current.succeed(old, same_side=False)
        if not keep:
            old.end(self.current, now=now)

    def replace(self, components: tuple[int, ...] | None, *, now: Instant) -> None:
        """Begin the present generation again, for new credentials of the other side or other components."""
        old = self.current
        self.current = self._make(old.local, old.checklists.last_id, self._keep(components))
        self.current.succeed(old, same_side=True)
        old.end(self.current, now=now)

    def switch_role(self, controlling: bool, reason: str, *, now: Instant) -> None:
        """Take the other role, for all streams (section 6.1.1): the pairs of the present generation follow."""
        if self._journal.trace.enabled:
            old, new = self._role.name, role_name(controlling)
            self._journal.trace.role(reason, now=now, old=old, new=new, agent=self._journal.label)
        self._role.controlling = controlling
        self.current.verdicts.role_changed()
        self._journal.event(RoleChanged(controlling=controlling, reason=reason))

    def drop_previous(self, *, now: Instant) -> None:
        """The generation before is of no use any more."""
        if self.previous is not None:
            self.previous.end(self.current, now=now)
            self.previous = None

    def end(self, *, now: Instant) -> None:
        """Everything is over."""
        self.drop_previous(now=now)
        self.current.end(None, now=now)

    def _describe(self, number: int) -> Description:
        config = self._config
        ufrag, password = draw_credentials(self._random)
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
        """The components of the next generation; what we have for others is forgotten."""
        if components is None:
            return self.current.components
        components += (0,) * (len(self.current.components) - len(components))  # a stream keeps its place
        self._locals.retain(components)
        return components

    def _make(self, local: Description, last_pair: int, components: tuple[int, ...]) -> Generation:
        self._journal.label = local.ufrag
        self._locals.renew(local.generation, local.ufrag)
        return Generation(
            local,
            components=components,
            locals_=self._locals,
            role=self._role,
            journal=self._journal,
            random=self._random,
            schedule=self._config.schedule,
            pair_limit=self._config.pair_limit,
            last_pair=last_pair,
        )
