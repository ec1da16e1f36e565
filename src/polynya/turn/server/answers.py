"""Builds responses: signed ones for authenticated requests, small and budgeted ones for all others.

An unauthenticated request may have a forged source, so its response may hit a victim. Such responses have no SOFTWARE
and no reason phrase, and each source gets a limited number a second (security.md, line 5). Error codes that a client
can provoke at will count against the same budget, signed or not.
"""

from __future__ import annotations

from typing import Final

from polynya.core.compact import Queue
from polynya.core.instants import Instant
from polynya.stun.budget import Budget, source_of
from polynya.stun.message import Message
from polynya.stun.registry import Method

from .authentication import Authenticator, Denied
from .commands import Client
from .config import Limits
from .events import RequestRefused
from .procedures import Attributes, ErrorResponse, Request

_NAMES: Final[dict[int, str]] = {method: method.name for method in Method}
_BUDGETED: Final = frozenset({400, 401, 420, 437, 438, 441})


class Answers:
    """Builds encoded responses; None where the budget of the client's source is used up."""

    def __init__(self, limits: Limits) -> None:
        self.budget = Budget(limits.unauthenticated_answers_per_second, limits.unauthenticated_burst)
        """Budget of unauthenticated responses; the Binding server takes from it, too."""
        self.refused: Queue[RequestRefused] = Queue()
        """Drained by the owner."""

    def may_answer(self, client: Client, *, now: Instant) -> bool:
        """Take one unit of the budget of the client's source; False if it is used up."""
        return self.budget.take(source_of(client.remote.host), now=now)

    def success(self, request: Request, attributes: Attributes) -> bytes:
        """Build a signed success response."""
        return _sign(Message.success(request.message, attributes), request)

    def error(self, request: Request, error: ErrorResponse, *, now: Instant) -> bytes | None:
        """Build a signed error response."""
        if error.code in _BUDGETED and not self.may_answer(request.client, now=now):
            return None
        self._note(request.message, request.client, error.code, error.reason, request.authenticated.user.name)
        return _sign(Message.error(request.message, error.code, None, error.attributes), request)

    def denial(
        self, message: Message, client: Client, denied: Denied, authenticator: Authenticator, *, now: Instant
    ) -> bytes | None:
        """Build the error response to an unauthenticated request."""
        if not self.may_answer(client, now=now):
            return None
        self._note(message, client, denied.code, denied.reason, "")
        attributes = authenticator.challenge(client, now=now) if denied.challenge else {}
        return Message.error(message, denied.code, "", attributes).encode(fingerprint=message.has_fingerprint)

    def _note(self, message: Message, client: Client, code: int, reason: str, user: str) -> None:
        method = message.method
        name = _NAMES.get(method) or str(method)
        self.refused.append(RequestRefused(client=client, method=name, code=int(code), reason=reason, user=user))


def _sign(answer: Message, request: Request) -> bytes:
    """Sign a response with the algorithm of its request (RFC 8489, section 9.2.4)."""
    signer = request.authenticated
    return answer.encode(
        integrity=None if signer.sha256 else signer.key,
        sha256=signer.key if signer.sha256 else None,
        fingerprint=request.message.has_fingerprint,
    )
