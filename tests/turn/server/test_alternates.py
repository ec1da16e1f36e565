"""Alternate servers for the clients of a draining server (RFC 8489, sections 10 and 14.15)."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.turn.server.alternates import Alternate, fitting
from polynya.turn.server.commands import Client
from polynya.turn.server.config import Limits
from polynya.turn.server.streams import Streams

PLAIN, SECURE, SIX = Address("192.0.2.9", 3478), Address("192.0.2.9", 5349), Address("2001:db8::9", 3478)
FOUR, SIXTH = Address("198.51.100.1", 4000), Address("2001:db8::1", 4000)


@pytest.mark.parametrize(
    ("text", "alternate"),
    [
        ("192.0.2.9:3478", Alternate(PLAIN, (Transport.UDP, Transport.TCP))),
        ("udp:192.0.2.9:3478", Alternate(PLAIN, (Transport.UDP,))),
        ("tcp:[2001:db8::9]:3478", Alternate(SIX, (Transport.TCP,))),
        ("TLS:192.0.2.9:5349", Alternate(SECURE, (Transport.TLS,))),
        ("[2001:db8::9]:3478", Alternate(SIX)),
        ("tls:localhost:5349", Alternate(Address("127.0.0.1", 5349), (Transport.TLS,))),
    ],
)
def test_an_alternate_is_parsed_with_or_without_a_transport(text: str, alternate: Alternate) -> None:
    assert Alternate.parse(text) == alternate


@pytest.mark.parametrize("text", ["", "192.0.2.9", "dtls:192.0.2.9:5349", "tls:", "turn.example.org:3478"])
def test_an_invalid_alternate_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write \[udp:\|tcp:\|tls:\]ADDR:PORT"):
        Alternate.parse(text)


def test_an_alternate_has_the_clients_transport_and_address_family() -> None:
    alternates = [Alternate.parse(f"tls:{SECURE}"), Alternate(PLAIN), Alternate.parse(f"udp:{SIX}")]
    assert fitting(alternates, FOUR, Transport.UDP) == [PLAIN] == fitting(alternates, FOUR, Transport.TCP)
    assert fitting(alternates, FOUR, Transport.TLS) == [SECURE]
    assert fitting(alternates, SIXTH, Transport.UDP) == [SIX]
    assert fitting(alternates, SIXTH, Transport.TCP) == [] == fitting(alternates, SIXTH, Transport.TLS)


def test_a_stream_has_its_listeners_transport_until_it_closes() -> None:
    streams = Streams(Limits())
    streams.secure_listeners = (Flow(1),)
    tls, tcp = Client(Flow(10), FOUR), Client(Flow(11), FOUR)
    assert streams.accept(tls, now=Instant(0), listener=Flow(1)) and streams.accept(
        tcp, now=Instant(0), listener=Flow(2)
    )
    assert [streams.transport(flow) for flow in (Flow(10), Flow(11), Flow(12))] == [
        Transport.TLS, Transport.TCP, Transport.UDP
    ]  # fmt: skip
    streams.close(Flow(10))
    assert streams.transport(Flow(10)) is Transport.UDP
