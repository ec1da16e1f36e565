"""A byte stream in datagrams, as they come: no order, no repair, no encryption, but a sure end.

Each chunk is one datagram. An empty datagram, which no chunk is, is the **end**: its sender has no more to send and
goes on receiving. A side that has sent its end repeats it until the other's end has come, so no single loss matters.

    both ends seen                                    over, after a short rest in which late chunks still count and a
                                                      repeated end is answered (the other side may have missed ours)
    the other ended, our source is silent `linger`    we end too: whoever waits for us must not wait for a terminal
    we ended, nothing came for `linger` + PATIENCE    over, unconfirmed: the other side is gone
    the connection is closed or lost                  over, unconfirmed

So `echo hi | polynya connect r` ends both sides whatever the other's standard input is, and two that both send get all
of each other's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from polynya.core.errors import ConnectionClosed

END: Final = b""
REPEAT: Final = 0.1
"""Seconds between two ends."""
REST: Final = 0.3
"""Seconds of silence after both ends; two losses of an end in a row fit in."""
PATIENCE: Final = 2.0
GOODBYES: Final = 3
BURST: Final = 32
PAUSE: Final = 0.004
"""Seconds after BURST chunks, so that a file does not overrun the other side's buffers: 8,000 datagrams a second."""
REFUSALS: Final = 100
"""How often a chunk that the system refuses (its buffer is full) is tried again, PAUSE apart."""


class Datagrams(Protocol):
    """What is needed of a connection."""

    def send(self, data: bytes) -> bool:
        """Send one datagram; False when it was refused."""

    async def recv(self) -> bytes:
        """The next datagram; ConnectionClosed when there is none any more."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How it went."""

    chunks_sent: int = 0
    chunks_received: int = 0
    refused: int = 0
    """Chunks that never left this host."""
    confirmed: bool = False
    """The other side said that it had sent all."""
    reason: str = ""


class ChunkStream:
    """One run of a stream in both directions."""

    def __init__(
        self, connection: Datagrams, write: Callable[[bytes], Awaitable[None]], *, linger: float = 1.0
    ) -> None:
        self.outcome = Outcome()
        self._connection = connection
        self._write = write
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._other_ended = asyncio.Event()
        self._active = self._heard = self._end_sent = self._loop.time()

    async def run(self, source: AsyncIterator[bytes]) -> Outcome:
        """Send all of `source` and write what comes, until both sides are done. Cancelling tells the other side."""
        receiving = asyncio.create_task(self._receive(), name="chunks received")
        sending = asyncio.create_task(self._send(source), name="chunks sent")
        try:
            await self._until_over(sending, receiving)
        finally:
            for task in (sending, receiving):
                task.cancel()
            if not self.outcome.confirmed:
                await self._say_goodbye()
            results = await asyncio.gather(sending, receiving, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return self.outcome

    async def _until_over(self, sending: asyncio.Task[None], receiving: asyncio.Task[None]) -> None:
        outcome = self.outcome
        while True:
            await asyncio.wait([receiving], timeout=REPEAT / 2)
            now = self._loop.time()
            if receiving.done():
                outcome.reason = "the connection is closed"
                return
            if sending.done() and sending.exception() is not None:
                outcome.reason = "the source failed"
                return
            if not self._ended and (sending.done() or self._is_waited_for(now=now)):
                self._ended = True
                self._say_end()
            if self._other_ended.is_set():
                outcome.confirmed = True
                if self._ended and now - max(self._heard, self._end_sent) >= REST:
                    outcome.reason = "both sides sent all"
                    return
            elif self._ended:
                if now - max(self._heard, self._active) >= self._linger + PATIENCE:
                    outcome.reason = "the other side did not confirm the end"
                    return
                if now - self._end_sent >= REPEAT:
                    self._say_end()

    def _is_waited_for(self, *, now: float) -> bool:
        return self._other_ended.is_set() and now - max(self._active, self._heard) >= self._linger

    async def _send(self, source: AsyncIterator[bytes]) -> None:
        burst = 0
        async for chunk in source:
            if self._ended:
                return
            await self._send_chunk(chunk)
            burst += 1
            if burst >= BURST:
                burst = 0
                await asyncio.sleep(PAUSE)

    async def _send_chunk(self, chunk: bytes) -> None:
        for _ in range(REFUSALS):
            try:
                if self._connection.send(chunk):
                    self.outcome.chunks_sent += 1
                    self._active = self._loop.time()
                    return
            except ConnectionClosed:
                return  # the receiving side tells why
            await asyncio.sleep(PAUSE)
        self.outcome.refused += 1

    async def _receive(self) -> None:
        while True:
            try:
                data = await self._connection.recv()
            except ConnectionClosed:
                return
            now = self._loop.time()
            if data:
                self._heard = now
                self.outcome.chunks_received += 1
                await self._write(data)
            elif not self._other_ended.is_set():
                self._heard = now
                self._other_ended.set()
            elif self._ended and now - self._end_sent >= REPEAT:
                self._say_end()  # a repeated end: ours was lost

    async def _say_goodbye(self) -> None:
        """The end, for one who will not be answered any more."""
        for _ in range(GOODBYES):
            self._say_end()
            await asyncio.sleep(PAUSE)

    def _say_end(self) -> None:
        self._end_sent = self._loop.time()
        try:
            self._connection.send(END)
        except ConnectionClosed:
            return
