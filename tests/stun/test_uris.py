"""RFC 7064 and 7065: the URIs of STUN and TURN servers."""

import pytest

from polynya.core.errors import ConfigurationError
from polynya.core.flows import Transport
from polynya.stun.uris import StunUri, TurnUri


@pytest.mark.parametrize(
    ("text", "host", "port", "transport"),
    [
        ("stun:example.org", "example.org", 3478, Transport.UDP),
        ("stuns:example.org", "example.org", 5349, Transport.TLS),
        ("stun:example.org:8000", "example.org", 8000, Transport.UDP),
        ("stuns:192.0.2.1:443", "192.0.2.1", 443, Transport.TLS),
        ("stun:[2001:db8::1]", "2001:db8::1", 3478, Transport.UDP),
        ("stun:[2001:db8::1]:19302", "2001:db8::1", 19302, Transport.UDP),
        ("stun:localhost", "localhost", 3478, Transport.UDP),
        ("stun:_a-b.example.", "_a-b.example.", 3478, Transport.UDP),
    ],
)
def test_a_stun_uri_is_read_and_given_back(text: str, host: str, port: int, transport: Transport) -> None:
    uri = StunUri.parse(text)
    assert (uri.host, uri.port, uri.transport) == (host, port, transport)
    assert str(uri) == text


@pytest.mark.parametrize(
    ("text", "host", "port", "transport"),
    [
        ("turn:example.org", "example.org", 3478, Transport.UDP),
        ("turn:example.org?transport=udp", "example.org", 3478, Transport.UDP),
        ("turn:example.org?transport=tcp", "example.org", 3478, Transport.TCP),
        ("turns:example.org", "example.org", 5349, Transport.TLS),
        ("turns:example.org:443?transport=tcp", "example.org", 443, Transport.TLS),
        ("turns:[2001:db8::1]:443?transport=tcp", "2001:db8::1", 443, Transport.TLS),
    ],
)
def test_a_turn_uri_is_read_and_given_back(text: str, host: str, port: int, transport: Transport) -> None:
    uri = TurnUri.parse(text)
    assert (uri.host, uri.port, uri.transport) == (host, port, transport)
    assert str(uri) == text


def test_scheme_transport_and_address_are_given_back_in_one_spelling() -> None:
    assert str(StunUri.parse("STUN:[2001:DB8:0::1]")) == "stun:[2001:db8::1]"
    assert str(TurnUri.parse("TURNS:h?transport=TCP")) == "turns:h?transport=tcp"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stun",
        "stun:",
        "stun:?transport=udp",
        "stun:example.org?transport=udp",
        "stun://example.org",
        "stun:user@example.org",
        "stun:example.org:",
        "stun:example.org:0",
        "stun:example.org:65536",
        "stun:example.org:-1",
        "stun:example.org:\u0663\u0664",
        "stun:example.org:80:80",
        "stun:2001:db8::1",
        "stun:[192.0.2.1]",
        "stun:[fe80::1%eth0]",
        "stun:[2001:db8::1",
        "stun:[]",
        "stun:256.1.1.1",
        "stun:-a.example",
        "stun:a..example",
        "stun:ex ample.org",
        "stun:example.org\n",
        "turn:example.org",
        "http:example.org",
    ],
)
def test_what_is_not_a_stun_uri_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        StunUri.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["turn:h?transport=sctp", "turn:h?transport=", "turn:h?", "turn:h?tcp", "turn:h?transport=udp&a=b", "stun:h"],
)
def test_what_is_not_a_turn_uri_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        TurnUri.parse(text)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("turns:example.org?transport=udp", "turns:example.org"),
        ("TURNS:[2001:DB8::1]:443?transport=UDP", "turns:[2001:db8::1]:443"),
    ],
)
def test_turn_over_dtls_is_refused_and_the_error_names_the_uri_for_tls(text: str, instead: str) -> None:
    """RFC 7065, section 3.1 allows the URI; DTLS itself is not supported."""
    with pytest.raises(ConfigurationError, match="DTLS is not supported") as caught:
        TurnUri.parse(text)
    assert f"{instead} for TURN over TLS" in str(caught.value)
    with pytest.raises(ConfigurationError, match="DTLS is not supported"):
        TurnUri("example.org", secure=True, explicit_transport="udp")
    assert TurnUri.parse(instead).transport is Transport.TLS
