"""Candidate lines (RFC 8839, section 5.1; RFC 6544, section 4.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.ice import Candidate, CandidateType, TcpType, UnsupportedCandidate

BROWSER = (
    "candidate:842163049 1 udp 1677729535 198.51.100.7 46154 typ srflx raddr 0.0.0.0 rport 0 generation 2 ufrag EsAw "
    "network-id 1 network-cost 10"
)
LINES = [
    # RFC 8839, section 5.1 and appendix B
    "candidate:1 1 udp 1694498815 192.0.2.3 45664 typ srflx raddr 203.0.113.141 rport 8998",
    "candidate:1 1 udp 2130706431 203.0.113.141 8998 typ host",
    # RFC 6544, section 4.5
    "candidate:1 1 tcp 2128609279 10.0.1.1 9 typ host tcptype active",
    "candidate:2 1 tcp 2124414975 10.0.1.1 8998 typ host tcptype passive",
    "candidate:2 1 tcp 2124414975 10.0.1.1 8998 typ host tcptype so",
    # browsers
    BROWSER,
    "candidate:0 1 udp 2122252543 8a3c9d3e-6b1f-4f63-9dbb-3f1d1f2d4b10.local 51213 typ host",
    "candidate:10 2 udp 1 2001:db8::1 65535 typ relay raddr 2001:db8::2 rport 1",
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_read_and_written_back_as_it_was(line: str) -> None:
    candidate = Candidate.parse(line)
    assert str(candidate) == line
    assert Candidate.parse(f"a={line}\r\n") == candidate


def test_every_part_of_a_line_is_understood() -> None:
    candidate = Candidate.parse(LINES[5])
    assert candidate == Candidate(
        foundation="842163049",
        component=1,
        priority=1677729535,
        address=Address("198.51.100.7", 46154),
        type=CandidateType.SERVER_REFLEXIVE,
        related=Address("0.0.0.0", 0),
        generation=2,
        extensions=(("ufrag", "EsAw"), ("network-id", "1"), ("network-cost", "10")),
    )
    assert Candidate.parse(LINES[2]).tcp_type is TcpType.ACTIVE


def test_a_name_in_place_of_an_address_is_kept_for_whoever_resolves_it() -> None:
    """draft-ietf-mmusic-mdns-ice-candidates, section 3.2."""
    candidate = Candidate.parse(LINES[6])
    assert candidate.host_name == "8a3c9d3e-6b1f-4f63-9dbb-3f1d1f2d4b10.local"
    assert candidate.address.port == 51213


@pytest.mark.parametrize(("host", "hidden"), [("192.0.2.1", "0.0.0.0"), ("2001:db8::1", "::")])
def test_a_related_address_that_is_not_told_is_written_as_the_rfc_says(host: str, hidden: str) -> None:
    """RFC 8839, section 5.1: reflexive and relayed candidates always have one, host candidates never."""
    line = f"candidate:1 1 udp 1 {host} 5000 typ relay raddr {hidden} rport 9"
    candidate = Candidate.parse(f"candidate:1 1 udp 1 {host} 5000 typ relay")
    assert candidate.related is None and str(candidate) == line
    assert Candidate.parse(line) == candidate
    assert "raddr" not in str(Candidate.parse(f"candidate:1 1 udp 1 {host} 5000 typ host"))


@pytest.mark.parametrize(
    "line", ["candidate:1 1 udp 1 192.0.2.1 1 typ future", "candidate:1 1 udp 1 fe80::1%eth0 1 typ host"]
)
def test_what_is_unknown_and_well_formed_is_told_apart_from_what_is_wrong(line: str) -> None:
    """RFC 8839, section 5.1: such a line is to be ignored."""
    with pytest.raises(UnsupportedCandidate):
        Candidate.parse(line)


def test_addresses_become_canonical_and_transports_lower_case() -> None:
    candidate = Candidate.parse("candidate:1 1 UDP 1 2001:DB8:0:0::1 5 typ host")
    assert candidate.address == Address("2001:db8::1", 5)
    assert candidate.transport == "udp"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "does not begin with candidate:"),
        ("candidat:1 1 udp 1 192.0.2.1 1 typ host", "does not begin with candidate:"),
        ("candidate:1 1 udp 1 192.0.2.1 1 host", "lacks one of"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ", "lacks one of"),
        ("candidate:1  1 udp 1 192.0.2.1 1 typ host", "lacks one of"),
        (f"candidate:{'1' * 33} 1 udp 1 192.0.2.1 1 typ host", "foundation"),
        ("candidate:é 1 udp 1 192.0.2.1 1 typ host", "foundation"),
        ("candidate:1 0 udp 1 192.0.2.1 1 typ host", "component"),
        ("candidate:1 257 udp 1 192.0.2.1 1 typ host", "component"),
        ("candidate:1 x udp 1 192.0.2.1 1 typ host", "component"),
        ("candidate:1 1 u(p 1 192.0.2.1 1 typ host", "transport"),
        ("candidate:1 1 udp -1 192.0.2.1 1 typ host", "priority"),
        ("candidate:1 1 udp 4294967296 192.0.2.1 1 typ host", "priority"),
        ("candidate:1 1 udp 99999999999999999999 192.0.2.1 1 typ host", "priority"),
        ("candidate:1 1 udp \u0661 192.0.2.1 1 typ host", "priority"),
        ("candidate:1 1 udp 1 192.0.2.1 65536 typ host", "port"),
        ("candidate:1 1 udp 1 192.0.2.256 1 typ host", "address"),
        ("candidate:1 1 udp 1 fe80::1%eth0 1 typ host", "zone"),
        ("candidate:1 1 udp 1 2001:db8::g 1 typ host", "address"),
        ("candidate:1 1 udp 1 -bad- 1 typ host", "address"),
        ("candidate:1 1 udp 1 a..b 1 typ host", "address"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ magic", "unknown type 'magic'"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ host raddr", "extension without a value"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ host raddr 192.0.2.2 rport x", "rport"),
        ("candidate:1 1 tcp 1 192.0.2.1 1 typ host tcptype odd", "tcptype"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ host na\tme v", "extension"),
        ("candidate:1 1 udp 1 192.0.2.1 1 typ host name " + "x" * 300, "extension"),
        ("candidate:" + "1" * 2000, "longer than"),
    ],
)
def test_hostile_lines_are_refused_with_the_part_that_is_wrong(line: str, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        Candidate.parse(line)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for line in (text, f"candidate:{text}", f"candidate:1 1 udp 1 192.0.2.1 1 typ host {text}"):
        try:
            candidate = Candidate.parse(line)
        except DecodeError:
            continue
        assert Candidate.parse(str(candidate)) == candidate


ICE_CHARACTERS = "ABCXYZabcxyz0189+/"
tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12)
hosts = st.ip_addresses().map(str)
addresses = st.builds(Address.of, hosts, st.integers(0, 65535))
extensions = st.tuples(
    tokens.filter(lambda name: name not in ("raddr", "rport", "tcptype", "generation")),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20),
)


@given(
    st.builds(
        Candidate,
        foundation=st.text(ICE_CHARACTERS, min_size=1, max_size=32),
        component=st.integers(1, 256),
        transport=st.sampled_from(["udp", "tcp", "sctp"]),
        priority=st.integers(0, 2**32 - 1),
        address=addresses,
        type=st.sampled_from(CandidateType),
        related=st.none() | addresses.filter(lambda address: address.port != 9),
        tcp_type=st.none() | st.sampled_from(TcpType),
        generation=st.integers(0, 999_999_999),
        extensions=st.lists(extensions, max_size=5).map(tuple),
    )
)
def test_every_candidate_survives_the_way_there_and_back(candidate: Candidate) -> None:
    assert Candidate.parse(str(candidate)) == candidate
