"""Links: what the signaling machines get from and ask of the shell that owns the WebSockets.

A link is one WebSocket, by a number that is never used again. On it travel texts, each a whole message, in order.
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
"""A member came back on another link (RFC 6455, section 7.4.2: 4000-4999 are for private use)."""

CLEAN: Final = frozenset({NORMAL, GOING_AWAY})
"""Close codes by which a member says that it is done; after any other it may come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOpened:
    """A WebSocket is open. The server's shell says whose it is and which ICE servers that member can reach."""

    link: int
    remote: str = ""
    """The other side's host, by which links are counted."""
    servers: tuple[IceServer, ...] = ()


@dataclass(slots=True)
class LinkText:
    """A message arrived. Bytes stand for a binary message, which this protocol does not have."""

    link: int
    text: str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClosed:
    """The WebSocket is gone or could not be opened; nothing more comes from it."""

    link: int
    code: int = 1006
    """The close code of RFC 6455; 1006 when the connection broke or never was."""
    reason: str = ""


LinkInput = LinkOpened | LinkText | LinkClosed


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
    """Close the WebSocket once all that was sent before is out. No `LinkClosed` needs to follow."""

    link: int
    code: int = NORMAL
    reason: str = ""


LinkOutput = OpenLink | SendText | CloseLink
