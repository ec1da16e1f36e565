"""RFC 8656, section 20: the detailed example, message by message, with its addresses and lifetimes."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.instants import SECOND
from polynya.stun import attributes as a
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.server.config import RelayHost
from polynya.turn.server.policy import PeerPolicy
from tests.turn.server.harness import Person, Table, code, config

CLIENT = Address("192.0.2.1", 7000)
"""The client's address as the server sees it, outside the NAT."""
RELAYED = Address("192.0.2.15", 50000)
PEER_A = Address("192.0.2.150", 32102)
PEER_B = Address("192.0.2.210", 49191)


def test_the_detailed_example() -> None:
    table = Table(
        config(
            relays=(RelayHost(host=RELAYED.host),),
            ports=(50000, 50000),
            policy=PeerPolicy(allow=("192.0.2.0/24",)),
            max_lifetime=1200 * SECOND,
        )
    )
    george = Person(table, CLIENT, "alice")  # the user of the example is George
    wish = {a.LIFETIME: 3600, a.REQUESTED_TRANSPORT: 17, a.DONT_FRAGMENT: True}

    # the first Allocate has no credentials and is refused
    refused = george.say(george.build(Method.ALLOCATE, wish))
    assert refused is not None and code(refused) == 401
    assert refused[a.REALM] == "example.org" and refused[a.NONCE].startswith(b"obMatJos2")
    assert {each.number for each in refused[a.PASSWORD_ALGORITHMS]} == {1, 2}

    # the second is signed with SHA-256 and granted a shorter lifetime than requested
    assert george.learn(refused)
    request = george.build(Method.ALLOCATE, wish)
    signed = decode(request)
    assert signed[a.PASSWORD_ALGORITHM].number == 2 and signed.has_integrity_sha256
    granted = george.say(request)
    assert granted is not None and granted.cls is Class.SUCCESS and granted.has_integrity_sha256
    assert granted[a.LIFETIME] == 1200
    assert granted[a.XOR_RELAYED_ADDRESS] == (RELAYED,) and granted[a.XOR_MAPPED_ADDRESS] == CLIENT

    # a permission for peer A, for every port
    assert code(george.permit(PEER_A.with_port(0))) == 0

    # data to peer A and back, by Send and Data
    [sent] = george.send(b"to peer A", PEER_A)
    assert (sent.remote, sent.data) == (PEER_A, b"to peer A")
    [back] = table.from_peer(RELAYED, b"from peer A", PEER_A)
    data = decode(back.data)
    assert (data.method, data.cls, back.remote) == (Method.DATA, Class.INDICATION, CLIENT)
    assert data[a.XOR_PEER_ADDRESS] == (PEER_A,) and data[a.DATA] == b"from peer A"

    # channel 0x4000 for peer B, without CreatePermission
    assert code(george.bind(0x4000, PEER_B)) == 0
    [sent] = george.channel(0x4000, b"to peer B")
    assert (sent.remote, sent.data) == (PEER_B, b"to peer B")
    [back] = table.from_peer(RELAYED, b"from peer B", PEER_B)
    assert back.data == b"\x40\x00\x00\x0bfrom peer B"

    # the Refresh gets 438, is repeated with the new nonce, and gets the default lifetime
    table.run_for(600)
    stale = george.say(george.build(Method.REFRESH))
    assert stale is not None and code(stale) == 438 and stale[a.NONCE] != george.nonce
    assert george.learn(stale)
    refreshed = george.say(george.build(Method.REFRESH))
    assert isinstance(refreshed, Message) and refreshed[a.LIFETIME] == 600
