"""The context of an agent: the objects that all its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .candidates import LocalCandidates
from .config import IceConfig
from .outbox import Outbox
from .roles import Role


@dataclass(slots=True)
class Context:
    """Options, outbox, role, local candidates and randomness of one agent."""

    config: IceConfig
    outbox: Outbox
    role: Role
    locals: LocalCandidates
    random: Random

    def draw_id(self) -> bytes:
        """Draw a transaction id."""
        return self.random.getrandbits(96).to_bytes(12, "big")
