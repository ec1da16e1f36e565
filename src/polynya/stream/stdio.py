"""Standard input and output for an event loop: files, pipes and terminals.

An event loop can wait for pipes and terminals but not for files, so each descriptor has a thread. The threads are
daemons: a blocked read of a terminal, or a blocked write, does not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

READ_AHEAD: Final = 64
"""Chunks that are read in advance."""
WRITE_BEHIND: Final = 256
"""Chunks that are buffered for a slow reader before `write` waits."""


async def read_chunks(descriptor: int, size: int) -> AsyncIterator[bytes]:
    """Yield what a file descriptor reads, at most `size` bytes at a time, until its end."""
    loop = asyncio.get_running_loop()
    chunks: deque[bytes] = deque()
    room = threading.Semaphore(READ_AHEAD)
    arrived = asyncio.Event()

    def take(chunk: bytes) -> None:
        chunks.append(chunk)
        arrived.set()

    def read() -> None:
        chunk = b"?"
        while chunk:
            room.acquire()
            try:
                chunk = os.read(descriptor, size)
            except OSError:
                chunk = b""  # a terminal was closed, or the descriptor is not open
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
        if not chunk:
            return
        yield chunk


class Writer:
    """Writes to a file descriptor in order. `broken` is set if the reader has closed the other end."""

    def __init__(self, descriptor: int) -> None:
        self.broken = False
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
        """Queue data for writing; wait if the queue is full. Raises BrokenPipeError if the output is closed."""
        if self.broken:
            raise BrokenPipeError("the reader has closed the output")
        with self._wake:
            self._chunks.append(data)
            self._wake.notify()
        self._waiting += 1
        if self._waiting >= WRITE_BEHIND:
            self._drained.clear()
            await self._drained.wait()

    async def aclose(self, timeout: float) -> bool:
        """Wait until everything is written, at most `timeout` seconds. Return whether it is."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        try:
            async with asyncio.timeout(timeout):
                await self._done.wait()
        except TimeoutError:
            return False
        return not self.broken

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not self._chunks and not self._closing:
                    self._wake.wait()
                count, data = len(self._chunks), b"".join(self._chunks)
                self._chunks.clear()
            broken = not self._write_out(data)
            finished = broken or not count
            try:
                self._loop.call_soon_threadsafe(self._written, count, broken, finished)
            except RuntimeError:
                return  # the loop is closed
            if finished:
                return

    def _write_out(self, data: bytes) -> bool:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            return False
        return True

    def _written(self, count: int, broken: bool, finished: bool) -> None:
        self._waiting -= count
        self.broken = self.broken or broken
        if self._waiting < WRITE_BEHIND or broken:
            self._drained.set()
        if finished:
            self._done.set()
