"""ICE in session descriptions, and in the fragments that trickle candidates (RFC 8839; RFC 8840, section 9).

    a=ice-ufrag:8hhY                                         session level: counts for all media
    a=ice-pwd:asd88fgpdd777uzjYhagZg
    m=audio 9 RTP/AVP 0                                      a medium, named by its mid; the line has no meaning
    a=mid:1
    a=candidate:1 1 UDP 2130706431 192.0.2.1 5000 typ host
    a=end-of-candidates

`Fragment.parse` reads the grammar of a fragment, which has `a=` and `m=` lines only. `Fragment.of_session` reads the
same attributes from a session description and skips its other lines. A malformed line is skipped and reported in
`Fragment.ignored`. Only malformed credentials, malformed `m=` lines and texts that are too long raise `DecodeError`,
which names the line and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.ice.candidates import Candidate
from polynya.ice.description import MAX_IGNORED, MAX_TEXT

from .section import MAX_VALUE, CredentialsError, Section, SectionReader

MAX_MEDIA: Final = 128
CONTENT_TYPE: Final = "application/trickle-ice-sdpfrag"


class Signaled(NamedTuple):
    """A candidate of a fragment, with the number of its medium (from 0) and its mid."""

    stream: int
    mid: str | None
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """The session level and the media of a description, in order."""

    session: Section = Section()  # noqa: RUF009 - it is frozen
    media: tuple[Section, ...] = ()
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """Lines of the text that could not be used, each with its number and the reason; at most 32."""

    def __post_init__(self) -> None:
        if self.session.media is not None or any(section.media is None for section in self.media):
            raise DecodeError("the session has no m= line, and every medium has one")
        if len(self.media) > MAX_MEDIA:
            raise DecodeError(f"there are more than {MAX_MEDIA} media")
        mids = [section.mid for section in self.media if section.mid is not None]
        twice = next((mid for number, mid in enumerate(mids) if mid in mids[:number]), None)
        if twice is not None:
            raise DecodeError(f"the mid {twice!r} is given to two media")

    @classmethod
    def parse(cls, text: str) -> Fragment:
        """Read a body of `application/trickle-ice-sdpfrag`. DecodeError names a line that spoils the whole body."""
        return _read(text, whole=False)

    @classmethod
    def of_session(cls, text: str) -> Fragment:
        """Read the ICE attributes of a session description. DecodeError names a line that spoils all of it."""
        return _read(text, whole=True)

    def to_sdp(self) -> str:
        """Return the body; each line ends with CR LF."""
        return self.session.to_sdp() + "".join(section.to_sdp() for section in self.media)

    def candidates(self) -> Iterator[Signaled]:
        """Yield every candidate. The ufrag of its medium is added as an extension: it identifies the generation."""
        for stream, section in enumerate(self.media):
            ufrag = section.ufrag or self.session.ufrag
            for candidate in section.candidates:
                if ufrag is not None and "ufrag" not in dict(candidate.extensions):
                    candidate = replace(candidate, extensions=(*candidate.extensions, ("ufrag", ufrag)))  # noqa: PLW2901
                yield Signaled(stream, section.mid, candidate)

    def ended(self, stream: int) -> bool:
        """Whether the candidates of a medium have ended."""
        return self.session.ended or self.media[stream].ended


def default_destination_is_candidate(section: Section, connection: str) -> bool:
    """Whether the default destination of a medium, `m=` port and `c=` host, is one of its candidates.

    If not, a middlebox has rewritten the description, and the answer carries `ice-mismatch` (RFC 8839, section 3.2.5).
    A trickled description has port 9 and an unspecified address instead (RFC 8840, section 4.3.1): this is no mismatch.
    Names and rejected media are not checked.
    """
    port = section.port
    try:
        default = Address.of(connection, port)
    except DecodeError:
        return True
    if section.rejected or (port == 9 and not any(default.packed)):
        return True
    known = [candidate for candidate in section.candidates if candidate.component == 1]
    return any(candidate.host_name is not None or candidate.address == default for candidate in known)


def _read(text: str, *, whole: bool) -> Fragment:
    if len(text) > MAX_TEXT:
        raise DecodeError(f"a description of {len(text)} characters is longer than {MAX_TEXT}")
    readers = [SectionReader(None)]
    ignored: list[str] = []
    for number, line in enumerate(_lines(text), start=1):
        try:
            _line(line, readers, whole=whole)
        except _SpoiledError as error:
            raise DecodeError(f"line {number}: {error}") from None
        except DecodeError as error:
            if len(ignored) < MAX_IGNORED:
                ignored.append(f"line {number}: {error}")
    session, *media = [reader.done() for reader in readers]
    return Fragment(session=session, media=tuple(media), ignored=tuple(ignored))


class _SpoiledError(DecodeError):
    """A line without which the rest of the text cannot be used."""


def _lines(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.split("\n")]


def _line(line: str, readers: list[SectionReader], *, whole: bool) -> None:
    kind, equals, value = line.partition("=")
    if not line.strip(" \t"):
        return
    if kind == "m" and equals:
        _medium(value.rstrip(" \t"), readers)
    elif len(line) > MAX_VALUE:
        raise DecodeError(f"it has {len(line)} characters, more than {MAX_VALUE}")
    elif kind == "a" and equals:
        mid = readers[-1].mid_to_be(value)
        if mid is not None and any(reader.mid == mid for reader in readers[:-1]):
            raise DecodeError(f"the mid {mid!r} is given to two media")
        try:
            readers[-1].attribute(value)
        except CredentialsError as error:
            raise _SpoiledError(str(error)) from None
    elif not whole:
        raise DecodeError(f"{line[:32]!r} is neither an a= nor an m= line")
    elif len(kind) != 1 or not equals:
        raise DecodeError(f"{line[:32]!r} is not a line of a session description")


def _medium(value: str, readers: list[SectionReader]) -> None:
    """Begin a medium. A malformed `m=` line spoils the text: the lines below it belong to no other medium."""
    if len(readers) > MAX_MEDIA:
        raise _SpoiledError(f"there are more than {MAX_MEDIA} media")
    try:
        Section(media=value)
    except DecodeError as error:
        raise _SpoiledError(str(error)) from None
    readers.append(SectionReader(value))
