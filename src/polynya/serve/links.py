"""The shell of the rooms: WebSockets in, `RoomServer` in the middle, WebSockets out.

Each link has a queue of what is to be sent and one task that sends it. A member that does not read is cut off when its
queue is full, so that it costs its own place and nobody else's memory; it may come back and resume.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from random import SystemRandom
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from polynya.aio import clock
from polynya.core.errors import ConfigurationError
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.trace import NO_TRACE, Tracer
from polynya.signaling.limits import Limits
from polynya.signaling.links import CloseLink, LinkClosed, LinkInput, LinkOpened, LinkOutput, LinkText, SendText
from polynya.signaling.messages import IceServer
from polynya.signaling.server import LinkRefused, MemberJoined, MemberLeft, RoomEvent, RoomServer

logger: Final = logging.getLogger("polynya.serve.signaling")

QUEUE_BYTES: Final = 1_048_576
"""What may wait for a member that does not read: more than a whole resume hands over."""


class Links:
    """All WebSockets of the server, and the machine behind them."""

    def __init__(self, limits: Limits, *, trace: Tracer = NO_TRACE, queue_bytes: int = QUEUE_BYTES) -> None:
        if queue_bytes < 2 * (limits.away_bytes + limits.message_bytes):
            raise ConfigurationError("the queue of a link must have room for all that is kept for an absent member")
        self.rooms = RoomServer(limits, random=SystemRandom(), trace=trace)
        self.closed = False
        self._queue_bytes = queue_bytes
        self._links: dict[int, _Link] = {}
        self._ids = count(1)
        self._empty = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Instant | None = None

    async def run(self, websocket: WebSocket, remote: str, servers: tuple[IceServer, ...], abort: Abort) -> None:
        """Serve one WebSocket that was accepted, until it is closed by either side."""
        number = next(self._ids)
        link = self._links[number] = _Link(websocket, abort, self._queue_bytes)
        sender = self._loop.create_task(link.send_all(), name=f"signaling link {number}")
        code = 1006
        try:
            self._take(LinkOpened(link=number, remote=remote, servers=servers))
            code = await self._read(number, websocket)
        finally:
            del self._links[number]
            if not self._links:
                self._empty.set()
            self._take(LinkClosed(link=number, code=code))
            if not link.ending:
                sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    async def _read(self, number: int, websocket: WebSocket) -> int:
        """Hand in what arrives; the code of the close."""
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return message.get("code") or 1006
            text = message.get("text")
            self._take(LinkText(number, text if text is not None else message["bytes"]))

    async def aclose(self, timeout: float) -> None:
        """Tell every member, and give them `timeout` seconds to take it."""
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

    def _take(self, input: LinkInput) -> None:
        self._step(self.rooms.receive, input)

    def _step(self, method: Callable[..., None], *args: LinkInput) -> None:
        method(*args, now=clock.now())
        for output in self.rooms.outputs():
            self._perform(output)
        for event in self.rooms.events():
            _log(event)
        self._set_timer()

    def _perform(self, output: LinkOutput) -> None:
        link = self._links.get(output.link)
        if link is None:
            return
        if isinstance(output, SendText):
            if not link.put(output.text):
                logger.warning("link %d does not read what it is sent and is cut off", output.link)
                link.cut()
        elif isinstance(output, CloseLink):
            link.end(output.code, output.reason)

    def _set_timer(self) -> None:
        due = self.rooms.next_timer()
        if (
            self.closed
            or due is None
            or (self._timer is not None and self._timer_at is not None and self._timer_at <= due)
        ):
            return  # a timer that fires early finds nothing due and is set anew
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        delay = max(0, -((clock.now() - due) // MILLISECOND)) / 1000
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._step(self.rooms.tick)


Abort = Callable[[], None]
"""Drops the connection without waiting for what it has not taken."""


class _Link:
    """What one member is to be sent, in order."""

    def __init__(self, websocket: WebSocket, abort: Abort, room: int) -> None:
        self.ending = False
        self._websocket = websocket
        self._abort = abort
        self._room = room
        self._texts: deque[str] = deque()
        self._close: tuple[int, str] | None = None
        self._wake = asyncio.Event()

    def put(self, text: str) -> bool:
        """Send a text after all others; False when too much waits already."""
        if len(text) > self._room:
            return False
        self._room -= len(text)
        self._texts.append(text)
        self._wake.set()
        return True

    def end(self, code: int, reason: str) -> None:
        """Close the WebSocket after what waits."""
        self.ending = True
        self._close = (code, reason)
        self._wake.set()

    def cut(self) -> None:
        self._texts.clear()
        self._abort()

    async def send_all(self) -> None:
        """Send until told to close. What the other side does not take is waited for here, and by nobody else."""
        try:
            while True:
                while self._texts:
                    text = self._texts.popleft()
                    await self._websocket.send_text(text)
                    self._room += len(text)
                if self._close is not None:
                    await self._websocket.close(*self._close)
                    return
                self._wake.clear()
                await self._wake.wait()
        except (WebSocketDisconnect, RuntimeError):  # gone, or closed by the other side in between
            if self._websocket.application_state is WebSocketState.CONNECTED:
                self._abort()


def _log(event: RoomEvent) -> None:
    """Who came and went, by the short form of their ids; the rooms' names are their keys and are not told."""
    if isinstance(event, MemberJoined):
        verb = "came back from" if event.resumed else "joined from"
        logger.info("%s %s %s (%d in the room)", event.peer[:8], verb, event.remote, event.members)
    elif isinstance(event, MemberLeft):
        logger.info("%s left: %s", event.peer[:8], event.reason)
    elif isinstance(event, LinkRefused):
        logger.warning("link %d from %s closed: %s: %s", event.link, event.remote, event.code, event.reason)
