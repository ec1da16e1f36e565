"""security.md, line 2: special ranges and the server's own endpoints are denied unless named; live relays are not."""

from __future__ import annotations

import ipaddress
import random

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.stun.attributes import ADDITIONAL_ADDRESS_FAMILY, DATA, XOR_PEER_ADDRESS
from polynya.stun.message import decode
from polynya.turn.server.commands import Client
from polynya.turn.server.config import RelayHost
from polynya.turn.server.policy import PeerPolicy
from tests.turn.server.harness import CLIENT, HOST, LISTENER, OTHER, PEER, PEER6, Person, Table, code, config

SPECIAL = [
    "0.0.0.1", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::1", "100::1", "2001:2::1", "2001:20::1", "2001:db8::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1",
    "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("host", SPECIAL)
def test_special_purpose_ranges_are_denied(host: str) -> None:
    assert PeerPolicy().judge(Address.of(host, 80)) != ""
    assert PeerPolicy(allow=("0.0.0.0/0", "::/0")).judge(Address.of(host, 80)) != "", (
        "a rule for all addresses opens no special range"
    )


@pytest.mark.parametrize("host", [each for each in SPECIAL if each != "::1"])
def test_special_purpose_ranges_can_be_allowed_by_a_rule(host: str) -> None:
    address = Address.of(host, 80)
    assert PeerPolicy(allow=(host,)).judge(address) == ""
    assert PeerPolicy(allow=(host,), deny=(host,)).judge(address) != "", "denied wins at equal length"


@pytest.mark.parametrize("host", ["8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.0.1", "172.32.0.1",
                                  "100.63.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"])  # fmt: skip
def test_all_other_addresses_are_permitted(host: str) -> None:
    assert PeerPolicy().judge(Address.of(host, 80)) == ""
    assert PeerPolicy(deny=(host,)).judge(Address.of(host, 80)) != ""


def test_no_address_that_is_not_global_is_permitted() -> None:
    chance = random.Random(2)
    policy = PeerPolicy()
    denied = 0
    for _ in range(20_000):
        number = chance.getrandbits(32) & chance.choice((0xFFFFFFFF, 0x0FFFFFFF, 0xFF000000)) | chance.choice((0, 1))
        address = ipaddress.IPv4Address(number)
        if not address.is_global or address.is_multicast:
            denied += 1
            assert policy.judge(Address(str(address), 80)) != "", address
    assert denied > 1000


def test_the_longest_rule_decides() -> None:
    policy = PeerPolicy(allow=("10.1.0.0/16", "8.8.8.8"), deny=("10.1.2.0/24", "8.0.0.0/8"))
    verdicts = {host: policy.judge(Address(host, 1)) == "" for host in
                ("10.1.1.1", "10.1.2.1", "10.2.0.1", "8.8.8.8", "8.8.8.9")}  # fmt: skip
    assert verdicts == {"10.1.1.1": True, "10.1.2.1": False, "10.2.0.1": False, "8.8.8.8": True, "8.8.8.9": False}


@pytest.mark.parametrize(
    "rule",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "nonsense",
        "",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "2001:db8::/129",
        "10.0.0.1:99999",
        "::1/0x8",
    ],
)
def test_a_rule_that_does_not_parse_stops_the_start(rule: str) -> None:
    for rules in ({"allow": (rule,)}, {"deny": (rule,)}):
        with pytest.raises(ConfigurationError):
            PeerPolicy(**rules)


def own(*allow: str) -> PeerPolicy:
    """Return the policy of a server with its database on the same host, which is allowed."""
    listeners = (Address("0.0.0.0", 3478), Address("203.0.113.5", 6379))
    return PeerPolicy(allow=("203.0.113.0/24", "127.0.0.0/8", *allow), listeners=listeners, own_hosts=("203.0.113.4",))


