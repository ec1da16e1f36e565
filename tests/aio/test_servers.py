"""The option `servers`: URIs, `IceServer`s and dictionaries as WebRTC's `iceServers`."""

from __future__ import annotations

from typing import Any

import pytest

import polynya
from polynya.aio.servers import split_servers
from polynya.session.options import TurnCredentials
from polynya.stun.uris import StunUri, TurnUri


def test_dictionaries_are_read_as_webrtc_writes_them() -> None:
    stun, turn = split_servers(
        [
            {"urls": "stun:stun.example.org"},
            {"urls": ["turn:turn.example.org", "turns:turn.example.org?transport=tcp"], "username": "u",
             "credential": "p", "credentialType": "password", "url": "turn:turn.example.org"},
            polynya.IceServer("turn:other.example.org", "user", "password"),
            "stun:192.0.2.1:5000",
        ]
    )  # fmt: skip
    assert stun == (StunUri("stun.example.org"), StunUri("192.0.2.1", 5000))
    assert turn == (
        TurnCredentials(TurnUri("turn.example.org"), "u", "p"),
        TurnCredentials(TurnUri("turn.example.org", None, secure=True, explicit_transport="tcp"), "u", "p"),
        TurnCredentials(TurnUri("other.example.org"), "user", "password"),
    )


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("turn:192.0.2.1", r'turn:192\.0\.2\.1 has no credentials: write IceServer\("turn:192'),
        (polynya.IceServer("turns:turn.example.org"), "has no credentials"),
        ({"urls": ["stun:192.0.2.1", "turn:192.0.2.1"]}, "has no credentials"),
        ({"urls": []}, '"urls" is a URI or a list'),
        ({"url": "stun:192.0.2.1"}, '"urls" is a URI or a list'),
        ({"urls": "turn:192.0.2.1", "username": "u", "credential": 1}, "are texts"),
        ({"urls": "turn:192.0.2.1", "username": "u", "credential": "p", "credentialType": "oauth"}, "oauth"),
        (("turn:192.0.2.1", "user", "secret"), "not tuple"),
        ("stuns:192.0.2.1", "use a stun: URI"),
    ],
)
@pytest.mark.parametrize("kind", [polynya.Agent, polynya.Mux])
def test_a_server_that_cannot_be_used_is_an_error_at_once(kind: Any, server: Any, message: str) -> None:
    with pytest.raises(polynya.ConfigurationError, match=message) as caught:
        kind(servers=[server])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("servers", ["stun:192.0.2.1", {"urls": "stun:192.0.2.1"}, polynya.IceServer("stun:192.0.2.1")])
def test_one_server_is_no_list(servers: Any) -> None:
    with pytest.raises(polynya.ConfigurationError, match="servers is a list"):
        polynya.Agent(servers=servers)


def test_credentials_may_come_later_from_a_function() -> None:
    async def ask(uri: str, realm: str) -> tuple[str, str]:
        raise AssertionError

    polynya.Agent(servers=["turn:192.0.2.1"], credentials=ask)
