"""Which agent decides: the role, its tie-breaker, and conflicts of roles (RFC 8445, sections 6.1.1, 7.2.5.1, 7.3.1.1).

    we are       the request says   our tie-breaker is      outcome
    controlling  controlling        larger or equal         487 to the other side, which switches
    controlling  controlling        smaller                 we switch to controlled and answer
    controlled   controlled         larger or equal         we switch to controlling and answer
    controlled   controlled         smaller                 487 to the other side, which switches

A 487 that reaches us makes us switch only when we still have the role that the refused request said: it may come
late, when the conflict was decided by another packet. After it the tie-breaker is drawn anew (section 16.1).
"""

from __future__ import annotations

from enum import Enum
from random import Random

from polynya.stun.attributes import ICE_CONTROLLED, ICE_CONTROLLING
from polynya.stun.message import Message


class Conflict(Enum):
    """What to do about a request's role."""

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

    def judge(self, request: Message) -> Conflict:
        """Whether a request's role conflicts with ours, and who gives way (section 7.3.1.1)."""
        theirs = request.get(ICE_CONTROLLING if self.controlling else ICE_CONTROLLED)
        if theirs is None:
            return Conflict.NONE
        if (self.tie_breaker >= theirs) == self.controlling:
            return Conflict.REFUSE
        return Conflict.SWITCH

    def refused(self, was_controlling: bool, random: Random) -> bool:
        """A 487 came for a request that said `was_controlling`; whether we are to switch (section 7.2.5.1)."""
        self.tie_breaker = random.getrandbits(64)
        return self.controlling == was_controlling


def role_name(controlling: bool) -> str:
    return "controlling" if controlling else "controlled"
