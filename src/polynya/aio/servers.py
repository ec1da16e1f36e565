"""The STUN and TURN servers of an agent, and the credentials for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from polynya.core.arguments import items, secret, shown, text
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.session.options import TurnCredentials
from polynya.stun.uris import StunUri, TurnUri
from polynya.turn.client.credentials import Credentials

AskCredentials = Callable[[str, str], Awaitable[tuple[str, str]]]
"""Called with the URI of a TURN server and its realm; returns a user name and a password."""


async def ask_for(ask: AskCredentials, uri: str, realm: str) -> Credentials:
    """Calls the user's function. Raises what it raises, and TypeError unless the result is a pair of texts."""
    found: Any = await ask(uri, realm)
    texts = [type(each).__name__ for each in found] if isinstance(found, tuple | list) else [type(found).__name__]
    if not isinstance(found, tuple | list) or texts != ["str", "str"]:
        raise TypeError(f"it returned {', '.join(texts) or 'nothing'}: return a user name and a password")
    return Credentials(found[0], found[1])


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server by its URI (RFC 7064, 7065), with the credentials for a TURN server."""

    uri: str
    username: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        text("the URI of an IceServer", self.uri)
        text("the username of an IceServer", self.username)
        secret("the password of an IceServer", self.password)


def usable(uris: Iterable[str], username: str = "", password: str = "") -> tuple[IceServer, ...]:
    """Returns the servers that an agent can use; others in a server's list must not keep an agent from starting."""
    found = []
    for uri in uris:
        server = IceServer(uri, username, password)
        try:
            split_servers([server])
        except (ConfigurationError, DecodeError):
            continue
        found.append(server)
    return tuple(found)


def split_servers(
    servers: Iterable[str | IceServer | Mapping[str, Any]], *, ask: bool = False
) -> tuple[tuple[StunUri, ...], tuple[TurnCredentials, ...]]:
    """Returns the STUN servers and the TURN servers; raises ConfigurationError for anything else.

    A TURN server needs credentials, unless `ask` says that they are asked for later.
    """
    if isinstance(servers, Mapping | IceServer):
        raise ConfigurationError("servers is a list: put the server in brackets")
    stun: list[StunUri] = []
    turn: list[TurnCredentials] = []
    for server in _expand(items("servers", servers)):
        scheme = server.uri.partition(":")[0].lower()
        if scheme in {"turn", "turns"}:
            turn.append(_turn_server(server, ask=ask))
        else:
            uri = StunUri.parse(server.uri)
            if uri.secure:
                raise ConfigurationError(f"{server.uri}: candidates are gathered over UDP; use a stun: URI")
            stun.append(uri)
    return tuple(stun), tuple(turn)


def _turn_server(server: IceServer, *, ask: bool) -> TurnCredentials:
    uri = TurnUri.parse(server.uri)
    if server.username:
        Credentials(server.username, server.password)  # raises ConfigurationError if they cannot be used
    elif not ask:
        raise ConfigurationError(
            f'{server.uri} has no credentials: write IceServer("{server.uri}", username, password), or give '
            "credentials=, an async function that returns them"
        )
    return TurnCredentials(uri, server.username, server.password)


def _expand(servers: Iterable[str | IceServer | Mapping[str, Any]]) -> Iterator[IceServer]:
    """Yields each server; a dictionary like those of WebRTC's `iceServers` may hold several URIs."""
    for server in servers:
        if isinstance(server, IceServer):
            yield server
        elif isinstance(server, str):
            yield IceServer(server)
        elif isinstance(server, Mapping):
            yield from _of_dictionary(server)
        else:
            raise ConfigurationError(f"a server is a URI, an IceServer or a dictionary, not {type(server).__name__}")


def _of_dictionary(server: Mapping[str, Any]) -> Iterator[IceServer]:
    urls = server.get("urls")
    uris = [urls] if isinstance(urls, str) else urls
    if not isinstance(uris, list | tuple) or not uris or not all(isinstance(uri, str) for uri in uris):
        raise ConfigurationError(f'a server\'s "urls" is a URI or a list of URIs, not {shown(urls)}')
    username, credential = server.get("username", ""), server.get("credential", "")
    if not isinstance(username, str) or not isinstance(credential, str):
        raise ConfigurationError(f'"username" and "credential" of {uris[0]} are texts')
    if server.get("credentialType", "password") != "password":
        raise ConfigurationError(
            f'{uris[0]}: the only "credentialType" is "password", not {server["credentialType"]!r}'
        )
    for uri in uris:
        yield IceServer(uri, username, credential)
