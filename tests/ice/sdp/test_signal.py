"""The texts that two sides signal (RFC 8840, section 9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.ice.candidates import Candidate, CandidateType
from polynya.ice.description import Description
from polynya.ice.sdp.signal import Signal, read_signal, write_signal

ICE_CHARS = st.sampled_from("ABCXYZabcxyz0189+/")

descriptions = st.builds(
    Description,
    ufrag=st.text(ICE_CHARS, min_size=4, max_size=32),
    password=st.text(ICE_CHARS, min_size=22, max_size=64),
    options=st.sampled_from([(), ("ice2",), ("ice2", "trickle"), ("renomination",)]),
    lite=st.booleans(),
    pacing=st.one_of(st.none(), st.integers(0, 1000).map(lambda number: number / 1000)),
    generation=st.integers(0, 999_999_999),
)
addresses = st.builds(
    Address.of,
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    st.integers(1, 65535),
)


@st.composite
def signals(draw: st.DrawFn) -> Signal:
    description = draw(descriptions)
    candidates = st.builds(
        Candidate,
        foundation=st.text(ICE_CHARS, min_size=1, max_size=32),
        component=st.integers(1, 256),
        priority=st.integers(1, 2**31 - 1),
        address=addresses,
        type=st.just(CandidateType.HOST),
        extensions=st.just((("ufrag", description.ufrag),)),
        generation=st.just(description.generation),
    )
    found = draw(st.lists(st.tuples(st.integers(0, 3), candidates), max_size=4))
    ended = draw(st.booleans())
    in_order = sorted(found, key=lambda each: [stream for stream, _ in found].index(each[0]))
    return Signal(description=description, candidates=tuple(in_order), ended=ended)


@given(signals())
def test_every_signal_survives_the_way_there_and_back(signal: Signal) -> None:
    assert read_signal(write_signal(signal.description, signal.candidates, ended=signal.ended)) == signal


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for what in (text, f"a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n{text}"):
        try:
            read_signal(what)
        except DecodeError:
            continue


def test_a_restart_is_counted_in_an_attribute_that_other_programs_pass_over() -> None:
    first = Description(ufrag="8hhY", password="asd88fgpdd777uzjYhagZg")
    later = Description(ufrag="9uB6", password="YH75Fviy6338Vbrhrlp8Yh", generation=2)
    assert "generation" not in write_signal(first, ended=False)
    assert write_signal(later, ended=True) == (
        "a=ice-ufrag:9uB6\r\na=ice-pwd:YH75Fviy6338Vbrhrlp8Yh\r\na=polynya-generation:2\r\na=end-of-candidates\r\n"
    )


@pytest.mark.parametrize("mid", ["audio", "18446744073709551616"])
def test_a_mid_that_is_no_stream_of_ours_does_no_harm(mid: str) -> None:
    text = (
        "a=ice-ufrag:8hhY\r\na=ice-pwd:asd88fgpdd777uzjYhagZg\r\nm=audio 9 RTP/AVP 0\r\n"
        f"a=mid:{mid}\r\na=candidate:1 1 UDP 1 192.0.2.1 5000 typ host\r\na=end-of-candidates\r\n"
    )
    signal = read_signal(text)
    assert signal.ended and [stream for stream, _ in signal.candidates] == [0 if mid == "audio" else 2**64]
