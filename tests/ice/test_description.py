"""Credentials, options and pacing as signaled (RFC 8839, section 5; RFC 8445, section 5.3)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.errors import DecodeError
from polynya.core.instants import MILLISECOND
from polynya.ice import Description
from polynya.ice.description import draw_credentials, negotiated_pacing

UFRAG, PASSWORD = "8hhY", "asd88fgpdd777uzjYhagZg"
CREDENTIALS = f"a=ice-ufrag:{UFRAG}\na=ice-pwd:{PASSWORD}\n"
OTHERS = "a=ice-ufrag:9uB6\na=ice-pwd:YH75Fviy6338Vbrhrlp8Yh\n"
SECTION = "m=audio 9 UDP/TLS/RTP/SAVPF 111\nc=IN IP4 0.0.0.0\n" + CREDENTIALS + "a=ice-options:trickle\n"
ice_text = st.text("ABCXYZabcxyz0189+/", min_size=22, max_size=40)


def test_the_lines_of_the_rfcs_example_are_read() -> None:
    text = f"v=0\r\na=ice-options:ice2 trickle\r\na=ice-pacing:50\r\na=ice-ufrag:{UFRAG}\r\na=ice-pwd:{PASSWORD}\r\n"
    description = Description.parse(text)
    assert description == Description(ufrag=UFRAG, password=PASSWORD, options=("ice2", "trickle"), pacing=0.05)
    assert description.ice2 and description.trickle and not description.renomination and not description.lite


@given(
    st.builds(
        Description,
        ufrag=ice_text,
        password=ice_text,
        options=st.lists(st.sampled_from(["ice2", "trickle", "renomination", "x-y"]), unique=True).map(tuple),
        lite=st.booleans(),
        pacing=st.none() | st.integers(0, 10_000).map(lambda ms: ms / 1000),
    )
)
def test_every_description_survives_the_way_there_and_back(description: Description) -> None:
    assert Description.parse(description.to_sdp()) == description


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "lacks ice-ufrag or ice-pwd"),
        (f"a=ice-ufrag:{UFRAG}", "lacks"),
        (f"a=ice-ufrag:abc\na=ice-pwd:{PASSWORD}", "ufrag"),
        (f"a=ice-ufrag:{UFRAG}\na=ice-pwd:short", "password"),
        (f"a=ice-ufrag:{UFRAG}\na=ice-ufrag:other\na=ice-pwd:{PASSWORD}", "line 2: ice-ufrag is given twice"),
        (f"{CREDENTIALS}m=audio 9 X 0\na=ice-ufrag:half", "the media section of line 3 lacks ice-ufrag or ice-pwd"),
        (
            f"m=audio 9 X 0\n{CREDENTIALS}m=video 9 X 0\n{OTHERS}",
            "the media section of line 1 and of the media section of line 4 differ: read the text with Fragment",
        ),
        ("a" * (1 << 19), "longer than"),
        (f"a=x:1\u2028{CREDENTIALS}", "lacks"),
    ],
)
def test_hostile_lines_are_refused_and_named(text: str, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        Description.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "v=0\ns=-\na=group:BUNDLE 0 1\n" + SECTION + "a=mid:0\n" + SECTION.replace("audio", "video") + "a=mid:1\n",
        "v=0\n" + CREDENTIALS + "a=ice-options:trickle\n" + SECTION,
        SECTION + "m=video 0 X 0\n" + OTHERS,
        "m=video 0 X 0\n" + OTHERS + SECTION,
        OTHERS + SECTION,
        SECTION + "m=video 0 X 0\na=bundle-only\n" + CREDENTIALS,
        f"a=ice-ufrag:{UFRAG}\na=ice-options:trickle\nm=audio 9 X 0\na=ice-pwd:{PASSWORD}\n",
        CREDENTIALS + "a=ice-options:trickle\nm=audio 0 X 0\n" + OTHERS,
        "m=audio 0 X 0\n" + CREDENTIALS + "a=ice-options:trickle\n",
    ],
)
def test_the_sections_of_a_browsers_description_are_one_description(text: str) -> None:
    """RFC 8839, section 5.4: those of the media count first; a bundle repeats them (RFC 8843, section 7.1.1)."""
    for line_end in ("\n", "\r\n", "\r"):
        read = Description.parse(text.replace("\n", line_end))
        assert read == Description(ufrag=UFRAG, password=PASSWORD, options=("trickle",)) and not read.ignored


def test_options_of_both_levels_count_once() -> None:
    text = f"a=ice-options:ice2 trickle\nm=audio 9 X 0\n{CREDENTIALS}a=ice-options:trickle renomination\n"
    assert Description.parse(text).options == ("ice2", "trickle", "renomination")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a=ice-pacing:fast", "ice-pacing 'fast' is not a number"),
        (f"a=ice-options:{'x ' * 40}", "the ICE options are not at most 32 tokens"),
        ("a=note:\ud800", "it has a surrogate"),
        ("a=ice-pacing:20\na=ice-pacing:30", "ice-pacing is given twice"),
        ("", None),
        ("a=fingerprint:" + "x" * 5000, None),
        ("a=candidate:1 udp 1 192.0.2.1 1 typ host", None),
        ("a=ice-lite \t", None),
        ("hello", None),
    ],
)
def test_an_odd_line_costs_itself_and_is_reported(line: str, reason: str | None) -> None:
    read = Description.parse(f"a=ice-ufrag:{UFRAG} \na=ice-pwd:{PASSWORD}\t\na=ice-options:ice2 \n{line}\n\n")
    assert (read.ufrag, read.password, read.options[:1]) == (UFRAG, PASSWORD, ("ice2",))
    assert len(read.ignored) == (0 if reason is None else 1)
    assert reason is None or reason in read.ignored[0]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        Description.parse(f"a=ice-ufrag:{UFRAG}\na=ice-pwd:{PASSWORD}\n{text}")
        Description.parse(text)
    except DecodeError:
        pass


def test_drawn_credentials_have_the_randomness_that_the_rfc_asks_for_and_come_from_the_seed() -> None:
    """RFC 8445, section 5.3: at least 24 bits and 128 bits; 6 bits a character."""
    ufrag, password = draw_credentials(Random(1))
    assert len(ufrag) * 6 >= 24 and len(password) * 6 >= 128
    assert draw_credentials(Random(1)) == (ufrag, password) != draw_credentials(Random(2))
    Description(ufrag=ufrag, password=password)


def test_the_password_is_not_shown() -> None:
    assert PASSWORD not in repr(Description(ufrag=UFRAG, password=PASSWORD))


@pytest.mark.parametrize(("theirs", "agreed"), [(None, 50), (5, 5), (20, 20), (0, 5), (100, 100)])
def test_the_larger_pacing_counts_and_silence_means_50_ms(theirs: int | None, agreed: int) -> None:
    """RFC 8839, section 5.7."""
    pacing = None if theirs is None else theirs / 1000
    remote = Description(ufrag=UFRAG, password=PASSWORD, pacing=pacing)
    assert negotiated_pacing(5 * MILLISECOND, remote, 50 * MILLISECOND) == agreed * MILLISECOND
