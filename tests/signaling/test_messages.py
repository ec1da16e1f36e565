"""The codec of signaling messages: round trips, and one error for all hostile text."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from polynya.core.errors import DecodeError
from polynya.signaling import messages as m

ID = "0123456789abcdef" * 2
OTHER = "f" * 32
PACE = m.Pace(message_bytes=16_384, messages_per_second=50, burst=200, keepalive=100, resume=30)
DESCRIPTION = m.Description(ufrag="abcd", pwd="p" * 22, options=("ice2",), lite=True, pacing=5, generation=3)

FROM_CLIENT: list[m.FromClient] = [
    m.Join(version=1, room="kitchen"),
    m.Join(version=1, room="küche 🧊", limit=2, resume=m.Resume(ID, OTHER)),
    m.ListServers(),
    m.signal(ID, DESCRIPTION),
    m.signal(ID, m.Candidate(candidate=None)),
    m.Keepalive(),
    m.Leave(),
]
FROM_SERVER: list[m.FromServer] = [
    m.Welcome(
        version=1,
        peer=ID,
        token=OTHER,
        peers=(OTHER,),
        pace=PACE,
        servers=(
            m.IceServer(uris=("stun:192.0.2.1:3478",)),
            m.IceServer(uris=("turn:h",), username="u", credential="c"),
        ),
        resumed=True,
    ),
    m.ServerList(),
    m.ServerList((m.IceServer(uris=("turn:h",), username="u", credential="c", lifetime=60),)),
    m.Joined(ID),
    m.Left(ID, "it left"),
    m.Left(ID, "it left", clean=True),
    m.Away(ID),
    m.Resumed(ID),
    m.signal(ID, m.Candidate(candidate="candidate:1 1 udp 1 192.0.2.1 1 typ host", generation=1)),
    m.Error(code="rate", message="too fast"),
    m.Error(code="unknown-peer", fatal=True, peer=ID),
]


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda each: type(each).__name__)
def test_messages_of_clients_survive_a_round_trip(message: m.FromClient) -> None:
    assert m.decode_from_client(m.encode(message)) == message


@pytest.mark.parametrize("message", FROM_SERVER, ids=lambda each: type(each).__name__)
def test_messages_of_the_server_survive_a_round_trip(message: m.FromServer) -> None:
    assert m.decode_from_server(m.encode(message)) == message


def test_the_text_is_the_documented_json() -> None:
    assert json.loads(m.encode(m.signal(ID, DESCRIPTION))) == {
        "type": "signal",
        "peer": ID,
        "body": {
            "kind": "description",
            "ufrag": "abcd",
            "pwd": "p" * 22,
            "options": ["ice2"],
            "lite": True,
            "pacing": 5,
            "generation": 3,
        },
    }
    assert json.loads(m.encode(m.Join(version=1, room="kitchen"))) == {"type": "join", "version": 1, "room": "kitchen"}
    assert json.loads(m.encode(m.Join(version=1, room="r", token="t")))["token"] == "t"
    assert json.loads(m.encode(m.ListServers())) == {"type": "servers"}
    assert json.loads(m.encode(m.ListServers("t"))) == {"type": "servers", "token": "t"}
    assert "t0ken" not in f"{m.Join(version=1, room='r', token='t0ken')} {m.ListServers('t0ken')}"
    servers = m.ServerList((m.IceServer(uris=("stun:h",)),))
    assert json.loads(m.encode(servers)) == {"type": "servers", "servers": [{"uris": ["stun:h"]}], "no_relay": ""}
    assert json.loads(m.encode(m.signal(ID, m.Candidate(candidate=None))))["body"] == {
        "kind": "candidate",
        "candidate": None,
        "generation": 0,
    }


def test_a_body_passes_the_server_unchanged_with_unknown_fields() -> None:
    body = '{"kind":"sealed","box":"AAAA","n":[1,2,{"x":null}]}'
    message = m.decode_from_client(f'{{"type":"signal","peer":"{ID}","body":{body}}}')
    assert isinstance(message, m.Signal)
    assert body in m.encode(m.Signal(peer=OTHER, body=message.body))


@pytest.mark.parametrize(("depth", "good"), [(m.NESTING - 2, True), (m.NESTING - 1, False)])
def test_nesting_has_the_same_bound_everywhere(depth: int, good: bool) -> None:
    """A bound that depends on the interpreter's stack would let a server relay what some members cannot parse."""
    inner = '{"a":' * depth + '"[[[[\\"{{{{"' + "}" * depth
    text = f'{{"type":"signal","peer":"{ID}","body":{{"wide":[{"[]," * 100}0],"a":{inner}}}}}'
    if good:
        assert isinstance(m.decode_from_client(text), m.Signal)
    else:
        with pytest.raises(DecodeError, match="nested at most 64 levels deep"):
            m.decode_from_client(text)


