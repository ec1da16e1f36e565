"""Links: the inputs and outputs of the signaling machines, client and server.

A link is one WebSocket. Its number is never used again. Each text on it is one whole message, and texts keep their
order. The owner of a machine opens and closes the WebSockets that the outputs name. It passes everything that happens
on them to the machine as inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .messages import IceServer

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY: Final = 1008
TOO_LARGE: Final = 1009
TRY_LATER: Final = 1013
REPLACED: Final = 4001
"""The member has resumed on another link (RFC 6455, section 7.4.2: 4000-4999 are for private use)."""

SILENT: Final = 4002
"""The member did not answer a ping, and a newcomer got its place."""

CLEAN: Final = frozenset({NORMAL, GOING_AWAY})
"""Close codes by which a member leaves for good. After any other code it may resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOpened:
    """A WebSocket is open. The server's owner adds the client's host and the STUN and TURN servers for that client."""

    link: int
    remote: str = ""
    """Host of the other side. The server limits the links of each host."""
    servers: tuple[IceServer, ...] = ()


@dataclass(slots=True)
class LinkText:
    """A message arrived. `bytes` represent a binary message, which this protocol refuses."""

    link: int
    text: str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClosed:
    """A WebSocket is closed or could not be opened. No input of this link follows."""

    link: int
    code: int = 1006
    """Close code (RFC 6455, section 7.4); 1006 when the connection broke or could not be opened."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersFound:
    """The answer to `FindServers`: the current STUN and TURN servers for the client on this link."""

    link: int
    servers: tuple[IceServer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkAnswered:
    """The client on this link answered a ping."""

    link: int


ClientInput = LinkOpened | LinkText | LinkClosed
ServerInput = LinkOpened | LinkText | LinkAnswered | LinkClosed | ServersFound


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLink:
    """Open a WebSocket to the server and answer with `LinkOpened` or `LinkClosed`."""

    link: int


@dataclass(slots=True)
class SendText:
    """Send this message."""

    link: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseLink:
    """Close the WebSocket after all messages before this output are sent.

    To a client, a `LinkClosed` in answer is optional. A server counts the link until its `LinkClosed`.
    """

    link: int
    code: int = NORMAL
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindServers:
    """Find the current STUN and TURN servers for the client on this link, and answer with `ServersFound`."""

    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PingLink:
    """Send a WebSocket ping, unless one is under way, and pass in `LinkAnswered` when its pong arrives."""

    link: int


ClientOutput = OpenLink | SendText | CloseLink
ServerOutput = SendText | CloseLink | PingLink | FindServers
