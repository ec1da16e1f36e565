"""Waiting for a change of an object, by any number of tasks."""

from __future__ import annotations

import asyncio


class Waiting:
    """Base class of objects that tasks wait for: `_changed` returns after the next `_wake`."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: tuple[asyncio.Future[None], ...] = ()  # mostly none: a list would take room in every agent

    async def _changed(self) -> None:
        """Waits until the object changes."""
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
