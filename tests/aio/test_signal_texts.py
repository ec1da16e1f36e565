"""Joined and short forms of signals."""

from __future__ import annotations

from random import Random

import pytest

from polynya.aio.signal_texts import MAX_TEXT, PREFIX, fragments, shorten
from polynya.core.errors import DecodeError, UsageError
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description, draw_credentials
from polynya.ice.sdp.signal import read_signal, write_signal

CANDIDATES = [
    "candidate:1 1 udp 2130706431 192.168.1.23 51234 typ host",
    "candidate:2 1 udp 1694498815 203.0.113.77 51234 typ srflx raddr 192.168.1.23 rport 51234",
    "candidate:3 1 udp 16777215 198.51.100.5 61003 typ relay raddr 203.0.113.77 rport 51234",
]


def description(seed: int = 1) -> Description:
    ufrag, password = draw_credentials(Random(seed))
    return Description(ufrag=ufrag, password=password, options=("ice2", "trickle"), pacing=0.005)


def fragment(*lines: str, seed: int = 1, ended: bool = False) -> str:
    return write_signal(description(seed), [(0, Candidate.parse(line)) for line in lines], ended=ended)


def test_a_host_a_reflexive_and_a_relayed_candidate_fit_a_short_line() -> None:
    whole = fragment(*CANDIDATES, ended=True)
    lengths = {len(shorten(fragment(*CANDIDATES, seed=seed, ended=True))) for seed in range(50)}
    assert len(whole) == 395 and max(lengths) <= 150, lengths
    assert fragments(shorten(whole)) == [whole]


@pytest.mark.parametrize("separator", ["", "\n", "\r\n\r\n", "\n  \n"])
def test_joined_fragments_are_split_again(separator: str) -> None:
    texts = [fragment(), *(fragment(line) for line in CANDIDATES), fragment(ended=True), fragment(seed=2)]
    assert fragments(separator.join(texts)) == texts


def test_short_forms_and_fragments_may_be_joined() -> None:
    one, two = fragment(*CANDIDATES, ended=True), fragment(CANDIDATES[0], seed=2)
    assert fragments("\n".join([shorten(one), two, shorten(two), shorten(one)])) == [one, two, two, one]


def test_a_short_form_that_a_mail_program_wrapped_is_read() -> None:
    text = shorten(fragment(*CANDIDATES, ended=True))
    wrapped = "\r\n  ".join(text[start : start + 40] for start in range(0, len(text), 40))
    assert fragments(f"\n {wrapped} \n") == [fragment(*CANDIDATES, ended=True)]


def test_a_fragment_that_repeats_the_credentials_for_each_medium_is_one() -> None:
    credentials = "a=ice-ufrag:8hhY\r\na=ice-pwd:asd88fgpdd777uzjYhagZg\r\n"
    media = [
        f"m=audio 9 RTP/AVP 0\r\na=mid:{mid}\r\n{credentials}a=candidate:1 1 UDP 2130706431 192.0.2.1 5000 typ host\r\n"
        for mid in (0, 1)
    ]
    text = credentials + "".join(media)
    assert fragments(text) == [text] and len(read_signal(text).candidates) == 2


@pytest.mark.parametrize("text", [b"a=ice-ufrag:8hhY", bytearray(), memoryview(b"")])
def test_bytes_are_refused_with_what_to_do(text: object) -> None:
    with pytest.raises(UsageError, match=r"text, not .*: pass data\.decode\(\)"):
        fragments(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, 1, ["a"]])
def test_other_types_are_refused(text: object) -> None:
    with pytest.raises(UsageError, match="a remote signal is text, not"):
        fragments(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        PREFIX,
        PREFIX + "A",
        PREFIX + "not base64 !",
        PREFIX + "AAAA",
        shorten(fragment(*CANDIDATES))[:-1],
        shorten(fragment(*CANDIDATES)) + "AA",
        shorten("x" * 2 * MAX_TEXT),
    ],
)
def test_a_damaged_short_form_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        [read_signal(each) for each in fragments(text)]


@pytest.mark.parametrize("text", ["", " \n", "x" * (MAX_TEXT + 1)])
def test_an_empty_text_and_a_huge_one_are_decode_errors(text: str) -> None:
    with pytest.raises(DecodeError, match=r"missing|longer"):
        fragments(text)
