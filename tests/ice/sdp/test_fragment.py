"""ICE in session descriptions and fragments (RFC 8839; RFC 8840, section 9)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.ice import Candidate, CandidateType, Description, Fragment, RemoteCandidate, Section, TcpType
from polynya.ice.sdp.candidate import format_remote_candidates, parse_remote_candidates
from polynya.ice.sdp.fragment import MAX_MEDIA, MAX_TEXT, default_destination_is_candidate
from polynya.ice.sdp.section import MAX_ATTRIBUTES, MAX_VALUE, PSEUDO_MEDIA

UFRAG, PASSWORD = "8hhY", "asd88fgpdd777uzjYhagZg"

# RFC 8840, section 4.4 and 9: candidates for two media in one body
FRAGMENT = f"""a=ice-options:trickle ice2
a=ice-ufrag:{UFRAG}
a=ice-pwd:{PASSWORD}
a=group:BUNDLE 1 2
m=audio 9 RTP/AVP 0
a=mid:1
a=rtcp-mux
a=candidate:1 1 UDP 2130706431 192.0.2.1 5000 typ host
a=candidate:2 1 UDP 1694498815 192.0.2.3 5010 typ srflx raddr 10.0.1.1 rport 8998
m=video 9 RTP/AVP 0
a=mid:2
a=ice-ufrag:9uB6
a=ice-pwd:YH75Fviy6338Vbrhrlp8Yh
a=candidate:1 1 UDP 2130706431 192.0.2.1 5002 typ host
a=end-of-candidates
"""

# what a browser says, shortened
BROWSER = f"""v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=extmap-allow-mixed
a=msid-semantic: WMS
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
b=AS:30
a=candidate:842163049 1 udp 1677729535 198.51.100.7 46154 typ srflx raddr 0.0.0.0 rport 0 generation 0 network-cost 999
a=ice-ufrag:{UFRAG}
a=ice-pwd:{PASSWORD}
a=ice-options:trickle
a=fingerprint:sha-256 7B:8B:F0
a=setup:actpass
a=mid:0
a=sctp-port:5000
m=audio 0 UDP/TLS/RTP/SAVPF 0
a=inactive
"""


def test_a_fragment_with_two_media_is_read() -> None:
    fragment = Fragment.parse(FRAGMENT.replace("\n", "\r\n"))
    audio, video = fragment.media
    assert (audio.mid, video.mid) == ("1", "2")
    assert fragment.session.other == ("group:BUNDLE 1 2",) and audio.other == ("rtcp-mux",)
    assert [(one.stream, one.mid, one.candidate.address.port) for one in fragment.candidates()] == [
        (0, "1", 5000),
        (0, "1", 5010),
        (1, "2", 5002),
    ]
    assert [fragment.ended(stream) for stream in (0, 1)] == [False, True]


def test_credentials_of_the_media_count_before_those_of_the_session() -> None:
    """RFC 8839, section 5.4; and a candidate is of the generation whose ufrag stands with it."""
    fragment = Fragment.parse(FRAGMENT)
    audio, video = (section.description(fragment.session, 3) for section in fragment.media)
    assert audio == Description(ufrag=UFRAG, password=PASSWORD, options=("trickle", "ice2"), generation=3)
    assert (video.ufrag, video.password) == ("9uB6", "YH75Fviy6338Vbrhrlp8Yh")
    ufrags = [dict(one.candidate.extensions)["ufrag"] for one in fragment.candidates()]
    assert ufrags == [UFRAG, UFRAG, "9uB6"]


def test_a_candidate_that_means_something_unknown_is_ignored_and_spoils_nothing() -> None:
    """RFC 8839, section 5.1: unknown types and addresses without meaning here are ignored, and written again."""
    new = "candidate:9 1 UDP 1 192.0.2.9 9 typ future x-y z"
    zoned = "candidate:9 1 UDP 1 fe80::1%eth0 9 typ host"
    known = "candidate:1 1 udp 1 192.0.2.1 1 typ host"
    text = f"m={PSEUDO_MEDIA}\r\na={known}\r\na={new}\r\na={zoned}\r\n"
    fragment = Fragment.parse(text)
    assert [str(found.candidate) for found in fragment.candidates()] == [known]
    assert fragment.media[0].unsupported == (new, zoned)
    assert "unknown type 'future'" in fragment.ignored[0] and "zone" in fragment.ignored[1]
    assert fragment.to_sdp() == text


def test_half_a_pair_of_credentials_is_refused() -> None:
    fragment = Fragment.parse(
        f"a=ice-ufrag:{UFRAG}\na=ice-pwd:{PASSWORD}\nm={PSEUDO_MEDIA}\na=mid:x\na=ice-ufrag:otherone\n"
    )
    with pytest.raises(DecodeError, match="missing for x"):
        fragment.media[0].description(fragment.session)


def test_lf_and_cr_lf_are_read_alike_with_and_without_the_last() -> None:
    texts = [FRAGMENT, FRAGMENT.replace("\n", "\r\n"), FRAGMENT.removesuffix("\n")]
    assert len({str(Fragment.parse(text)) for text in texts}) == 1


def test_what_was_read_is_written_back_the_same() -> None:
    fragment = Fragment.parse(FRAGMENT)
    again = fragment.to_sdp()
    assert Fragment.parse(again) == fragment
    assert sorted(again.splitlines()) == sorted(FRAGMENT.replace("UDP", "udp").splitlines())


def test_a_browsers_description_is_read_past_what_is_not_of_ice() -> None:
    fragment = Fragment.of_session(BROWSER)
    data, audio = fragment.media
    assert data.description(fragment.session).trickle
    assert [one.candidate.address.port for one in fragment.candidates()] == [46154]
    assert "sctp-port:5000" in data.other
    assert audio.rejected and not data.rejected
    assert Fragment.parse(BROWSER).ignored[0] == "line 1: 'v=0' is neither an a= nor an m= line"


def test_attributes_of_the_session_and_of_the_media_are_all_understood() -> None:
    """RFC 8839, sections 5.1 to 5.7."""
    fragment = Fragment.parse(
        "a=ice-lite\na=ice-pacing:20\na=end-of-candidates\nm=audio 5000 RTP/AVP 0\n"
        "a=remote-candidates:1 192.0.2.3 45664 2 2001:db8::1 1\na=ice-mismatch\n"
    )
    assert fragment.session.lite and fragment.session.pacing == 0.02
    assert fragment.media[0].mismatch
    assert fragment.media[0].remote_candidates == (
        RemoteCandidate(1, Address("192.0.2.3", 45664)),
        RemoteCandidate(2, Address("2001:db8::1", 1)),
    )
    assert fragment.ended(0)
    assert Fragment.parse(fragment.to_sdp()) == fragment


# ------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a=ice-ufrag:abc", "line 1: the ufrag 'abc' is not 4 to 256"),
        ("a=ice-pwd:secret", "line 1: the password is not 22 to 256"),
        ("a=ice-ufrag:abcd\na=ice-ufrag:efgh", "line 2: ice-ufrag is given twice"),
        ("m=audio", "line 1: 'audio' is not the value of an m= line"),
        ("m=audio 9 RTP/AVP", "line 1"),
        ("m=audio nine RTP/AVP 0", "line 1"),
        (f"m={PSEUDO_MEDIA}\n" * (MAX_MEDIA + 1), f"line {MAX_MEDIA + 1}: there are more than {MAX_MEDIA} media"),
        ("a" * (MAX_TEXT + 1), "longer than"),
    ],
)
def test_text_that_cannot_be_used_is_refused_with_line_and_reason(text: str, why: str) -> None:
    for read in (Fragment.parse, Fragment.of_session):
        with pytest.raises(DecodeError, match=why):
            read(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("b=AS:5", "line 1: 'b=AS:5' is neither an a= nor an m= line"),
        ("a", "line 1: 'a' is neither"),
        ("a=", "line 1: '' is not an attribute"),
        (" a=ice-lite", "line 1"),
        ("a=ice-lite:yes", "line 1: ice-lite has no value"),
        ("a=ice-pacing:5\na=ice-pacing:50", "line 2: ice-pacing is given twice"),
        ("a=ice-options:" + "x " * 40, "line 1: the ICE options"),
        ("a=ice-pacing:soon", "line 1: ice-pacing 'soon'"),
        ("a=mid:1", "line 1: mid is only allowed below an m= line"),
        ("a=candidate:1 1 udp 1 192.0.2.1 1 typ host", "line 1: candidate is only allowed below"),
        ("a=ice-mismatch", "line 1: ice-mismatch is only allowed below"),
        (f"m={PSEUDO_MEDIA}\na=ice-lite", "line 2: ice-lite is only allowed above the first m= line"),
        (f"m={PSEUDO_MEDIA}\na=ice-pacing:50", "line 2: ice-pacing is only allowed above"),
        (f"m={PSEUDO_MEDIA}\na=mid:a b", "line 2: 'a b' is not a token"),
        (f"m={PSEUDO_MEDIA}\na=mid:1\nm={PSEUDO_MEDIA}\na=mid:1", "line 4: the mid '1' is given to two media"),
        (f"m={PSEUDO_MEDIA}\na=mid:1\na=mid:2", "line 3: mid is given twice"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 udp 1 192.0.2.1 1 typ [", "line 2: a candidate has a type that is not"),
        (f"m={PSEUDO_MEDIA}\na=remote-candidates:1 192.0.2.1", "line 2: remote-candidates are not"),
        (f"m={PSEUDO_MEDIA}\na=remote-candidates:0 192.0.2.1 1", "line 2: remote-candidates have a component"),
        (f"m={PSEUDO_MEDIA}\na=remote-candidates:1 192.0.2.1%eth0 1", "line 2"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 udp 1 192.0.2.1 1 typ host", "line 2: a candidate lacks one of"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 udp 1 999.0.2.1 1 typ host", "line 2: a candidate has an address"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 udp 1 192.0.2.1 1 TYP HOST", "line 2: a candidate lacks one of"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 udp 1 192.0.2.1 1 typ HOST", "line 2: a candidate has the unknown type"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 tcp 1 192.0.2.1 1 typ host tcptype x", "line 2: a candidate has the unk"),
        (f"m={PSEUDO_MEDIA}\na=candidate:1 1 udp 1 192.0.2.1 1 typ host x \ud800", "line 2: a candidate has the mal"),
        ("a=x:\ud800", "line 1"),
        ("a=fingerprint:" + "x" * 5000, "line 1: it has 5014 characters"),
        (f"m={PSEUDO_MEDIA}\na=remote-candidates:1 192.0.2.1 port", "line 2"),
        (f"m={PSEUDO_MEDIA}\na=remote-candidates:1 host.example 1", "line 2: 'host.example' is not an IP address"),
        ("a=x:\x00", "line 1"),
        ("a=" + "x" * (MAX_VALUE + 1), "line 1: it has"),
        ("a=x\n" * (MAX_ATTRIBUTES + 1), f"line {MAX_ATTRIBUTES + 1}: a section has more than"),
    ],
)
def test_an_odd_line_costs_itself_and_is_reported(text: str, why: str) -> None:
    """The lines around it are read as if it were not there."""
    after = f"m={PSEUDO_MEDIA}\na=ice-ufrag:{UFRAG}\t\na=candidate:1 1 udp 1 192.0.2.1 1 typ host  \n\n \n"
    fragment = Fragment.parse(f"{text}\n{after}")
    [ignored] = fragment.ignored
    assert ignored.startswith(why)
    assert fragment.media[-1] == Fragment.parse(after).media[0] and fragment.media[-1].candidates
    assert Fragment.parse(fragment.to_sdp()) == fragment


def test_a_session_description_is_lines_too() -> None:
    fragment = Fragment.of_session("v=0\nhello\n\na=ice-lite\n")
    assert fragment.ignored == ("line 2: 'hello' is not a line of a session description",)
    assert fragment.session.lite


def test_reports_of_ignored_lines_are_bounded() -> None:
    assert len(Fragment.parse("hello\n" * 1000).ignored) == 32


def test_other_attributes_leave_room_for_the_candidates() -> None:
    """A browser's section may have hundreds of codec and source lines before its candidates."""
    text = f"m={PSEUDO_MEDIA}\n" + "a=ssrc:1\n" * (MAX_ATTRIBUTES + 1) + "a=candidate:1 1 udp 1 192.0.2.1 1 typ host\n"
    assert len(list(Fragment.parse(text).candidates())) == 1