@pytest.mark.parametrize("endpoint", ["203.0.113.4:3478", "127.0.0.1:3478", "203.0.113.5:6379"])
def test_the_servers_own_endpoints_are_denied_even_on_an_allowed_host(endpoint: str) -> None:
    address = Address.parse(endpoint)
    assert own().judge(address) != ""
    assert own(address.host).judge(address) != "" and own(address.host).judge(address.with_port(9)) == ""
    assert own(address.host).judge_host(address.host) == ""
    assert own(endpoint).judge(address) == "", "a rule for the endpoint itself allows it"


@pytest.mark.parametrize("host", ["203.0.113.4", "::ffff:203.0.113.4", "64:ff9b::203.0.113.4", "8.8.8.8", "2a00::5"])
@pytest.mark.parametrize("port", [1, 22, 3478, 65535])
def test_an_address_of_the_server_is_denied_on_every_port(host: str, port: int) -> None:
    """Also a public one, and one within an allowed prefix."""
    hosts = ("203.0.113.4", "8.8.8.8", "2a00::5")
    prefixes = ("203.0.113.0/24", "203.0.113.4/31", "8.0.0.0/8", "2a00::/16", "0.0.0.0/0", "::/0")
    address = Address.of(host, port)
    policy = PeerPolicy(allow=prefixes, own_hosts=hosts)
    assert "address of this server" in policy.judge(address) and policy.judge_host(address.host)
    named = PeerPolicy(allow=(*prefixes, *hosts), own_hosts=hosts)
    assert named.judge(address) == "", "its full address in a rule allows it"
    endpoints = tuple(str(Address(each, port)) for each in hosts)
    by_endpoint = PeerPolicy(allow=(*prefixes, *endpoints), own_hosts=hosts)
    assert by_endpoint.judge(address) == "" and by_endpoint.judge(address.with_port(port % 65535 + 1))


@pytest.mark.parametrize("host", ["1::1", "200::1", "4000::1", "7fff::1", "8000::1", "e000::1", "fe00::1", "1fff::1"])
def test_ipv6_outside_2000_3_is_not_publicly_routed(host: str) -> None:
    assert PeerPolicy().judge(Address.of(host, 80)) != ""
    assert PeerPolicy(allow=("::/0", "::/1", "8000::/1")).judge(Address.of("fe00::1", 80)) == "", "named by its range"
    assert PeerPolicy(allow=("::/0",)).judge(Address.of(host, 80)) != ""
    assert PeerPolicy(allow=(host,)).judge(Address.of(host, 80)) == ""


def test_port_0_is_no_endpoint() -> None:
    assert PeerPolicy().judge(Address("8.8.8.8", 0)) != "" and PeerPolicy().judge_host("8.8.8.8") == ""
    table = Table(config())
    alice = Person(table)
    alice.allocate()
    assert code(alice.bind(0x4000, PEER.with_port(0))) == 403
    assert code(alice.permit(PEER.with_port(0))) == 0, "a permission is for a host"
    assert alice.send(b"x", PEER.with_port(0)) == []


@pytest.mark.parametrize("external", ["", "203.0.113.77"])
def test_a_channel_needs_a_live_relay_at_that_very_port(external: str) -> None:
    """The host of a live relay has other ports: the server's listener, SSH, a relay that is not open."""
    relays = (RelayHost(host=HOST, external=external),)
    listeners = (Address(HOST, 3478), Address(external or HOST, 3478))
    table = Table(config(relays=relays, policy=PeerPolicy(listeners=listeners, own_hosts=(HOST, external or HOST))))
    alice, bob = Person(table), Person(table, OTHER, "bob")
    alice.allocate(), bob.allocate()
    [two] = bob.relayed
    bound = Address(HOST, two.port)
    assert code(alice.bind(0x4000, two)) == 0
    for host in (two.host, bound.host):
        for port in (0, 22, 3478, two.port ^ 1):
            assert code(alice.bind(0x4001, Address(host, port))) == 403, (host, port)
    bob.refresh(0)
    assert code(alice.bind(0x4000, two)) == 403, "the relay has ended"


