"""ICE descriptions: credentials, options and pacing that an agent signals, without candidates (RFC 8839, section 5).

A `Description` belongs to one generation: a restart makes a new one with new credentials (RFC 8445, section 9).
"""

from __future__ import annotations

import re
import sys
from binascii import b2a_base64
from dataclasses import dataclass, field
from random import Random
from typing import Final

from polynya.core import arguments
from polynya.core.errors import DecodeError, UsageError
from polynya.core.instants import MILLISECOND, duration, nanoseconds

DEFAULT_PACING: Final = 0.05
"""Ta for peers that propose none, seconds (RFC 8445, section 14.2)."""
OFFERED_PACING: Final = 0.005
"""Ta that we propose, seconds: the shortest that RFC 8445, section 14.2 allows a process."""

_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_OPTION = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
_MAX_OPTIONS: Final = 32
MAX_TEXT: Final = 1 << 18
"""Characters of a whole text."""
MAX_IGNORED: Final = 32
"""Ignored lines of a text that are reported."""
_LINE_END = re.compile(r"\r\n?|\n")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


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
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """Lines of the text that could not be used, each with its number and the reason; at most 32."""

    def __post_init__(self) -> None:
        read_ufrag(arguments.text("ufrag", self.ufrag))
        read_password(arguments.secret("password", self.password))
        object.__setattr__(self, "options", arguments.items("options", self.options))
        check_options(self.options)
        arguments.flag("lite", self.lite)
        arguments.number("generation", self.generation, 0, sys.maxsize)
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
        """Read the ICE attributes of an SDP text, such as a browser's whole session description.

        Credentials, options and pacing may be in the session, in media sections, or in both; media sections that were
        rejected (port 0) do not count. Other attributes are skipped. A malformed line is skipped and reported in
        `ignored`. DecodeError names malformed credentials, and sections whose credentials differ: read such a text
        with `Fragment.of_session`.
        """
        arguments.instance("a description", text, str, error=UsageError)
        if len(text) > MAX_TEXT:
            raise DecodeError(f"a description of {len(text)} characters is longer than {MAX_TEXT}")
        lines = _Lines()
        for number, line in enumerate(_LINE_END.split(text), start=1):
            try:
                lines.add(line.strip(" \t"), number)
            except DecodeError as error:
                raise DecodeError(f"line {number}: {error}") from None
        ufrag, password = lines.credentials()
        return cls(
            ufrag=ufrag,
            password=password,
            options=tuple(lines.options),
            lite=lines.lite,
            pacing=lines.pacing,
            generation=generation,
            ignored=tuple(lines.ignored),
        )


class _Level:
    """The credentials of one level of an SDP text: the session, or a media section."""

    __slots__ = ("name", "password", "rejected", "ufrag")

    def __init__(self, name: str, *, rejected: bool = False) -> None:
        self.name = name
        self.rejected = rejected
        self.ufrag: str | None = None
        self.password: str | None = None


class _Lines:
    """Collects the ICE attributes of an SDP text, line by line."""

    __slots__ = ("_levels", "ignored", "lite", "options", "pacing")

    def __init__(self) -> None:
        self._levels = [_Level("the session")]
        self.options: dict[str, None] = {}
        self.lite = False
        self.pacing: float | None = None
        self.ignored: list[str] = []

    def add(self, line: str, number: int) -> None:
        """Read one line. Raises DecodeError for malformed or contradictory credentials; other lines are ignored."""
        if line.startswith("m="):
            words = line.split()
            rejected = len(words) > 1 and words[1].partition("/")[0] == "0"
            self._levels.append(_Level(f"the media section of line {number}", rejected=rejected))
            return
        name, _, value = line.removeprefix("a=").partition(":")
        level, value = self._levels[-1], value.strip(" \t")
        if name == "ice-ufrag":
            level.ufrag = _only(name, level.ufrag, read_ufrag(value))
        elif name == "ice-pwd":
            level.password = _only(name, level.password, read_password(value))
        elif name == "bundle-only":
            level.rejected = False
        else:
            try:
                _refuse_surrogates(line)
                self._optional(name.strip(" \t"), value)
            except DecodeError as error:
                if len(self.ignored) < MAX_IGNORED:
                    self.ignored.append(f"line {number}: {error}")

    def _optional(self, name: str, value: str) -> None:
        if name == "ice-options":
            options = check_options(
                (*self.options, *(each for each in read_options(value) if each not in self.options))
            )
            self.options = dict.fromkeys(options)
        elif name == "ice-pacing":
            pacing = read_pacing(value)
            if self.pacing not in (None, pacing):
                raise DecodeError("ice-pacing is given twice, with different values")
            self.pacing = pacing
        elif name == "ice-lite":
            self.lite = True

    def credentials(self) -> tuple[str, str]:
        """Return the ufrag and password of all sections (RFC 8839, section 5.4)."""
        session, *media = self._levels
        given = [level for level in media if level.ufrag is not None or level.password is not None]
        live = [level for level in given if not level.rejected]
        found: tuple[_Level, str, str] | None = None
        for level in live or ([session] if session.ufrag is not None else given[:1]) or [session]:
            ufrag, password = level.ufrag, level.password
            if session.ufrag is None or session.password is None:
                ufrag, password = ufrag or session.ufrag, password or session.password  # one of them at each level
            if ufrag is None or password is None:
                raise DecodeError(f"{level.name} lacks ice-ufrag or ice-pwd")
            if found is not None and (ufrag, password) != found[1:]:
                raise DecodeError(
                    f"the credentials of {found[0].name} and of {level.name} differ: read the text with "
                    "Fragment.of_session, and make an agent for each section"
                )
            found = level, ufrag, password
        assert found is not None
        return found[1:]


def _refuse_surrogates(line: str) -> None:
    if _SURROGATE.search(line):
        raise DecodeError("it has a surrogate, which is not a character")


def _only(name: str, known: str | None, value: str) -> str:
    if known not in (None, value):
        raise DecodeError(f"{name} is given twice, with different values")
    return value


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
    if len(options) > _MAX_OPTIONS or not all(type(option) is str and _OPTION.fullmatch(option) for option in options):
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
