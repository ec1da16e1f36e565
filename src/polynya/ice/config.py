"""Options of an ICE agent. Durations are seconds; every deviation from an RFC is an option here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Final, NamedTuple

from polynya.core.arguments import flag, instance, items, number, secret, shown, text
from polynya.core.errors import ConfigurationError, DecodeError, PolynyaError
from polynya.core.instants import duration
from polynya.stun.transactions import UNRELIABLE, Schedule

from .description import OFFERED_PACING, check_options, read_password, read_ufrag
from .nomination import AGAIN, REGULAR, NominationPolicy, Renomination

PAIR_LIMIT: Final = 100
"""Pairs of all checklists together (RFC 8445, section 6.1.2.5)."""
MAX_PAIRS: Final = 100_000
"""The highest `pair_limit`: every pair takes memory that a peer can claim."""
PATIENCE: Final = 39.5
"""Seconds until an agent fails although every pair has failed (RFC 8863, section 4): one STUN transaction."""
TRICKLE_LIMIT: Final = 90.0
SILENT_PACING: Final = 0.02
"""Ta for peers that propose none, seconds; that of aioice and libnice."""
KEEPALIVE: Final = 15.0
"""Tr, seconds (RFC 8445, section 11)."""
CONSENT_INTERVAL: Final = 5.0
CONSENT_TIMEOUT: Final = 30.0
"""Seconds (RFC 7675, section 5.1)."""

MAX_UFRAG: Final = 32
"""Characters of a ufrag that we send; a received one has up to 256 (RFC 8839, section 5.4)."""


class Timing(NamedTuple):
    """The durations of an `IceConfig` in nanoseconds, for the machines."""

    pacing: int
    silent_pacing: int
    patience: int
    trickle_limit: int
    keepalive: int
    consent_interval: int
    consent_timeout: int
    consent_check: Schedule
    """A consent check is sent once; its response counts until the consent expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IceConfig:
    """Options of one ICE agent. Durations are seconds."""

    controlling: bool = True
    ufrag: str | None = None
    """Set together with `password`; by default both are random."""
    password: str | None = field(default=None, repr=False)
    lite: bool = False
    components: tuple[int, ...] = (1,)
    """The number of components of each stream; a restart may change it."""
    pacing: float = OFFERED_PACING
    """Ta that is proposed in `ice-pacing`."""
    silent_pacing: float = SILENT_PACING
    """Ta for a peer that proposes none. Less than 0.05 s deviates from RFC 8445, section 14.2."""
    schedule: Schedule = UNRELIABLE
    """Retransmissions of checks; an RTO below 0.5 s deviates from RFC 8445, section 14.3."""
    nomination: NominationPolicy = REGULAR
    aggressive: bool = True
    """Towards a peer without `ice2`, nominate as RFC 5245 allows: the best pair early, and a better one again later."""
    renomination: Renomination | None = AGAIN
    """Signaled unless it is None; used if both sides signal it."""
    pair_limit: int = PAIR_LIMIT
    patience: float = PATIENCE
    """The shortest time until the agent fails, counted from the remote description (RFC 8863)."""
    trickle_limit: float = TRICKLE_LIMIT
    """How long the agent waits for candidates of a peer that does not signal their end."""
    options: tuple[str, ...] = ("ice2", "trickle")
    """The `ice-options` to signal, besides `renomination`."""
    mdns: bool = True
    """Whether remote candidates with names that end with `.local` are looked up."""
    fqdn: bool = False
    """Whether remote candidates with all other names are looked up, too (RFC 8839, section 5.1)."""
    consent: bool = True
    """False: keepalives in place of consent checks, for a peer without RFC 7675."""
    consent_interval: float = CONSENT_INTERVAL
    """The mean interval of consent checks; each is randomized by 20 percent."""
    consent_timeout: float = CONSENT_TIMEOUT
    """Consent expires this long after the last response."""
    keepalive: float = KEEPALIVE
    """The interval at which the mappings of valid pairs without data are kept."""
    _timing: Timing = field(init=False, repr=False, compare=False)
    """The durations in nanoseconds."""

    def __post_init__(self) -> None:
        for name in _FLAGS:
            flag(name, getattr(self, name))
        _check_credentials(self.ufrag, self.password)
        object.__setattr__(self, "components", check_components(self.components))
        object.__setattr__(self, "options", _options(self.options))
        number("pair_limit", self.pair_limit, 1, MAX_PAIRS)
        instance("schedule", self.schedule, Schedule)
        instance("nomination", self.nomination, NominationPolicy)
        if self.renomination is not None:
            instance("renomination", self.renomination, Renomination, hint="write Renomination()")
        timing = _share(
            Timing(
                pacing=duration("pacing", self.pacing),
                silent_pacing=duration("silent_pacing", self.silent_pacing),
                patience=duration("patience", self.patience),
                trickle_limit=duration("trickle_limit", self.trickle_limit),
                keepalive=duration("keepalive", self.keepalive, above_zero=True),
                consent_interval=duration("consent_interval", self.consent_interval, above_zero=True),
                consent_timeout=duration("consent_timeout", self.consent_timeout, above_zero=True),
                consent_check=Schedule(rto=self.consent_timeout, sends=1, last_wait=1),
            )
        )
        if timing.consent_timeout <= timing.consent_interval:
            raise ConfigurationError(
                f"consent_timeout must be longer than consent_interval, "
                f"not {self.consent_timeout} and {self.consent_interval} seconds"
            )
        object.__setattr__(self, "_timing", timing)


def durations(config: IceConfig) -> Timing:
    """Return the durations of a configuration in nanoseconds."""
    return config._timing


_FLAGS: Final = tuple(each.name for each in fields(IceConfig) if each.type == "bool")


@lru_cache(maxsize=64)
def _share(timing: Timing) -> Timing:
    """Return one object for equal durations: thousands of agents have the same options."""
    return timing


def check_components(components: Iterable[int], *, error: type[PolynyaError] = ConfigurationError) -> tuple[int, ...]:
    """Return the numbers of components of streams (RFC 8445, section 5.1.1.1). Raises `error` for anything else.

    A stream that was removed or refused has 0 components. At least one stream has components.
    """
    if isinstance(components, int):
        raise error(f"components has a number for each stream: write components=({components},)")
    counts = items("components", components, error=error)
    if not all(type(count) is int and 0 <= count <= 256 for count in counts) or not any(counts):
        raise error(f"a stream has 1 to 256 components, or 0 after its removal; not {shown(components)}")
    return counts


def _check_credentials(ufrag: str | None, password: str | None) -> None:
    if (ufrag is None) != (password is None):
        raise ConfigurationError("set ufrag and password together, or neither of them")
    if ufrag is None or password is None:
        return
    text("ufrag", ufrag)
    secret("password", password)
    if len(ufrag) > MAX_UFRAG:
        raise ConfigurationError(f"a ufrag that is sent has at most {MAX_UFRAG} characters, not {len(ufrag)}")
    try:
        read_ufrag(ufrag)
        read_password(password)
    except DecodeError as error:
        raise ConfigurationError(str(error)) from None


def _options(options: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(text("an ICE option", each) for each in items("options", options))
    try:
        return check_options(chosen)
    except DecodeError as error:
        raise ConfigurationError(f"options: {error}") from None
