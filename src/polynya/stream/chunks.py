"""A byte stream in datagrams without order, retransmission or encryption, but with a reliable end.

Each chunk is one datagram. A chunk is never empty; an empty datagram is the **end** of the sender's stream. A side that
has sent its end keeps receiving, and repeats the end until it receives the other end. So a lost end does no harm.

    both ends seen                                  finished, after REST: late chunks still count, and a repeated end
                                                    is answered, because the other side may have missed ours
    other end seen, our source silent for `linger`  we send our end: a terminal must not keep the other side waiting
    our end sent, nothing received for `linger`     finished, unconfirmed: the other side is gone
      and END_TIMEOUT
    the connection is closed or lost                finished; confirmed if the other end was seen

So `echo hi | polynya connect r` ends both sides whatever the other's standard input is, and two sides that both send
receive all of each other's chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from polynya.core.errors import ConnectionClosed

END: Final = b""
REPEAT: Final = 0.1
"""Seconds between two ends that are sent."""
REST: Final = 0.3
"""Seconds of silence after both ends. Two lost ends in a row do not exceed it."""
END_TIMEOUT: Final = 2.0
"""Seconds, besides `linger`, to wait for the other end."""
LAST_ENDS: Final = 3
"""How often the end is sent when the run is aborted."""
BURST: Final = 32
PAUSE: Final = 0.004
"""Seconds after BURST chunks: 8,000 datagrams a second do not overrun the receiver's buffer."""
REFUSALS: Final = 100
"""How often a chunk that the system refuses (its buffer is full) is sent again, PAUSE apart."""


class Datagrams(Protocol):
    """The part of a connection that `ChunkStream` uses."""

    def send(self, data: bytes) -> bool:
        """Send one datagram; False if the system refused it."""

    async def recv(self) -> bytes:
        """Return the next datagram. Raises ConnectionClosed at the end of the connection."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The result of a run."""

    chunks_sent: int = 0
    chunks_received: int = 0
    refused: int = 0
    """Chunks that the system refused for good."""
    confirmed: bool = False
    """Whether the other end was received."""
    reason: str = ""


class ChunkStream:
    """A stream in both directions. It runs once."""

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
        self._sent_at = self._received_at = self._end_sent_at = self._loop.time()

    async def run(self, source: AsyncIterator[bytes]) -> Outcome:
        """Send all of `source` and write received chunks until both sides have ended. Cancelling sends the end, too."""
        receiving = asyncio.create_task(self._receive(), name="chunks received")
        sending = asyncio.create_task(self._send(source), name="chunks sent")
        try:
            await self._until_over(sending, receiving)
        finally:
            for task in (sending, receiving):
                task.cancel()
            if not self.outcome.confirmed:
                await self._send_last_ends()
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
                outcome.confirmed = self._other_ended.is_set()
                both = outcome.confirmed and self._ended
                outcome.reason = "both sides sent all" if both else "the connection is closed"
                return
            if sending.done() and sending.exception() is not None:
                outcome.reason = "the source failed"
                return
            if not self._ended and (sending.done() or self._should_end(now=now)):
                self._ended = True
                self._send_end()
            if self._other_ended.is_set():
                outcome.confirmed = True
                if self._ended and now - max(self._received_at, self._end_sent_at) >= REST:
                    outcome.reason = "both sides sent all"
                    return
            elif self._ended:
                if now - max(self._received_at, self._sent_at) >= self._linger + END_TIMEOUT:
                    outcome.reason = "the other side did not confirm the end"
                    return
                if now - self._end_sent_at >= REPEAT:
                    self._send_end()

    def _should_end(self, *, now: float) -> bool:
        return self._other_ended.is_set() and now - max(self._sent_at, self._received_at) >= self._linger

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
                    self._sent_at = self._loop.time()
                    return
            except ConnectionClosed:
                return  # `_receive` reports the reason
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
                self._received_at = now
                self.outcome.chunks_received += 1
                await self._write(data)
            elif not self._other_ended.is_set():
                self._received_at = now
                self._other_ended.set()
            elif self._ended and now - self._end_sent_at >= REPEAT:
                self._send_end()  # the other end was repeated: ours was lost

    async def _send_last_ends(self) -> None:
        """Send the end several times, because a lost one is not repeated later."""
        for _ in range(LAST_ENDS):
            self._send_end()
            await asyncio.sleep(PAUSE)

    def _send_end(self) -> None:
        self._end_sent_at = self._loop.time()
        try:
            self._connection.send(END)
        except ConnectionClosed:
            return
