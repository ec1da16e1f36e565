"""security.md, line 6: attributes after MESSAGE-INTEGRITY are ignored; of repeated attributes the first counts.

Secrets are compared in constant time, and memory is allocated for received bytes only, not for announced lengths.
"""

from __future__ import annotations

import struct
import tracemalloc
from hmac import compare_digest
from typing import Any

import pytest

from polynya.core.flows import Flow
from polynya.core.machine import StreamData
from polynya.stun import attributes as a
from polynya.stun import message as message_module
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.server import nonces as nonces_module
from polynya.turn.server.frames import parse_send
from tests.turn.server.harness import CLIENT, PEER, Person, Table, code, config

FOREIGN = PEER.with_port(6666)


def with_more(signed: bytes, more: bytes) -> bytes:
    data = signed + more
    return data[:2] + struct.pack("!H", len(data) - 20) + data[4:]


def attribute(which: a.Attribute, value: object, data: bytes) -> bytes:
    return which.pack(value, data[4:20])


def test_attributes_after_the_signature_are_ignored() -> None:
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


def test_a_signature_and_a_nonce_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def spy(ours: bytes, theirs: bytes) -> bool:
        compared.append((ours, theirs))
        return compare_digest(ours, theirs)

    monkeypatch.setattr(message_module, "compare_digest", spy)
    monkeypatch.setattr(nonces_module, "compare_digest", spy)
    table = Table(config())
    for algorithm in (None, 1, 2):
        alice = Person(table, algorithm=algorithm)
        alice.learn(alice.say(alice.build(Method.REFRESH)))
        request = alice.build(Method.REFRESH)
        for data, expected in ((request, 437), (request[:-1] + bytes((request[-1] ^ 1,)), 401)):
            compared.clear()
            assert code(alice.say(data)) == expected
            [nonce, signature] = compared
            assert nonce[0] == nonce[1] == alice.nonce
            assert data.endswith(signature[1]) and (signature[0] == signature[1]) == (expected == 437)


def test_neither_time_nor_response_shows_whether_a_user_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown user and a wrong password cost the same number of signatures."""
    computed: list[Any] = []
    table = Table(config())
    alice, unknown = Person(table, password="guess"), Person(table, name="unknown", password="guess")
    for person in (alice, unknown):
        person.learn(person.say(person.build(Method.REFRESH)))
    verify = Message.verify
    monkeypatch.setattr(Message, "verify", lambda self, key: computed.append(key) or verify(self, key))
    answers = []
    for person in (alice, unknown):
        computed.clear()
        answers.append((code(person.say(person.build(Method.REFRESH))), len(computed)))
    assert answers == [(401, 1), (401, 1)]


@pytest.mark.parametrize("frame", [b"\x40\0\xff\xff", b"\0\x03\xff\xfc\x21\x12\xa4\x42" + bytes(12)])
def test_an_announced_length_takes_no_memory(frame: bytes) -> None:
    table = Table(config())
    for number in range(200):
        table.open_stream(Flow(5000 + number), CLIENT)
    tracemalloc.start()
    for number in range(200):
        table.give(StreamData(Flow(5000 + number), frame))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200 * 1000 and peak < 2 * 200 * 1000, "200 times 64 kB were announced"


@pytest.mark.parametrize("number", [0x0006, 0x0012, 0x0013, 0x0015, 0x7FFE, 0x8022])
def test_an_attribute_that_exceeds_its_message_makes_it_malformed(number: int) -> None:
    table = Table(config())
    for length in (1, 5, 0xFFFF):
        body = struct.pack("!HH", number, length)
        assert table.from_client(struct.pack("!HHI", 3, len(body), 0x2112A442) + bytes(12) + body) == []
