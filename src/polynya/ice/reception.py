"""What a request from the network gets for an answer (RFC 8445, section 7.3).

First the one who asks is authenticated, then roles are compared, then the check is answered and handed to its
generation. Whoever is not authenticated gets an unsigned 400 or 401, and no more than a few a second: an agent is
not to be used to send packets at others.
"""

from __future__ import annotations

from typing import Final, Protocol

from polynya.core.instants import SECOND, Instant
from polynya.stun.message import Received
from polynya.stun.registry import ErrorCode

from . import checks
from .candidates import LocalCandidates
from .checks import Refusal
from .generation import Generation
from .journal import Journal
from .roles import Conflict, Role

REFUSALS: Final = 20
"""Unsigned answers a second."""


class SwitchRole(Protocol):
    """Changes the role of this agent; `reason` is for people."""

    def __call__(self, reason: str, *, now: Instant) -> None: ...


class Reception:
    """Answers the requests of one agent."""

    __slots__ = ("_journal", "_locals", "_refusals", "_role", "_since")

    def __init__(self, locals_: LocalCandidates, role: Role, journal: Journal) -> None:
        self._locals = locals_
        self._role = role
        self._journal = journal
        self._since = Instant(0)
        self._refusals = 0

    def request(
        self,
        received: Received,
        current: Generation,
        previous: Generation | None,
        switch_role: SwitchRole,
        *,
        now: Instant,
    ) -> None:
        """Answer a Binding request. Checks of the previous generation say no more than the role of the other side.

        A restart leaves roles as they are (section 9), and until the new generation has its pair, only the consent
        checks of the old one may be left to show a conflict.
        """
        message = received.message
        names = checks.username_of(message)
        old = previous is not None and names is not None and names[0] == previous.local.ufrag
        generation = previous if old and previous is not None else current
        base = self._locals.base(received.flow)
        if base is None:
            self._journal.dropped(
                received.remote, f"no candidate of ours has {received.flow}", now=now, packet=received.packet
            )
            return
        verdict = checks.examine(received, generation.credentials)
        if isinstance(verdict, Refusal):
            self._journal.dropped(received.remote, verdict.reason, now=now, packet=received.packet)
            if verdict.signed or self._may_refuse(now=now):
                self._journal.send(received.flow, received.remote, verdict.answer)
            return
        self._journal.count("checks received")
        # RFC 8445, 6.1.1: between two lite agents, and of a lite one, roles are not argued about
        conflict = Conflict.NONE if generation.local.lite else self._role.judge(message)
        if conflict is Conflict.REFUSE:
            answer = checks.refuse(message, generation.credentials, ErrorCode.ROLE_CONFLICT)
            self._journal.send(received.flow, received.remote, answer)
            self._journal.dropped(received.remote, "a role conflict: it gives way", now=now, packet=received.packet)
            if self._role.controlling:
                current.verdicts.repeat()
            return
        if conflict is Conflict.SWITCH:
            switch_role("a role conflict: we give way", now=now)
        self._journal.send(received.flow, received.remote, checks.accept(received, generation.credentials))
        if not old:
            generation.heard(verdict, base, now=now)

    def _may_refuse(self, *, now: Instant) -> bool:
        if now >= self._since + SECOND:
            self._since, self._refusals = now, 0
        self._refusals += 1
        return self._refusals <= REFUSALS
