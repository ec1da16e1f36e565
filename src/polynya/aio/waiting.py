"""Waiting for something to happen to an object, by as many tasks as like."""

from __future__ import annotations

import asyncio


class Waiting:
    """What others can wait for."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: tuple[asyncio.Future[None], ...] = ()  # mostly none: a list would take room in every agent

    async def _changed(self) -> None:
        """Wait until something has happened since the call."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
