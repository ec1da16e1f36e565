"""What an agent is told when it is made. Durations are nanoseconds; every deviation from an RFC is an option here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from polynya.core.errors import ConfigurationError
from polynya.core.instants import MILLISECOND, SECOND
from polynya.stun.transactions import UNRELIABLE, Schedule

from .checklist import PAIR_LIMIT
from .consent import KEEPALIVE
from .description import DEFAULT_PACING, OFFERED_PACING
from .nomination import REGULAR, NominationPolicy, Renomination

PATIENCE: Final = 39_500 * MILLISECOND
"""How long an agent goes on hoping, although every pair has failed (RFC 8863, section 4): one STUN transaction."""

MAX_UFRAG: Final = 32
"""Characters of a ufrag that is sent; up to 256 are received (RFC 8839, section 5.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IceConfig:
    """The options of one agent."""

    controlling: bool = True
    ufrag: str | None = None
    """Given together with `password`, or both left out to be drawn."""
    password: str | None = field(default=None, repr=False)
    lite: bool = False
    components: tuple[int, ...] = (1,)
    """The number of components of each stream; a restart may change it."""
    pacing: int = OFFERED_PACING
    """Ta that is proposed by `ice-pacing`."""
    silent_pacing: int = DEFAULT_PACING
    """Ta towards a peer that proposes none. Less than 50 ms deviates from RFC 8839, section 5.7."""
    schedule: Schedule = UNRELIABLE
    """Of the checks' retransmissions; an RTO below 500 ms deviates from RFC 8445, section 14.3."""
    nomination: NominationPolicy = REGULAR
    renomination: Renomination | None = None
    """Signaled as an option when it is given; in force when the other side signals it, too."""
    pair_limit: int = PAIR_LIMIT
    patience: int = PATIENCE
    trickle_limit: int = 90 * SECOND
    """How long candidates are waited for from a side that does not say that they have ended."""
    options: tuple[str, ...] = ("ice2", "trickle")
    """What is signaled besides `renomination`."""
    consent: bool = True
    """False: no consent checks, keepalives instead, as for a peer outside of RFC 7675."""
    keepalive: int = KEEPALIVE

    def __post_init__(self) -> None:
        if (self.ufrag is None) != (self.password is None):
            raise ConfigurationError("give ufrag and password together, or neither")
        if self.ufrag is not None and len(self.ufrag) > MAX_UFRAG:
            raise ConfigurationError(f"a ufrag that is sent has at most {MAX_UFRAG} characters, not {len(self.ufrag)}")
        check_components(self.components)
        if min(self.pacing, self.silent_pacing, self.patience, self.trickle_limit) < 0 or self.keepalive <= 0:
            raise ConfigurationError("pacing, patience, trickle_limit and keepalive are durations in nanoseconds")
        if self.pair_limit < 1:
            raise ConfigurationError(f"the limit of pairs is at least 1, not {self.pair_limit}")


def check_components(components: tuple[int, ...]) -> None:
    """Raise ConfigurationError unless these are numbers of components of streams (RFC 8445, section 5.1.1.1).

    0 stands for a stream that was removed or refused; at least one has to be there.
    """
    if not any(components) or not all(0 <= count <= 256 for count in components):
        raise ConfigurationError(f"every stream has 1 to 256 components, 0 when it is removed; not {components}")
