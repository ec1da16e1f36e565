"""The client of a server list: requests the STUN and TURN servers of a signaling server without joining a room.

It opens one link, and never a second one:

    state        event                  next         action
    IDLE         start                  CONNECTING   open a link
    CONNECTING   link opened            REQUESTING   send `servers`
    REQUESTING   server list            ENDED        emit `ServersReceived`; close the link
    any          error, link closed,    ENDED        emit `Ended` with the reason; close the link
                 no answer in time
"""

from __future__ import annotations

from enum import Enum

from polynya.core.compact import Queue
from polynya.core.errors import DecodeError, UsageError
from polynya.core.instants import SECOND, Instant

from .client import Ended, ServersReceived
from .links import NORMAL, ClientInput, ClientOutput, CloseLink, LinkClosed, LinkText, OpenLink, SendText
from .messages import Error, ListServers, ServerList, decode_from_server, encode

LINK = 1


class ServerListState(Enum):
    """State of a client of a server list; see the table above."""

    IDLE = "idle"
    CONNECTING = "connecting"
    REQUESTING = "requesting"
    ENDED = "ended"


ServerListEvent = ServersReceived | Ended


class ServerListClient:
    """Requests one server list. `timeout` is in nanoseconds, from the start to the answer.

    `token` is that of the server's operator, if its rooms need one.
    """

    def __init__(self, *, token: str = "", timeout: int = 10 * SECOND) -> None:
        self._token = token
        self.state = ServerListState.IDLE
        self._timeout = timeout
        self._give_up_at: Instant | None = None
        self._outputs: Queue[ClientOutput] = Queue()
        self._events: Queue[ServerListEvent] = Queue()

    def start(self, *, now: Instant) -> None:
        """Open a link and request the list."""
        if self.state is not ServerListState.IDLE:
            raise UsageError("the client of the server list has already been started")
        self.state = ServerListState.CONNECTING
        self._give_up_at = Instant(now + self._timeout)
        self._outputs.append(OpenLink(link=LINK))

    def receive(self, input: ClientInput, *, now: Instant) -> None:  # noqa: ARG002 - part of the machine contract
        """Handle an event of the link. Never raises because of a message from the server."""
        if self.state is ServerListState.ENDED:
            return
        if isinstance(input, LinkText):
            self._on_text(input.text)
        elif isinstance(input, LinkClosed):
            self._end("unreachable", input.reason or f"the connection was closed with code {input.code}", close=False)
        elif self.state is ServerListState.CONNECTING:
            self.state = ServerListState.REQUESTING
            self._outputs.append(SendText(LINK, encode(ListServers(self._token))))

    def network_changed(self, *, now: Instant) -> None:
        """Do nothing: the request ends by its own timeout."""

    def tick(self, *, now: Instant) -> None:
        """Give up if the answer is overdue."""
        if self._give_up_at is not None and now >= self._give_up_at:
            self._end("no-answer", "the signaling server did not answer in time")

    def next_timer(self) -> Instant | None:
        """The instant at which to give up, before the end."""
        return self._give_up_at

    def leave(self, *, now: Instant) -> None:  # noqa: ARG002 - part of the machine contract
        """Close the link without an answer."""
        if self.state is not ServerListState.ENDED:
            self._end("left", "left")

    def outputs(self) -> list[ClientOutput]:
        return self._outputs.drain()

    def events(self) -> list[ServerListEvent]:
        return self._events.drain()

    def _on_text(self, text: str | bytes) -> None:
        try:
            message = decode_from_server(text)
        except DecodeError:
            return  # a type of message that a later server may send
        if isinstance(message, ServerList):
            self._events.append(ServersReceived(servers=message.servers, no_relay=message.no_relay))
            self._close()
        elif isinstance(message, Error):
            self._end(message.code, message.message)

    def _end(self, code: str, reason: str, *, close: bool = True) -> None:
        self._events.append(Ended(code=code, reason=reason))
        self._close(close=close)

    def _close(self, *, close: bool = True) -> None:
        if close and self.state is not ServerListState.IDLE:
            self._outputs.append(CloseLink(link=LINK, code=NORMAL))
        self.state = ServerListState.ENDED
        self._give_up_at = None
