"""A byte stream in datagrams without order, retransmission or encryption, but with a reliable end and honest counts.

The first byte of a datagram is its kind:

    DATA      one chunk
    GOODBYE   the end of the sender's stream, with the number of its chunks and of their bytes
    HOLD      the sender cannot write what it receives at the moment: it is there, and asks for a pause

A side that has sent its goodbye keeps receiving, and repeats the goodbye until it receives the other one. So a lost
goodbye does no harm. A goodbye counts more chunks than arrived if some were lost: the outcome has the difference.

    both ends seen                                  finished, after REST: late chunks still count, and a repeated end
                                                    is answered, because the other side may have missed ours
    other end seen, our source silent for `linger`  we send our end: a terminal must not keep the other side waiting
    our end sent, nothing received for `linger`     finished, unconfirmed: the other side is gone
      and END_TIMEOUT
    the connection is closed or lost                finished; confirmed if the other end was seen and no chunk of ours
                                                    was left

So `echo hi | polynya connect r` ends both sides whatever the other's standard input is, and two sides that both send
receive all of each other's chunks.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from polynya.core.errors import ConnectionClosed

DATA: Final = b"\x00"
GOODBYE: Final = b"\x01"
HOLD: Final = b"\x02"
HEADER: Final = 1
"""Bytes that a chunk needs beside its own in a datagram."""
_COUNTS: Final = struct.Struct("!cQQ")

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
BLOCKED: Final = 0.02
"""Seconds of a write after which the other side is asked for a pause."""
HELD: Final = 0.4
"""Seconds of such a pause. The request is repeated as often as the end."""


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
    bytes_received: int = 0
    refused: int = 0
    """Chunks that the system refused for good."""
    chunks_missing: int = 0
    bytes_missing: int = 0
    """Chunks and bytes that the other side counted in its goodbye, and that did not arrive."""
    confirmed: bool = False
    """Whether the other end was received, and all of the source was sent."""
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
        self._left_over = False
        """Whether a chunk could not be sent because the connection was closed."""
        self._offered = self._offered_bytes = 0
        """Counts for the goodbye: chunks that were sent or refused, and their bytes."""
        self._counted: tuple[int, int] | None = None
        """The counts of the other goodbye."""
        self._closed = ""
        self._other_ended = asyncio.Event()
        self._sent_at = self._received_at = self._end_sent_at = self._loop.time()
        self._writing_since: float | None = None
        self._held_at = self._held_until = 0.0

    async def run(self, source: AsyncIterator[bytes]) -> Outcome:
        """Send all of `source` and write received chunks until both sides have ended. Cancelling sends the end, too.

        The source yields chunks of HEADER bytes less than the datagrams of the connection may have.
        """
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
        self._count_missing()
        return self.outcome

    def _count_missing(self) -> None:
        outcome = self.outcome
        if self._counted is not None:
            chunks, size = self._counted
            outcome.chunks_missing = max(0, chunks - outcome.chunks_received)
            outcome.bytes_missing = max(0, size - outcome.bytes_received)

    async def _until_over(self, sending: asyncio.Task[None], receiving: asyncio.Task[None]) -> None:
        outcome = self.outcome
        while True:
            await asyncio.wait([receiving], timeout=REPEAT / 2)
            now = self._loop.time()
            if receiving.done():
                if self._closed and not sending.done():  # it may have a chunk that cannot be sent any more
                    await asyncio.wait([sending], timeout=REPEAT)
                outcome.confirmed = self._other_ended.is_set() and not self._left_over
                both = outcome.confirmed and self._ended
                before = " before all was sent" if self._left_over else ""
                outcome.reason = "both sides sent all" if both else f"the connection ended{before}: {self._closed}"
                return
            if sending.done() and sending.exception() is not None:
                outcome.reason = "the source failed"
                return
            self._ask_for_a_pause(now=now)
            if not self._ended and (sending.done() or self._should_end(now=now)):
                self._ended = True
                self._send_end()
            if self._writing_since is not None:
                continue  # the next datagrams are still unread
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
        silent = now - max(self._sent_at, self._received_at, self._held_until) >= self._linger
        return self._other_ended.is_set() and silent

    async def _send(self, source: AsyncIterator[bytes]) -> None:
        burst = 0
        async for chunk in source:
            await self._pause()
            if self._ended:
                return
            await self._send_chunk(chunk)
            burst += 1
            if burst >= BURST:
                burst = 0
                await asyncio.sleep(PAUSE)

    async def _pause(self) -> None:
        """Wait as long as the other side asks for."""
        while not self._closed:
            held = self._held_until - self._loop.time()
            if held <= 0:
                return
            await asyncio.sleep(min(held, REPEAT / 2))

    async def _send_chunk(self, chunk: bytes) -> None:
        self._offered += 1
        self._offered_bytes += len(chunk)
        for _ in range(REFUSALS):
            try:
                if self._connection.send(DATA + chunk):
                    self.outcome.chunks_sent += 1
                    self._sent_at = self._loop.time()
                    return
            except ConnectionClosed:
                self._left_over = True  # `_receive` reports the reason
                return
            await asyncio.sleep(PAUSE)
        self.outcome.refused += 1

    async def _receive(self) -> None:
        outcome = self.outcome
        while True:
            try:
                data = await self._connection.recv()
            except ConnectionClosed as closed:
                self._closed = str(closed) or "closed"
                return
            now, kind = self._loop.time(), data[:1]
            if kind == DATA:
                outcome.chunks_received += 1
                outcome.bytes_received += len(data) - HEADER
                self._writing_since = now
                await self._write(data[HEADER:])
                self._writing_since = None
                self._received_at = self._loop.time()
            elif kind == HOLD:
                self._received_at = now
                self._held_until = now + HELD
            elif kind == GOODBYE and len(data) == _COUNTS.size:
                self._goodbye(data, now=now)

    def _goodbye(self, data: bytes, *, now: float) -> None:
        self._counted = _COUNTS.unpack(data)[1:]
        if not self._other_ended.is_set():
            self._received_at = now
            self._other_ended.set()
        elif self._ended and now - self._end_sent_at >= REPEAT:
            self._send_end()  # the other end was repeated: ours was lost

    def _ask_for_a_pause(self, *, now: float) -> None:
        """Ask the other side to wait while the output takes nothing; it shows, too, that this side is there."""
        since = self._writing_since
        if since is not None and now - since >= BLOCKED and now - self._held_at >= REPEAT:
            self._held_at = now
            self._push(HOLD)

    async def _send_last_ends(self) -> None:
        """Send the end several times, because a lost one is not repeated later."""
        for _ in range(LAST_ENDS):
            self._send_end()
            await asyncio.sleep(PAUSE)

    def _send_end(self) -> None:
        self._end_sent_at = self._loop.time()
        self._push(_COUNTS.pack(GOODBYE, self._offered, self._offered_bytes))

    def _push(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except ConnectionClosed:
            return
