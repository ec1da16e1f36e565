"""Roles, tie-breakers and role conflicts (RFC 8445, sections 6.1.1, 7.2.5.1, 7.3.1.1).

    our role     role in the request   our tie-breaker is   outcome
    controlling  controlling           larger or equal      we answer 487, and the other side switches
    controlling  controlling           smaller              we switch to controlled and answer
    controlled   controlled            larger or equal      we switch to controlling and answer
    controlled   controlled            smaller              we answer 487, and the other side switches

A received 487 makes this agent switch only if it still has the role of the refused request: the response may be late,
and another packet may have resolved the conflict. After a 487 the tie-breaker is drawn again (section 16.1).
"""

from __future__ import annotations

from enum import Enum
from random import Random

from polynya.stun.attributes import ICE_CONTROLLED, ICE_CONTROLLING
from polynya.stun.message import Message


class Conflict(Enum):
    """Outcome of comparing the roles of both sides."""

    NONE = "none"
    REFUSE = "refuse"
    SWITCH = "switch"


class Role:
    """The role of one agent, for all its streams."""

    __slots__ = ("controlling", "tie_breaker")

    def __init__(self, controlling: bool, random: Random) -> None:
        self.controlling = controlling
        self.tie_breaker = random.getrandbits(64)

    @property
    def name(self) -> str:
        return role_name(self.controlling)

    def made(self, request: Message) -> bool:
        """Return whether a request has our role and tie-breaker: this agent sent it."""
        return request.get(ICE_CONTROLLING if self.controlling else ICE_CONTROLLED) == self.tie_breaker

    def judge(self, request: Message) -> Conflict:
        """Compare the role in a request with ours and decide which side switches (section 7.3.1.1)."""
        theirs = request.get(ICE_CONTROLLING if self.controlling else ICE_CONTROLLED)
        if theirs is None:
            return Conflict.NONE
        if (self.tie_breaker >= theirs) == self.controlling:
            return Conflict.REFUSE
        return Conflict.SWITCH

    def refused(self, was_controlling: bool, random: Random) -> bool:
        """Handle a 487 to a request sent as `was_controlling`. Returns whether this agent switches (7.2.5.1)."""
        self.tie_breaker = random.getrandbits(64)
        return self.controlling == was_controlling


def role_name(controlling: bool) -> str:
    return "controlling" if controlling else "controlled"
