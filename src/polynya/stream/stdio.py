"""Standard input and output for an event loop: files, pipes and terminals.

An event loop can wait for pipes and terminals but not for files, so each descriptor has a thread. The threads are
daemons: a blocked read of a terminal, or a blocked write, does not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

READ_AHEAD: Final = 64
"""Chunks that are read in advance."""
WRITE_BEHIND: Final = 256
"""Chunks that are buffered for a slow reader before `write` waits."""

_NO_INPUT: Final = (errno.EBADF, errno.EIO)
"""Errors that are an end of the input: the descriptor is not open, or its terminal was closed."""


async def read_chunks(descriptor: int, size: int) -> AsyncIterator[bytes]:
    """Yield what a file descriptor reads, at most `size` bytes at a time, until its end.

    Raises OSError if it cannot be read, as a directory.
    """
    loop = asyncio.get_running_loop()
    chunks: deque[bytes | OSError] = deque()
    room = threading.Semaphore(READ_AHEAD)
    arrived = asyncio.Event()

    def take(chunk: bytes | OSError) -> None:
        chunks.append(chunk)
        arrived.set()

    def read() -> None:
        chunk: bytes | OSError = b"?"
        while chunk and not isinstance(chunk, OSError):
            room.acquire()
            try:
                chunk = os.read(descriptor, size)
            except OSError as error:
                chunk = b"" if error.errno in _NO_INPUT else error
            try:
                loop.call_soon_threadsafe(take, chunk)
            except RuntimeError:
                return  # the loop is closed

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while True:
        while not chunks:
            arrived.clear()
            await arrived.wait()
        chunk = chunks.popleft()
        room.release()
        if isinstance(chunk, OSError):
            raise chunk
        if not chunk:
            return
        yield chunk


class Writer:
    """Writes to a file descriptor in order. `broken` is the error after which nothing more is written."""

    def __init__(self, descriptor: int) -> None:
        self.broken: OSError | None = None
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._wake = threading.Condition()
        self._closing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._done = asyncio.Event()
        threading.Thread(target=self._write_all, name="standard output", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Queue data for writing; wait if the queue is full.

        Raises BrokenPipeError if the reader has closed the output, another OSError if it cannot be written.
        """
        if self.broken is not None:
            raise self.broken
        with self._wake:
            self._chunks.append(data)
            self._wake.notify()
        self._waiting += 1
        if self._waiting >= WRITE_BEHIND:
            self._drained.clear()
            await self._drained.wait()

    async def aclose(self, timeout: float | None = None) -> bool:
        """Wait until everything is written, at most `timeout` seconds. Return whether it is."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        try:
            async with asyncio.timeout(timeout):
                await self._done.wait()
        except TimeoutError:
            return False
        return self.broken is None

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not self._chunks and not self._closing:
                    self._wake.wait()
                count, data = len(self._chunks), b"".join(self._chunks)
                self._chunks.clear()
            broken = self._write_out(data)
            finished = broken is not None or not count
            try:
                self._loop.call_soon_threadsafe(self._written, count, broken, finished)
            except RuntimeError:
                return  # the loop is closed
            if finished:
                return

    def _write_out(self, data: bytes) -> OSError | None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            return error
        return None

    def _written(self, count: int, broken: OSError | None, finished: bool) -> None:
        self._waiting -= count
        self.broken = self.broken or broken
        if self._waiting < WRITE_BEHIND or broken is not None:
            self._drained.set()
        if finished:
            self._done.set()
