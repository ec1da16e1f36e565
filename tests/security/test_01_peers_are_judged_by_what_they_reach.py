"""security.md, line 1: wrapped addresses are judged as what they wrap, 0.0.0.0 and :: as loopback."""

from __future__ import annotations

import ipaddress

import pytest

from polynya.core.addresses import Address
from polynya.stun.attributes import ADDITIONAL_ADDRESS_FAMILY
from polynya.turn.server.config import RelayHost
from polynya.turn.server.policy import PeerPolicy, reduce
from tests.turn.server.harness import HOST, HOST6, Person, Table, code, config

POLICY = PeerPolicy()
PRIVATE = "10.1.2.3"
PUBLIC = "8.8.4.4"


def wrapped(host: str) -> dict[str, str]:
    """Return every IPv6 address that wraps an IPv4 address."""
    packed = ipaddress.IPv4Address(host).packed
    inverted = bytes(byte ^ 0xFF for byte in packed)
    forms = {
        "mapped": bytes(10) + b"\xff\xff" + packed,
        "compatible": bytes(12) + packed,
        "translated": bytes(8) + b"\xff\xff\0\0" + packed,
        "NAT64": bytes.fromhex("0064ff9b") + bytes(8) + packed,
        "local NAT64 of 96": bytes.fromhex("0064ff9b0001") + bytes(6) + packed,
        "local NAT64 of 48": bytes.fromhex("0064ff9b0001") + packed[:2] + b"\0" + packed[2:] + bytes(5),
        "local NAT64 of 56": bytes.fromhex("0064ff9b000100") + packed[:1] + b"\0" + packed[1:] + bytes(4),
        "local NAT64 of 64": bytes.fromhex("0064ff9b00010000") + b"\0" + packed + bytes(3),
        "6to4": b"\x20\x02" + packed + bytes(9) + b"\1",
        "Teredo, the client": bytes.fromhex("20010000") + bytes((8, 8, 8, 8)) + bytes(4) + inverted,
        "Teredo, the server": bytes.fromhex("20010000") + packed + bytes(4) + bytes(b ^ 0xFF for b in (8, 8, 8, 8)),
    }
    return {name: str(ipaddress.IPv6Address(value)) for name, value in forms.items()}


@pytest.mark.parametrize("form", wrapped(PRIVATE))
@pytest.mark.parametrize("host", [PRIVATE, "127.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.0.1", "224.0.0.1"])
def test_a_wrapped_address_is_judged_as_the_address_that_it_wraps(form: str, host: str) -> None:
    assert POLICY.judge(Address.of(wrapped(host)[form], 80)) != ""


@pytest.mark.parametrize("form", wrapped(PUBLIC))
def test_a_wrapped_public_address_is_permitted(form: str) -> None:
    assert POLICY.judge(Address.of(wrapped(PUBLIC)[form], 80)) == ""
    denying = PeerPolicy(deny=("8.8.4.0/24",))
    assert denying.judge(Address.of(wrapped(PUBLIC)[form], 80)) != ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:0:0", "64:ff9b::"])
def test_the_unspecified_address_is_loopback(host: str) -> None:
    address = Address.of(host, 80)
    assert reduce(address.host) == (b"\x7f\0\0\1",)
    assert POLICY.judge(address) != ""
    assert PeerPolicy(allow=("127.0.0.1",)).judge(address) == ""


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::127.0.0.1", "::1", "64:ff9b::7f00:1", "2002:7f00:1::1"])
def test_the_server_refuses_them_by_every_method(host: str) -> None:
    """CVE-2026-27624 of coturn: ::ffff:127.0.0.1 was permitted."""
    table = Table(config(relays=(RelayHost(host=HOST), RelayHost(host=HOST6))))
    alice = Person(table)
    alice.allocate({ADDITIONAL_ADDRESS_FAMILY: 6})
    peer = Address.of(host, 80)
    assert code(alice.permit(peer)) == 403
    assert code(alice.bind(0x4000, peer)) == 403
    assert alice.send(b"x", peer) == []


@pytest.mark.parametrize("rule", ["::ffff:10.0.0.0/104", "2002::/16", "64:ff9b::/96", "2001:0::/32", "::10.0.0.0/120"])
def test_a_rule_for_wrapped_addresses_does_not_parse_since_it_would_never_match(rule: str) -> None:
    with pytest.raises(ValueError, match="IPv4"):
        PeerPolicy(allow=(rule,))
