"""What clients are answered: signed to those who have proven who they are, small and budgeted to all others.

Whoever has not proven anything may have forged its source, and what it is sent may hit somebody else. So such answers
have no SOFTWARE and no reason phrase, and one source gets so many a second and no more (security.md, line 5). The codes
that a client can provoke at will share that budget, signed or not.
"""

from __future__ import annotations

from typing import Final

from polynya.core.instants import Instant
from polynya.stun.budget import Budget, source_of
from polynya.stun.message import Message
from polynya.stun.registry import Method

from .authentication import Authenticator, Denied
from .commands import Client
from .config import Limits
from .events import RequestRefused
from .requests import Ask, Attributes, Refusal

_NAMES: Final[dict[int, str]] = {method: method.name for method in Method}
_BUDGETED: Final = frozenset({400, 401, 420, 437, 438, 441})


class Answers:
    """Builds answers; None where the budget is used up."""

    def __init__(self, limits: Limits) -> None:
        self.budget = Budget(limits.unauthenticated_answers_per_second, limits.unauthenticated_burst)
        """What strangers may be sent; the Binding server takes from it, too."""
        self.refused: list[RequestRefused] = []
        """Drained by the owner."""

    def may_answer(self, client: Client, *, now: Instant) -> bool:
        """Use one unit of what a stranger may be sent."""
        return self.budget.take(source_of(client.remote.host), now=now)

    def success(self, ask: Ask, attributes: Attributes) -> bytes:
        """A signed success response."""
        return _sign(Message.success(ask.message, attributes), ask)

    def refusal(self, ask: Ask, refusal: Refusal, *, now: Instant) -> bytes | None:
        """A signed error response."""
        if refusal.code in _BUDGETED and not self.may_answer(ask.client, now=now):
            return None
        self._note(ask.message, ask.client, refusal.code, refusal.reason, ask.granted.user.name)
        return _sign(Message.error(ask.message, refusal.code, None, refusal.attributes), ask)

    def denial(
        self, message: Message, client: Client, denied: Denied, authenticator: Authenticator, *, now: Instant
    ) -> bytes | None:
        """An error response to whoever has not proven who it is."""
        if not self.may_answer(client, now=now):
            return None
        self._note(message, client, denied.code, denied.reason, "")
        attributes = authenticator.challenge(client, now=now) if denied.challenge else {}
        return Message.error(message, denied.code, "", attributes).encode(fingerprint=message.has_fingerprint)

    def _note(self, message: Message, client: Client, code: int, reason: str, user: str) -> None:
        method = message.method
        name = _NAMES.get(method) or str(method)
        self.refused.append(RequestRefused(client=client, method=name, code=int(code), reason=reason, user=user))


def _sign(answer: Message, ask: Ask) -> bytes:
    """The answer is signed as the request was (RFC 8489, section 9.2.4)."""
    granted = ask.granted
    return answer.encode(
        integrity=None if granted.sha256 else granted.key,
        sha256=granted.key if granted.sha256 else None,
        fingerprint=ask.message.has_fingerprint,
    )
