"""A client gets STUN addresses that it can reach."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.serve.reach import host_of, hosts_for, http_url, uri


def stun_uris(listeners: list[Address], reached: str | None, local: str, remote: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(uri("stun", each) for each in hosts_for(listeners, reached, local, remote)))


ALL4, ALL6 = Address("0.0.0.0", 3478), Address("::", 3478)
LOOPBACK, PUBLIC = Address("127.0.0.1", 3478), Address("192.0.2.1", 3479)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("signal.example.org", "signal.example.org"),
        ("signal.example.org:8080", "signal.example.org"),
        ("192.0.2.7:80", "192.0.2.7"),
        ("[2001:DB8::1]:80", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("localhost:1", "localhost"),
        ("", None),
        ("a b", None),
        ("evil\r\nx", None),
        ("stun:evil?x", None),
        ("name:port", None),
        ("-a", None),
        ("a" * 300, None),
        ("[::1", None),
    ],
)
def test_the_host_of_a_header_is_a_name_or_an_address_and_nothing_else(header: str, host: str | None) -> None:
    assert host_of(header) == host


def test_a_wildcard_listener_gets_the_host_that_the_client_used() -> None:
    assert stun_uris([ALL4], "example.org", "10.0.0.1", "198.51.100.1") == ("stun:example.org:3478",)
    assert stun_uris([ALL4], None, "10.0.0.1", "198.51.100.1") == ("stun:10.0.0.1:3478",)
    assert stun_uris([ALL4, ALL6], "example.org", "10.0.0.1", "198.51.100.1") == ("stun:example.org:3478",), "once"


def test_a_listener_of_the_other_ip_version_is_omitted() -> None:
    assert stun_uris([ALL4], "2001:db8::1", "2001:db8::1", "2001:db8::9") == ()
    assert stun_uris([ALL4, ALL6], "2001:db8::1", "2001:db8::1", "2001:db8::9") == ("stun:[2001:db8::1]:3478",)


def test_a_listener_on_one_address_keeps_it() -> None:
    assert stun_uris([PUBLIC], "example.org", "10.0.0.1", "198.51.100.1") == ("stun:192.0.2.1:3479",)


def test_a_loopback_listener_is_listed_for_this_host_only() -> None:
    assert stun_uris([LOOPBACK], "example.org", "10.0.0.1", "198.51.100.1") == ()
    assert stun_uris([LOOPBACK], "localhost", "127.0.0.1", "127.0.0.1") == ("stun:127.0.0.1:3478",)
    assert stun_uris([LOOPBACK], "localhost", "::1", "::1") == ("stun:127.0.0.1:3478",)


def test_the_url_of_a_listener_can_be_used_on_this_host() -> None:
    assert http_url(Address("0.0.0.0", 80)) == "http://127.0.0.1:80"
    assert http_url(Address("::", 80)) == "http://[::1]:80"
    assert http_url(Address("192.0.2.1", 80)) == "http://192.0.2.1:80"
