"""A TURN server as it is named to people and programs."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.stun.uris import TurnUri
from polynya.turn.client.events import ServerAddress


@pytest.mark.parametrize(
    ("transport", "name", "uri"),
    [
        (Transport.UDP, "", "turn:192.0.2.1:3478?transport=udp"),
        (Transport.TCP, "turn.example", "turn:turn.example:3478?transport=tcp"),
        (Transport.TLS, "turn.example", "turns:turn.example:3478?transport=tcp"),
        (Transport.TLS, "", "turns:192.0.2.1:3478?transport=tcp"),
    ],
)
def test_a_server_has_the_uri_that_it_would_be_asked_by(transport: Transport, name: str, uri: str) -> None:
    """RFC 7065, section 3.1."""
    assert ServerAddress(address=Address("192.0.2.1", 3478), transport=transport, name=name).uri == uri
    assert str(TurnUri.parse(uri)) == uri


def test_an_ipv6_server_stands_in_brackets() -> None:
    assert ServerAddress(address=Address("2001:db8::1", 3478)).uri == "turn:[2001:db8::1]:3478?transport=udp"
