"""security.md, line 6: what follows MESSAGE-INTEGRITY is not there; of a repeated attribute the first counts."""

from __future__ import annotations

import struct

from polynya.stun import attributes as a
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.server.frames import parse_send
from tests.turn.server.harness import PEER, Person, Table, code, config

FOREIGN = PEER.with_port(6666)


def with_more(signed: bytes, more: bytes) -> bytes:
    data = signed + more
    return data[:2] + struct.pack("!H", len(data) - 20) + data[4:]


def attribute(which: a.Attribute, value: object, data: bytes) -> bytes:
    return which.pack(value, data[4:20])


def test_attributes_behind_the_signature_do_nothing() -> None:
    table = Table(config())
    alice = Person(table, algorithm=None)
    alice.allocate()
    request = alice.build(Method.REFRESH, {a.LIFETIME: 900})
    answer = alice.say(with_more(request, attribute(a.LIFETIME, 0, request)))
    assert answer is not None and answer[a.LIFETIME] == 900
    request = alice.build(Method.CREATE_PERMISSION, {})
    assert code(alice.say(with_more(request, attribute(a.XOR_PEER_ADDRESS, (PEER,), request)))) == 400


def test_a_changed_or_truncated_signature_is_refused() -> None:
    table = Table(config())
    for algorithm in (None, 1, 2):
        alice = Person(table, algorithm=algorithm)
        alice.learn(alice.say(alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
        request = alice.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})
        for position in (-1, -20, 25, 30):
            changed = bytearray(request)
            changed[position] ^= 1
            assert code(alice.say(bytes(changed))) != 0, position
    assert table.flows == {}


def test_the_first_of_a_repeated_attribute_counts() -> None:
    send = Message.indication(Method.SEND, bytes(12), {a.XOR_PEER_ADDRESS: (PEER, FOREIGN), a.DATA: b"first"}).encode()
    again = with_more(send, attribute(a.DATA, b"second", send))
    parsed = parse_send(again)
    assert parsed is not None and (parsed.peer, parsed.data) == (PEER, b"first")
    assert len(decode(again)[a.XOR_PEER_ADDRESS]) == 2