def test_zones_survive_the_way_there_and_back() -> None:
    text = (
        f"m={PSEUDO_MEDIA}\r\na=candidate:1 1 udp 1 192.0.2.1 1 typ srflx raddr fe80::1%eth0 rport 5\r\n"
        "a=candidate:9 1 udp 1 fe80::2%eth0 9 typ host\r\na=remote-candidates:1 fe80::3%eth0 7\r\n"
    )
    fragment = Fragment.parse(text)
    assert fragment.media[0].candidates[0].related == Address("fe80::1", 5, "eth0")
    assert fragment.to_sdp() == text


def test_the_password_of_a_refused_line_is_not_told() -> None:
    with pytest.raises(DecodeError) as refused:
        Fragment.parse("a=ice-pwd:not?a?password?but?a?secret")
    assert "secret" not in str(refused.value)
    assert "asd88" not in repr(Fragment.parse(FRAGMENT))


@pytest.mark.parametrize(
    "fields",
    [
        {"other": ("x:1\r\na=ice-lite",)},
        {"other": ("x\u2028y",)},
        {"other": ("ice-lite",)},
        {"other": ("candidate:1",)},
        {"other": ("x",) * (MAX_ATTRIBUTES + 1)},
        {"media": "audio 9 RTP/AVP 0\r\na=ice-lite"},
        {"media": PSEUDO_MEDIA, "mid": "1\r\n"},
        {"media": PSEUDO_MEDIA, "lite": True},
        {"mid": "1"},
        {"mismatch": True},
        {"ufrag": "a b c d"},
        {"password": "short"},
        {"options": ("a b",)},
        {"media": PSEUDO_MEDIA, "unsupported": ("candidate:1 1 udp 1 192.0.2.1 1 typ host",)},
        {"media": PSEUDO_MEDIA, "unsupported": ("candidate:1 1 udp 1 192.0.2.1 1 typ new\r\na=x",)},
        {"media": PSEUDO_MEDIA, "unsupported": ("x",)},
        {"unsupported": ("candidate:1 1 udp 1 192.0.2.1 1 typ new",)},
    ],
)
def test_nothing_can_be_slipped_into_a_section_that_is_made_by_hand(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        Section(**fields)


def test_a_fragment_made_by_hand_is_held_to_the_same_rules() -> None:
    medium = Section(media=PSEUDO_MEDIA, mid="1")
    for wrong in (
        {"session": medium},
        {"media": (Section(),)},
        {"media": (medium, medium)},
        {"media": (Section(media=PSEUDO_MEDIA),) * 200},
    ):
        with pytest.raises(DecodeError):
            Fragment(**wrong)  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (Fragment.parse, Fragment.of_session):
        for prefix in ("", f"m={PSEUDO_MEDIA}\na="):
            try:
                fragment = read(prefix + text)
            except DecodeError:
                continue
            assert Fragment.parse(fragment.to_sdp()) == fragment


# ------------------------------------------------------------------------------------------------------- there and back

ice_text = st.text("ABCXYZabcxyz0189+/", min_size=22, max_size=40)
tokens = st.text("abcXYZ019-.!", min_size=1, max_size=12)
addresses = st.builds(
    Address.of,
    st.ip_addresses().map(str).filter(lambda host: "%" not in host),
    st.integers(0, 65535),
)
candidates = st.builds(
    Candidate,
    foundation=st.text("abAB01+/", min_size=1, max_size=32),
    component=st.integers(1, 256),
    priority=st.integers(0, 2**32 - 1),
    address=addresses,
    type=st.sampled_from(CandidateType),
    transport=st.sampled_from(["udp", "tcp"]),
    related=st.none() | addresses.filter(lambda address: address.port != 9),
    tcp_type=st.none() | st.sampled_from(TcpType),
    extensions=st.lists(st.tuples(tokens.map(lambda name: f"x-{name}"), tokens), max_size=3).map(tuple),
    generation=st.integers(0, 9),
)
others = st.lists(
    st.builds(
        lambda name, value: f"x-{name}{value}", tokens, st.just("") | st.text("ab :=/é\t", max_size=8).map(":{}".format)
    ),
    max_size=3,
).map(tuple)
common = {
    "ufrag": st.none() | ice_text,
    "password": st.none() | ice_text,
    "options": st.lists(tokens, max_size=3).map(tuple),
    "ended": st.booleans(),
    "other": others,
}
sessions = st.builds(
    Section, pacing=st.none() | st.integers(0, 1000).map(lambda ms: ms / 1000), lite=st.booleans(), **common
)
media_sections = st.builds(
    Section,
    media=st.sampled_from([PSEUDO_MEDIA, "video 5000/2 UDP/TLS/RTP/SAVPF 96 97", "application 0 UDP/DTLS/SCTP x"]),
    mid=st.none() | tokens,
    mismatch=st.booleans(),
    candidates=st.lists(candidates, max_size=3).map(tuple),
    remote_candidates=st.lists(st.builds(RemoteCandidate, st.integers(1, 256), addresses), max_size=3).map(tuple),
    **common,
)


@given(sessions, st.lists(media_sections, max_size=4, unique_by=lambda section: section.mid or id(section)))
def test_every_fragment_survives_the_way_there_and_back(session: Section, media: list[Section]) -> None:
    fragment = Fragment(session=session, media=tuple(media))
    assert Fragment.parse(fragment.to_sdp()) == fragment
    assert Fragment.of_session("v=0\r\n" + fragment.to_sdp()) == fragment


@given(st.lists(st.builds(RemoteCandidate, st.integers(1, 256), addresses), min_size=1, max_size=5))
def test_remote_candidates_survive_the_way_there_and_back(found: list[RemoteCandidate]) -> None:
    """RFC 8839, section 5.2."""
    assert list(parse_remote_candidates(format_remote_candidates(found))) == found


# ------------------------------------------------------------------------------------------------------------ mismatch


@pytest.mark.parametrize(
    ("media", "connection", "lines", "fits"),
    [
        ("audio 45664 RTP/AVP 0", "192.0.2.3", ("192.0.2.3 45664",), True),
        ("audio 45664 RTP/AVP 0", "192.0.2.99", ("192.0.2.3 45664",), False),
        ("audio 45665 RTP/AVP 0", "192.0.2.3", ("192.0.2.3 45664",), False),
        ("audio 9 RTP/AVP 0", "0.0.0.0", (), True),
        ("audio 9 RTP/AVP 0", "::", (), True),
        ("audio 0 RTP/AVP 0", "192.0.2.99", (), True),
        ("audio 45664 RTP/AVP 0", "host.example", (), True),
        ("audio 45664 RTP/AVP 0", "192.0.2.3", ("a.local 45664",), True),
    ],
)
def test_a_rewritten_default_destination_is_noticed(
    media: str, connection: str, lines: tuple[str, ...], fits: bool
) -> None:
    """RFC 8839, section 3.2.5; RFC 8840, section 4.3.1."""
    section = Section(
        media=media, candidates=tuple(Candidate.parse(f"candidate:1 1 udp 1 {line} typ host") for line in lines)
    )
    assert default_destination_is_candidate(section, connection) is fits
