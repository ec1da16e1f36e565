"""STUN server of connectivity checks: authenticates and answers Binding requests (RFC 8445, section 7.3).

A request is authenticated, then the roles are compared, then it is answered and given to its generation. A request that
is not authenticated gets an unsigned 400 or 401, a few in each second at most: an agent must not amplify attacks on
third parties.
"""

from __future__ import annotations

from typing import Final

from polynya.core.instants import SECOND, Instant
from polynya.stun.message import Received
from polynya.stun.registry import ErrorCode

from . import checks
from .checks import Refusal
from .context import Context
from .generations import Generations
from .roles import Conflict

OWN_CHECK: Final = "our own check came back: the address is ours, or the signals of the other side are our own"

REFUSALS: Final = 20
"""Unsigned responses in one second."""


class CheckServer:
    """Answers the Binding requests of one agent."""

    __slots__ = ("_context", "_generations", "_refusals", "_since")

    def __init__(self, context: Context, generations: Generations) -> None:
        self._context = context
        self._generations = generations
        self._since = Instant(0)
        self._refusals = 0

    def request(self, received: Received, *, now: Instant) -> None:
        """Answer a Binding request.

        Checks of the previous generation only show the role of the other side. A restart keeps the roles (section 9),
        and until the new generation has a pair, a role conflict may show only in the consent checks of the old one.
        """
        message, outbox = received.message, self._context.outbox
        names = checks.username_of(message)
        current, previous = self._generations.current, self._generations.previous
        old = previous is not None and names is not None and names[0] == previous.local.ufrag
        generation = previous if old and previous is not None else current
        base = self._context.locals.base(received.flow)
        if base is None:
            self._drop(received, f"no local candidate has {received.flow}", now=now)
            return
        verdict = checks.examine(received, generation.credentials)
        if isinstance(verdict, Refusal):
            self._drop(received, verdict.reason, now=now)
            if verdict.signed or self._may_refuse(now=now):
                outbox.send(received.flow, received.remote, verdict.answer)
            return
        if self._context.role.made(message):
            self._drop(received, OWN_CHECK, now=now)
            pair = generation.checklists.lists[base.stream].at((received.flow, received.remote))
            if pair is not None:
                pair.hint(OWN_CHECK)
            return
        outbox.count("checks received")
        # RFC 8445, 6.1.1: a lite agent does not resolve role conflicts
        conflict = Conflict.NONE if generation.local.lite else self._context.role.judge(message)
        if conflict is Conflict.REFUSE:
            answer = checks.refuse(message, generation.credentials, ErrorCode.ROLE_CONFLICT)
            outbox.send(received.flow, received.remote, answer)
            self._drop(received, "a role conflict: the other side switches", now=now)
            if self._context.role.controlling:
                current.checklists.repeat_nominations()
            return
        if conflict is Conflict.SWITCH:
            self._generations.switch_role(
                not self._context.role.controlling, "a role conflict: our tie-breaker is smaller", now=now
            )
        outbox.send(received.flow, received.remote, checks.accept(received, generation.credentials))
        if not old:
            generation.heard(verdict, base, now=now)

    def _drop(self, received: Received, reason: str, *, now: Instant) -> None:
        self._context.outbox.dropped(received.remote, reason, now=now, packet=received.packet)

    def _may_refuse(self, *, now: Instant) -> bool:
        if now >= self._since + SECOND:
            self._since, self._refusals = now, 0
        self._refusals += 1
        return self._refusals <= REFUSALS
