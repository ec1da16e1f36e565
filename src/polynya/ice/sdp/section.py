"""ICE attributes of one section of a session description: the session level, or one `m=` line (RFC 8839).

    attribute            level        meaning
    ice-ufrag, ice-pwd   both         credentials; those of a medium override the session's (section 5.4)
    ice-options          both         options of the session; some programs write them in the media (5.6)
    ice-pacing           session      the proposed Ta (5.7)
    ice-lite             session      the sender is lite (5.3)
    ice-mismatch         media        ICE is not used: the default destination was no candidate (5.3)
    candidate            media        one line for each candidate (5.1)
    remote-candidates    media        the receiver's candidates that the controlling agent selected (5.2)
    end-of-candidates    both         no more candidates follow (RFC 8840, section 8.2)
    mid                  media        the name of the section (RFC 5888)

Unknown attributes are kept, in order, and written again. Every part is bounded. A `Section` made by hand is validated
like one that was read, so that no field can inject another line into the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from polynya.core.errors import DecodeError
from polynya.ice.candidates import Candidate
from polynya.ice.description import (
    Description,
    check_options,
    format_pacing,
    read_options,
    read_pacing,
    read_password,
    read_ufrag,
)

from .candidate import RemoteCandidate, UnsupportedCandidate, format_remote_candidates, parse_remote_candidates

MAX_ATTRIBUTES: Final = 512
"""Candidates of one section, and as many attributes that ICE does not use."""
MAX_VALUE: Final = 4096
"""Characters of one line."""
PSEUDO_MEDIA: Final = "audio 9 RTP/AVP 0"
"""The `m=` line of a fragment, which carries no information (RFC 8840, section 9.1)."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}")
_MEDIA = re.compile(r"[!-~]{1,64} [0-9]{1,5}(?:/[0-9]{1,5})? [!-~]{1,64}(?: [!-~]{1,64}){1,64}")
_OTHER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}(?::[^\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The ICE attributes of one section. `media` is the value of its `m=` line, None for the session."""

    media: str | None = None
    mid: str | None = None
    ufrag: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[str, ...] = ()
    pacing: float | None = None
    """Seconds, written as whole milliseconds."""
    lite: bool = False
    mismatch: bool = False
    candidates: tuple[Candidate, ...] = ()
    unsupported: tuple[str, ...] = ()
    """Well-formed candidate lines of an unknown kind, without `a=`: ignored, and written again (5.1)."""
    remote_candidates: tuple[RemoteCandidate, ...] = ()
    ended: bool = False
    """`end-of-candidates`; in the session it counts for all media."""
    other: tuple[str, ...] = ()
    """Attributes that ICE does not use, without `a=`."""

    def __post_init__(self) -> None:
        if self.media is not None and (not _MEDIA.fullmatch(self.media) or self.port > 65535):
            raise DecodeError(f"{self.media[:64]!r} is not the value of an m= line")
        if self.mid is not None:
            read_token(self.mid)
        if self.ufrag is not None:
            read_ufrag(self.ufrag)
        if self.password is not None:
            read_password(self.password)
        check_options(self.options)
        for count, what in (
            (len(self.candidates) + len(self.unsupported), "candidates"),
            (len(self.other), "other attributes"),
        ):
            if count > MAX_ATTRIBUTES:
                raise DecodeError(f"a section has more than {MAX_ATTRIBUTES} {what}")
        for text in self.other:
            read_other(text)
        for text in self.unsupported:
            _read_unsupported(text)
        if self.media is None and (
            self.mid is not None or self.mismatch or self.candidates or self.unsupported or self.remote_candidates
        ):
            raise DecodeError("mid, ice-mismatch, candidate and remote-candidates belong to a medium")
        if self.media is not None and (self.lite or self.pacing is not None):
            raise DecodeError("ice-lite and ice-pacing belong to the session")

    @property
    def rejected(self) -> bool:
        """Whether the medium was rejected or removed: its port is 0 (RFC 3264, section 6)."""
        return self.media is not None and self.port == 0

    @property
    def port(self) -> int:
        """The port of the `m=` line; 0 for the session."""
        return 0 if self.media is None else int(self.media.split(" ")[1].partition("/")[0])

    def description(self, session: Section, generation: int = 0) -> Description:
        """Return the description of this medium; the session provides what it lacks. Raises DecodeError without one."""
        ufrag, password = self.ufrag, self.password
        if ufrag is None and password is None:
            ufrag, password = session.ufrag, session.password
        if ufrag is None or password is None:
            raise DecodeError(f"ice-ufrag or ice-pwd is missing for {self.mid or self.media or 'the session'}")
        return Description(
            ufrag=ufrag,
            password=password,
            options=tuple(dict.fromkeys(session.options + self.options)),
            lite=session.lite,
            pacing=session.pacing,
            generation=generation,
        )

    def to_sdp(self) -> str:
        """Return the lines, each with CR LF."""
        lines = [] if self.media is None else [f"m={self.media}"]
        if self.mid is not None:
            lines.append(f"a=mid:{self.mid}")
        if self.lite:
            lines.append("a=ice-lite")
        if self.ufrag is not None:
            lines.append(f"a=ice-ufrag:{self.ufrag}")
        if self.password is not None:
            lines.append(f"a=ice-pwd:{self.password}")
        if self.options:
            lines.append(f"a=ice-options:{' '.join(self.options)}")
        if self.pacing is not None:
            lines.append(f"a=ice-pacing:{format_pacing(self.pacing)}")
        if self.mismatch:
            lines.append("a=ice-mismatch")
        lines += [f"a={text}" for text in self.other]
        lines += [f"a={candidate}" for candidate in (*self.candidates, *self.unsupported)]
        if self.remote_candidates:
            lines.append(f"a=remote-candidates:{format_remote_candidates(self.remote_candidates)}")
        if self.ended:
            lines.append("a=end-of-candidates")
        return "".join(f"{line}\r\n" for line in lines)


def read_token(text: str) -> str:
    """Return a token such as the value of `mid`; raises DecodeError for other text."""
    if not _TOKEN.fullmatch(text):
        raise DecodeError(f"{text[:64]!r} is not a token")
    return text


def read_other(text: str) -> str:
    """Return an attribute that ICE does not use; raises DecodeError for a malformed one, and for one of ICE."""
    if len(text) > MAX_VALUE or not _OTHER.fullmatch(text):
        raise DecodeError(f"{text[:64]!r} is not an attribute")
    if text.partition(":")[0] in KNOWN:
        raise DecodeError(f"{text[:64]!r} has a field of its own")
    return text


def _read_unsupported(text: str) -> None:
    """Raise DecodeError unless the line is a well-formed candidate of an unknown kind."""
    try:
        Candidate.parse(text)
    except UnsupportedCandidate:
        if _OTHER.fullmatch(text):
            return
    raise DecodeError(f"{text[:64]!r} is not a well-formed candidate of an unknown kind")


class CredentialsError(DecodeError):
    """The credentials of a description are malformed or contradict each other."""


class SectionReader:
    """Builds a section from its lines, one attribute at a time."""

    __slots__ = ("_candidates", "_fields", "_media", "_other", "_unsupported")

    def __init__(self, media: str | None) -> None:
        self._media = media
        self._fields: dict[str, Any] = {}
        self._candidates: list[Candidate] = []
        self._unsupported: list[str] = []
        self._other: list[str] = []

    def attribute(self, text: str) -> None:
        """Add one attribute, without `a=`. Raises DecodeError, and adds nothing, for a malformed one.

        CredentialsError is raised for credentials, without which the description cannot be used.
        """
        name, colon, value = text.rstrip(" \t").partition(":")
        misplaced = _MEDIA_LEVEL if self._media is None else _SESSION_LEVEL
        if name in misplaced:
            where = "below an m= line" if self._media is None else "above the first m= line"
            raise DecodeError(f"{name} is only allowed {where}")
        if name == "candidate":
            self._bound(len(self._candidates) + len(self._unsupported), "candidates")
            try:
                self._candidates.append(Candidate.parse(text))
            except UnsupportedCandidate:
                self._unsupported.append(text)
                raise
        elif name in _CREDENTIALS:
            place, read = _VALUES[name]
            try:
                self._once(name, place, read(value))
            except DecodeError as error:
                raise CredentialsError(str(error)) from None
        elif name in _FLAGS:
            if colon:
                raise DecodeError(f"{name} has no value")
            self._once(name, _FLAGS[name], True)
        elif name in _VALUES:
            place, read = _VALUES[name]
            self._once(name, place, read(value))
        else:
            self._bound(len(self._other), "other attributes")
            self._other.append(read_other(text))

    def mid_to_be(self, text: str) -> str | None:
        """Return the mid that `attribute` would set, None for another attribute."""
        name, _, value = text.rstrip(" \t").partition(":")
        return value if name == "mid" else None

    @property
    def mid(self) -> str | None:
        return self._fields.get("mid")

    @staticmethod
    def _bound(count: int, what: str) -> None:
        if count >= MAX_ATTRIBUTES:
            raise DecodeError(f"a section has more than {MAX_ATTRIBUTES} {what}")

    def _once(self, name: str, place: str, value: object) -> None:
        if self._fields.get(place, value) != value:
            raise DecodeError(f"{name} is given twice, with different values")
        self._fields[place] = value

    def done(self) -> Section:
        """Return the section. Raises DecodeError if its attributes conflict."""
        return Section(
            media=self._media,
            candidates=tuple(self._candidates),
            unsupported=tuple(self._unsupported),
            other=tuple(self._other),
            **self._fields,
        )


_FLAGS: Final = {"ice-lite": "lite", "ice-mismatch": "mismatch", "end-of-candidates": "ended"}
_VALUES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "ice-ufrag": ("ufrag", read_ufrag),
    "ice-pwd": ("password", read_password),
    "ice-options": ("options", read_options),
    "ice-pacing": ("pacing", read_pacing),
    "mid": ("mid", read_token),
    "remote-candidates": ("remote_candidates", parse_remote_candidates),
}
_CREDENTIALS: Final = frozenset(["ice-ufrag", "ice-pwd"])
KNOWN: Final = frozenset([*_FLAGS, *_VALUES, "candidate"])
_SESSION_LEVEL: Final = frozenset(["ice-lite", "ice-pacing"])
_MEDIA_LEVEL: Final = frozenset(["ice-mismatch", "candidate", "remote-candidates", "mid"])
