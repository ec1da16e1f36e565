"""ICE descriptions: credentials, options and pacing that an agent signals, without candidates (RFC 8839, section 5).

A `Description` belongs to one generation: a restart makes a new one with new credentials (RFC 8445, section 9).
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from polynya.core.errors import DecodeError
from polynya.core.instants import MILLISECOND, duration, nanoseconds

DEFAULT_PACING: Final = 0.05
"""Ta for peers that propose none, seconds (RFC 8445, section 14.2)."""
OFFERED_PACING: Final = 0.005
"""Ta that we propose, seconds: the shortest that RFC 8445, section 14.2 allows a process."""

_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_OPTION = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
_MAX_OPTIONS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Description:
    """The session-level attributes that an agent signals. Candidates are signaled separately (RFC 8838)."""

    ufrag: str
    password: str
    options: tuple[str, ...] = ()
    lite: bool = False
    pacing: float | None = None
    """The proposed Ta, seconds; None proposes none, which means 0.05 s."""
    generation: int = 0
    """The number of restarts, if signaling carries it. New credentials make a new generation."""

    def __post_init__(self) -> None:
        read_ufrag(self.ufrag)
        read_password(self.password)
        check_options(self.options)
        if self.pacing is not None:
            duration("pacing", self.pacing)

    def __repr__(self) -> str:
        lite = ["lite"] if self.lite else []
        return f"<Description {' '.join([self.ufrag, *self.options, *lite])}, generation {self.generation}>"

    @property
    def ice2(self) -> bool:
        """Whether the agent implements RFC 8445 and so never nominates aggressively (section 10)."""
        return "ice2" in self.options

    @property
    def trickle(self) -> bool:
        """Whether the agent accepts trickled candidates (RFC 8838)."""
        return "trickle" in self.options

    @property
    def renomination(self) -> bool:
        return "renomination" in self.options

    def same_credentials(self, other: Description | None) -> bool:
        return other is not None and (self.ufrag, self.password) == (other.ufrag, other.password)

    def to_sdp(self) -> str:
        """Return the attribute lines, each with `a=` and CR LF (RFC 8839, sections 5.3 to 5.7)."""
        lines = [f"ice-ufrag:{self.ufrag}", f"ice-pwd:{self.password}"]
        if self.options:
            lines.append(f"ice-options:{' '.join(self.options)}")
        if self.pacing is not None:
            lines.append(f"ice-pacing:{format_pacing(self.pacing)}")
        if self.lite:
            lines.append("ice-lite")
        return "".join(f"a={line}\r\n" for line in lines)

    @classmethod
    def parse(cls, text: str, generation: int = 0) -> Description:
        """Read the attribute lines of an SDP text and ignore all others. DecodeError names the wrong line."""
        found: dict[str, Any] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            name, _, value = line.strip().removeprefix("a=").partition(":")
            read = _ATTRIBUTES.get(name)
            if read is not None:
                if name in found:
                    raise DecodeError(f"line {number}: {name} is given twice")
                try:
                    found[name] = read(value.strip())
                except DecodeError as error:
                    raise DecodeError(f"line {number}: {error}") from None
        if "ice-ufrag" not in found or "ice-pwd" not in found:
            raise DecodeError("the description lacks ice-ufrag or ice-pwd")
        return cls(
            ufrag=found["ice-ufrag"],
            password=found["ice-pwd"],
            options=found.get("ice-options", ()),
            lite="ice-lite" in found,
            pacing=found.get("ice-pacing"),
            generation=generation,
        )


def read_ufrag(text: str) -> str:
    """Return a ufrag (RFC 8839, section 5.4). Raises DecodeError for other text."""
    if not _UFRAG.fullmatch(text):
        raise DecodeError(f"the ufrag {text[:32]!r} is not 4 to 256 of A-Z a-z 0-9 + /")
    return text


def read_password(text: str) -> str:
    """Return a password (RFC 8839, section 5.4). Raises DecodeError, which does not show it, for other text."""
    if not _PASSWORD.fullmatch(text):
        raise DecodeError("the password is not 22 to 256 of A-Z a-z 0-9 + /")
    return text


def read_options(text: str) -> tuple[str, ...]:
    """Return the tokens of `ice-options` (RFC 8839, section 5.6). Raises DecodeError for other text."""
    return check_options(tuple(text.split()))


def check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the same options. Raises DecodeError if they are not tokens or too many."""
    if len(options) > _MAX_OPTIONS or not all(_OPTION.fullmatch(option) for option in options):
        raise DecodeError(f"the ICE options are not at most {_MAX_OPTIONS} tokens")
    return options


def read_pacing(text: str) -> float:
    """Return the seconds of `ice-pacing`, which is in milliseconds (RFC 8839, section 5.7). Raises DecodeError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise DecodeError(f"ice-pacing {text[:32]!r} is not a number of milliseconds")
    return int(text) / 1000


def format_pacing(pacing: float) -> str:
    """Return `pacing`, seconds, in whole milliseconds, rounded up."""
    return str(-(-nanoseconds(pacing) // MILLISECOND))


_ATTRIBUTES: Final[dict[str, Callable[[str], Any]]] = {
    "ice-ufrag": read_ufrag,
    "ice-pwd": read_password,
    "ice-options": read_options,
    "ice-pacing": read_pacing,
    "ice-lite": bool,
}


def negotiated_pacing(ours: int, remote: Description, silent: int) -> int:
    """Return the Ta of both sides in nanoseconds: the larger proposal (RFC 8839, section 5.7).

    `ours` is our proposal; `silent` counts for a peer that proposes none.
    """
    return max(ours, silent if remote.pacing is None else nanoseconds(remote.pacing))


def draw_credentials(random: Random) -> tuple[str, str]:
    """Draw a ufrag of 48 bits and a password of 144 (RFC 8445, section 5.3 requires 24 and 128)."""
    return _characters(random.randbytes(6)), _characters(random.randbytes(18))


def _characters(drawn: bytes) -> str:
    """Encode six bits in each character: the 64 ice-chars (RFC 8839, section 5.4) are those of base64."""
    return b2a_base64(drawn, newline=False).decode()
