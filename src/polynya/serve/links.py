"""Runs the signaling server's machine, `RoomServer`, on WebSockets.

Each link has a queue of texts and one task that sends them. A client that does not read is disconnected when its queue
is full, which bounds the memory that it uses. It may reconnect and resume.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from random import SystemRandom
from typing import Final, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from polynya.aio import clock
from polynya.core.errors import ConfigurationError
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.trace import NO_TRACE, Tracer
from polynya.signaling.limits import Limits
from polynya.signaling.links import (
    CloseLink,
    FindServers,
    LinkAnswered,
    LinkClosed,
    LinkOpened,
    LinkText,
    PingLink,
    SendText,
    ServerInput,
    ServerOutput,
    ServersFound,
)
from polynya.signaling.messages import IceServer
from polynya.signaling.server import LinkRefused, MemberJoined, MemberLeft, RoomEvent, RoomServer

from .transport import CLOSE_TIME

logger: Final = logging.getLogger("polynya.serve.signaling")

QUEUE_BYTES: Final = 1_048_576
"""Limit of the texts that wait for one client: more than all the signals that are kept for an absent member."""

ServerList = Callable[[], tuple[IceServer, ...]]
"""Returns the current STUN and TURN servers for one client, with new credentials."""


class Links:
    """All signaling WebSockets of the server, and their machine."""

    def __init__(
        self,
        limits: Limits,
        *,
        room_tokens: Sequence[str] = (),
        trace: Tracer = NO_TRACE,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        if queue_bytes < 2 * (limits.away_bytes + limits.message_bytes):
            raise ConfigurationError("queue_bytes is too small: it must hold all signals kept for an absent member")
        self.rooms = RoomServer(limits, random=SystemRandom(), tokens=room_tokens, trace=trace)
        self.closed = False
        self._queue_bytes = queue_bytes
        self._links: dict[int, _Link] = {}
        self._ids = count(1)
        self._empty = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Instant | None = None

    async def run(self, websocket: WebSocket, remote: str, servers: ServerList, connection: Connection) -> None:
        """Serve an accepted WebSocket until either side closes it.

        The machine counts a link that it closed until the connection is gone.
        """
        number = next(self._ids)
        link = self._links[number] = _Link(websocket, servers, connection, self._queue_bytes)
        sender = self._loop.create_task(link.send_all(), name=f"signaling link {number}")
        code = 1006
        try:
            self._take(LinkOpened(link=number, remote=remote, servers=servers()))
            code = await self._read(number, websocket)
        finally:
            del self._links[number]
            if not self._links:
                self._empty.set()
            try:
                if link.ending:
                    with suppress(asyncio.CancelledError):
                        await sender
                    await connection.gone()
            finally:
                link.ended()
                self._take(LinkClosed(link=number, code=code))
                sender.cancel()
                with suppress(asyncio.CancelledError):
                    await sender

    async def _read(self, number: int, websocket: WebSocket) -> int:
        """Pass all messages to the machine. Returns the close code."""
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return message.get("code") or 1006
            text = message.get("text")
            self._take(LinkText(number, text if text is not None else message["bytes"]))

    async def aclose(self, timeout: float) -> None:
        """Send every client an error, and wait up to `timeout` seconds until all links are closed."""
        self.closed = True
        self._step(self.rooms.close)
        if self._timer is not None:
            self._timer.cancel()
        if self._links:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)
        for link in list(self._links.values()):
            link.cut()

    def _take(self, input: ServerInput) -> None:
        self._step(self.rooms.receive, input)

    def _step(self, method: Callable[..., None], *args: ServerInput) -> None:
        method(*args, now=clock.now())
        while outputs := self.rooms.outputs():  # FindServers is answered at once, which makes more outputs
            for output in outputs:
                self._execute(output)
        for event in self.rooms.events():
            _log(event)
        self._set_timer()

    def _execute(self, output: ServerOutput) -> None:
        link = self._links.get(output.link)
        if link is None:
            return
        if isinstance(output, SendText):
            if not link.put(output.text):
                logger.warning("link %d disconnected: the client does not read its messages", output.link)
                link.cut()
        elif isinstance(output, CloseLink):
            link.end(output.code, output.reason)
        elif isinstance(output, PingLink):
            link.ping(partial(self._take, LinkAnswered(link=output.link)))
        elif isinstance(output, FindServers):
            self.rooms.receive(ServersFound(link=output.link, servers=link.servers()), now=clock.now())

    def _set_timer(self) -> None:
        due = self.rooms.next_timer()
        if (
            self.closed
            or due is None
            or (self._timer is not None and self._timer_at is not None and self._timer_at <= due)
        ):
            return  # a timer that fires too early does nothing and is set again
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        delay = max(0, -((clock.now() - due) // MILLISECOND)) / 1000
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._step(self.rooms.tick)


Abort = Callable[[], None]
"""Aborts the connection without sending the texts that wait."""

Gone = Callable[[], Awaitable[object]]
"""Waits until the connection is gone."""

Ping = Callable[[Callable[[], None]], None]
"""Sends a WebSocket ping, and calls its argument when the pong arrives."""


class Connection(NamedTuple):
    """Functions that the transport of a WebSocket offers to its link."""

    abort: Abort
    gone: Gone
    ping: Ping


class _Link:
    """The queue of texts to send on one WebSocket."""

    def __init__(self, websocket: WebSocket, servers: ServerList, connection: Connection, queue_bytes: int) -> None:
        self.servers = servers
        self.ping = connection.ping
        self.ending = False
        self._websocket = websocket
        self._abort = connection.abort
        self._free = queue_bytes
        self._texts: deque[str] = deque()
        self._close: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self._cut: asyncio.TimerHandle | None = None

    def put(self, text: str) -> bool:
        """Queue a text. Returns False if it does not fit into the queue."""
        if len(text) > self._free:
            return False
        self._free -= len(text)
        self._texts.append(text)
        self._wake.set()
        return True

    def end(self, code: int, reason: str) -> None:
        """Close the WebSocket after all queued texts are sent, and abort the connection if that takes too long."""
        self.ending = True
        if self._cut is None:
            self._cut = asyncio.get_running_loop().call_later(CLOSE_TIME, self.cut)
        self._close = (code, reason)
        self._wake.set()

    def ended(self) -> None:
        """Cancel the timer of `end`: the connection is gone."""
        if self._cut is not None:
            self._cut.cancel()

    def cut(self) -> None:
        """Abort the connection at once."""
        self._texts.clear()
        self._abort()

    async def send_all(self) -> None:
        """Send queued texts until `end` is called. Only this task waits for a slow reader."""
        try:
            while True:
                while self._texts:
                    text = self._texts.popleft()
                    await self._websocket.send_text(text)
                    self._free += len(text)
                if self._close is not None:
                    await self._websocket.close(*self._close)
                    return
                self._wake.clear()
                await self._wake.wait()
        except (WebSocketDisconnect, RuntimeError):  # the other side has closed the connection
            if self._websocket.application_state is WebSocketState.CONNECTED:
                self._abort()


def _log(event: RoomEvent) -> None:
    """Log changes of membership with shortened ids. Names of rooms are secrets and are never logged."""
    if isinstance(event, MemberJoined):
        verb = "resumed from" if event.resumed else "joined from"
        logger.info("%s %s %s (%d members in the room)", event.peer[:8], verb, event.remote, event.members)
    elif isinstance(event, MemberLeft):
        logger.info("%s left: %s", event.peer[:8], event.reason)
    elif isinstance(event, LinkRefused):
        logger.warning("link %d from %s closed: %s: %s", event.link, event.remote, event.code, event.reason)
