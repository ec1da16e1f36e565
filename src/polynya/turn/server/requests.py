"""What every request's procedure is made of.

A procedure answers one request. It is a generator: it yields a command without its number, is resumed with what the
plane said to it and the time, and returns the answer; a `Refusal` is an answer, too. So each reads from top to bottom
as the RFC does, whatever comes in between.

    reply = yield partial(Permit, relay=..., hosts=..., until=...)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from polynya.core.instants import Instant
from polynya.stun.attributes import Attribute
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode

from .allocations import Allocation, Allocations
from .authentication import Granted
from .commands import Client, Command, Done, Refused

Order = Callable[..., Command]
"""A command that lacks its number."""
Resumed = tuple[Done | Refused, Instant]
Attributes = dict[Attribute[Any], Any]
Procedure = Generator[Order, Resumed, Attributes]
"""Returns the attributes of the success response; raises Refusal for any other."""


@dataclass(slots=True)
class Ask:
    """A request that has been authenticated."""

    message: Message
    client: Client
    granted: Granted
    stream: bool
    abandoned: bool = field(default=False)
    """The client's stream has closed meanwhile: what was being made for it must not stay."""


class Refusal(Exception):
    """The answer is an error response."""

    def __init__(self, code: ErrorCode, reason: str, attributes: Attributes | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        """For the log; the client gets the code's own phrase."""
        self.attributes = attributes or {}


def allocation_of(ask: Ask, allocations: Allocations) -> Allocation:
    """The allocation that a request is about; Refusal when there is none, or it is somebody else's."""
    allocation = allocations.by_client.get(ask.client)
    if allocation is None:
        raise Refusal(ErrorCode.ALLOCATION_MISMATCH, "no allocation")
    if allocation.user.account != ask.granted.user.account:
        raise Refusal(ErrorCode.WRONG_CREDENTIALS, "the allocation was made with other credentials")
    allocation.answer = b""  # who asks for more has had the first answer
    return allocation
