"""Signals: texts that two agents exchange over any channel, each a whole fragment (RFC 8840, section 9).

A signal carries the sender's description, and with it one candidate, several, or the end of candidates. A signal that
is lost or late costs only its own candidates. A restart has new credentials, and a number in an attribute that other
programs ignore.

    a=ice-ufrag:8hhY                                         the description: it identifies the generation
    a=ice-pwd:asd88fgpdd777uzjYhagZg
    a=polynya-generation:1
    m=audio 9 RTP/AVP 0                                      the stream
    a=mid:0
    a=candidate:1 1 UDP 2130706431 192.0.2.1 5000 typ host
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from polynya.core.errors import DecodeError
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description

from .fragment import Fragment
from .section import PSEUDO_MEDIA, Section

GENERATION: Final = "polynya-generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One signal of the other side. Each candidate comes with the number of its stream."""

    description: Description
    candidates: tuple[tuple[int, Candidate], ...] = ()
    ended: bool = False
    """The other side has signaled all candidates of this generation."""


def write_signal(description: Description, candidates: Iterable[tuple[int, Candidate]] = (), *, ended: bool) -> str:
    """Return the text of one signal."""
    by_stream: dict[int, list[Candidate]] = {}
    for stream, candidate in candidates:
        by_stream.setdefault(stream, []).append(candidate)
    session = Section(
        ufrag=description.ufrag,
        password=description.password,
        options=description.options,
        pacing=description.pacing,
        lite=description.lite,
        ended=ended,
        other=(f"{GENERATION}:{description.generation}",) if description.generation else (),
    )
    media = (
        Section(media=PSEUDO_MEDIA, mid=str(stream), candidates=tuple(found)) for stream, found in by_stream.items()
    )
    return Fragment(session=session, media=tuple(media)).to_sdp()


def read_signal(text: str) -> Signal:
    """Read a signal of `write_signal` or a fragment of another program. Raises DecodeError."""
    fragment = Fragment.parse(text)
    generation = 0
    for attribute in fragment.session.other:
        name, _, value = attribute.partition(":")
        if name == GENERATION:
            generation = _number(value)
    carrier = fragment.session if fragment.session.ufrag is not None or not fragment.media else fragment.media[0]
    return Signal(
        description=replace(carrier.description(fragment.session, generation), ignored=fragment.ignored),
        candidates=tuple(
            (place if mid is None or not mid.isdigit() else int(mid), replace(candidate, generation=generation))
            for place, mid, candidate in fragment.candidates()
        ),
        ended=fragment.session.ended or (bool(fragment.media) and all(section.ended for section in fragment.media)),
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise DecodeError(f"{GENERATION} {text[:32]!r} is not a number of at most 9 digits")
    return int(text)