def test_unknown_fields_are_ignored() -> None:
    assert m.decode_from_client('{"type":"leave","mood":"good"}') == m.Leave()
    assert m.decode_body(msgspec.Raw(b'{"kind":"candidate","candidate":null,"mid":"0"}')) == m.Candidate(candidate=None)


HOSTILE = {
    "empty": "",
    "not json": "hello",
    "not an object": "[1,2]",
    "no type": "{}",
    "unknown type": '{"type":"welcome"}',
    "binary": b'{"type":"leave"}',
    "lone surrogate": '{"type":"join","version":1,"room":"\ud800"}',
    "escaped lone surrogate": '{"type":"join","version":1,"room":"\\ud800"}',
    "no room": '{"type":"join","version":1}',
    "empty room": '{"type":"join","version":1,"room":""}',
    "long room": '{"type":"join","version":1,"room":"%s"}' % ("a" * 129),
    "control character in room": '{"type":"join","version":1,"room":"a\\nb"}',
    "newline at the end of room": '{"type":"join","version":1,"room":"ab\\n"}',
    "limit of none": '{"type":"join","version":1,"room":"a","limit":0}',
    "version is text": '{"type":"join","version":"1","room":"a"}',
    "upper case id": '{"type":"signal","peer":"%s","body":{}}' % ("A" * 32),
    "id with newline": '{"type":"signal","peer":"%s\\n","body":{}}' % ("a" * 32),
    "short id": '{"type":"signal","peer":"ab","body":{}}',
    "no body": f'{{"type":"signal","peer":"{ID}"}}',
    "body is no object": f'{{"type":"signal","peer":"{ID}","body":17}}',
    "nested too deeply": '{"type":"leave","x":' + "[" * 5000 + "]" * 5000 + "}",
    "body nested too deeply": f'{{"type":"signal","peer":"{ID}","body":' + '{"a":' * 2500 + "1" + "}" * 2500 + "}",
    "too long": '{"type":"leave","x":"%s"}' % ("a" * m.MESSAGE_BYTES),
    "huge number": '{"type":"join","version":1e999,"room":"a"}',
    "two values": '{"type":"leave"}{"type":"leave"}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_a_decode_error_that_is_short_and_printable(text: str | bytes) -> None:
    with pytest.raises(DecodeError) as error:
        m.decode_from_client(text)
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"description","ufrag":"abc","pwd":"pppppppppppppppppppppp"}',
        b'{"kind":"description","ufrag":"abcd","pwd":"short"}',
        b'{"kind":"description","ufrag":"ab d","pwd":"pppppppppppppppppppppp"}',
        b'{"kind":"description","ufrag":"abcd","pwd":"pppppppppppppppppppppp","generation":-1}',
        b'{"kind":"description","ufrag":"abcd","pwd":"pppppppppppppppppppppp","pacing":-5}',
        b'{"kind":"candidate"}',
        b'{"kind":"candidate","candidate":7}',
        b'{"kind":"dance"}',
        b"[]",
        b'{"kind":"candidate","candidate":"\xff"}',
    ],
)
def test_an_invalid_body_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        m.decode_body(msgspec.Raw(body))


def test_mutated_messages_raise_decode_errors_and_nothing_else() -> None:
    chance = random.Random(7)
    texts = [m.encode(message) for message in [*FROM_CLIENT, *FROM_SERVER]]
    alphabet = '{}[]":,\\u0123456789abcdeftrnl\x00\x7f\xa0\ud83d🧊'
    refused = 0
    for _ in range(20_000):
        text = list(chance.choice(texts))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text))
            match chance.randrange(4):
                case 0:
                    text[at] = chance.choice(alphabet)
                case 1:
                    del text[at:]
                    text = text or ["{"]
                case 2:
                    text[at:at] = text[chance.randrange(len(text)) :]
                case _:
                    text.insert(at, chance.choice(alphabet))
        for decode in (m.decode_from_client, m.decode_from_server):
            try:
                message = decode("".join(text))
                if isinstance(message, m.Signal):
                    m.decode_body(message.body)
            except DecodeError:
                refused += 1
    assert 20_000 < refused < 40_000


def test_secrets_do_not_show_in_reprs() -> None:
    for secret in (DESCRIPTION, m.Resume(ID, OTHER), FROM_SERVER[0], m.IceServer(uris=(), credential="cred-secret")):
        text = repr(secret)
        assert "p" * 22 not in text
        assert "token" not in text
        assert "cred-secret" not in text
