"""The STUN and TURN servers that an agent is told of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from polynya.core.errors import ConfigurationError, DecodeError
from polynya.session.options import TurnCredentials
from polynya.stun.uris import StunUri, TurnUri
from polynya.turn.client.credentials import Credentials


@dataclass(frozen=True, slots=True)
class IceServer:
    """A server by its URI (RFC 7064, 7065); a TURN server mostly with a user name and password."""

    uri: str
    username: str = ""
    password: str = field(default="", repr=False)


def usable(uris: Iterable[str], username: str = "", password: str = "") -> tuple[IceServer, ...]:
    """The servers that an agent can be given: what somebody else says must not make it refuse to start."""
    found = []
    for uri in uris:
        server = IceServer(uri, username, password)
        try:
            split_servers([server])
        except (ConfigurationError, DecodeError):
            continue
        found.append(server)
    return tuple(found)


def split_servers(servers: Iterable[str | IceServer]) -> tuple[tuple[StunUri, ...], tuple[TurnCredentials, ...]]:
    """The STUN servers and the TURN servers among `servers`; ConfigurationError for what is neither."""
    stun: list[StunUri] = []
    turn: list[TurnCredentials] = []
    for each in servers:
        server = IceServer(each) if isinstance(each, str) else each
        scheme = server.uri.partition(":")[0].lower()
        if scheme in {"turn", "turns"}:
            if server.username:
                Credentials(server.username, server.password)  # what cannot be is told before anything is opened
            turn.append(TurnCredentials(TurnUri.parse(server.uri), server.username, server.password))
        else:
            uri = StunUri.parse(server.uri)
            if uri.secure:
                raise ConfigurationError(f"{server.uri}: candidates are asked for over UDP; use a stun: URI")
            stun.append(uri)
    return tuple(stun), tuple(turn)