def test_an_own_endpoint_is_not_reached_by_send_or_channel_though_its_host_has_a_permission() -> None:
    table = Table(config(policy=own("203.0.113.5")))
    alice = Person(table)
    alice.allocate()
    database = Address("203.0.113.5", 6379)
    assert code(alice.permit(database)) == 0
    assert alice.send(b"FLUSHALL", database) == []
    assert code(alice.bind(0x4000, database)) == 403
    assert len(alice.send(b"x", database.with_port(80))) == 1
    assert table.from_peer(alice.relayed[0], b"x", database) == [], "its datagrams are dropped, too"


@pytest.mark.parametrize("external", ["", "203.0.113.77"])
def test_two_relay_only_clients_meet_inside_the_server(external: str) -> None:
    """The relay's host is private and no rule allows it; the live relayed address is a permitted peer."""
    table = Table(config(relays=(RelayHost(host="10.0.0.5", external=external),), policy=PeerPolicy()))
    alice, bob = Person(table), Person(table, OTHER, "bob")
    alice.allocate(), bob.allocate()
    [one], [two] = alice.relayed, bob.relayed
    assert code(alice.permit(two)) == 0 and code(bob.bind(0x4000, one)) == 0
    [sent] = alice.send(b"hello", two)
    assert (sent.remote, sent.data) == (OTHER, b"\x40\x00\x00\x05hello"), "no packet leaves"
    [back] = bob.channel(0x4000, b"you")
    assert back.remote == alice.address
    message = decode(back.data)
    assert (message[XOR_PEER_ADDRESS], message[DATA]) == ((two,), b"you")


def test_relays_that_meet_inside_the_server_need_permissions_too() -> None:
    table = Table(config())
    alice, bob = Person(table), Person(table, OTHER, "bob")
    alice.allocate(), bob.allocate()
    assert code(alice.permit(bob.relayed[0])) == 0
    assert alice.send(b"hello", bob.relayed[0]) == []
    bob.permit(alice.relayed[0])
    assert len(alice.send(b"hello", bob.relayed[0])) == 1


def test_a_relayed_address_that_has_ended_is_judged_by_the_rules() -> None:
    table = Table(config(relays=(RelayHost(host="10.0.0.5"),), policy=PeerPolicy()))
    alice, bob = Person(table), Person(table, OTHER, "bob")
    alice.allocate(), bob.allocate()
    [two] = bob.relayed
    alice.permit(two)
    bob.refresh(0)
    assert alice.send(b"x", two) == []
    assert alice.send(b"x", two.with_port(22)) == [], "other ports of that host stay denied"
    assert code(alice.permit(two)) == 0, "another live relay has the same host"
    assert code(alice.permit(Address("10.0.0.6", 1))) == 403


def test_new_rules_remove_permissions_at_once() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate()
    alice.bind(0x4000)
    assert len(alice.channel(0x4000, b"x")) == 1
    table.server.control.set_policy(PeerPolicy(), now=table.now)
    table.server.settle(now=table.now)
    assert alice.channel(0x4000, b"x") == [] and table.from_peer(alice.relayed[0], b"x") == []
    assert code(alice.permit(PEER)) == 403
    assert table.server.plane.size["permissions"] == 0


def test_new_rules_keep_the_permissions_that_they_allow() -> None:
    table = Table(config())
    alice = Person(table)
    alice.allocate({ADDITIONAL_ADDRESS_FAMILY: 6})
    other, gone6 = Address("203.0.113.77", 1), Address("2001:db8:9::77", 1)
    alice.permit(PEER, other, PEER6, gone6)
    rules = PeerPolicy(allow=(PEER.host, PEER6.host))
    table.server.control.set_policy(rules, now=table.now)
    table.server.settle(now=table.now)
    for peer, stays in ((PEER, True), (other, False), (PEER6, True), (gone6, False)):
        assert (len(alice.send(b"x", peer)) == 1) == stays, peer
    assert table.server.plane.size["permissions"] == 2
    assert set(table.server.control.allocations.by_client[Client(LISTENER, CLIENT)].permissions) == {
        PEER.host, PEER6.host
    }  # fmt: skip
