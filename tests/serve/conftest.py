"""Runs a coroutine on each event loop. Fails if it leaves a task behind or an exception unhandled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

LIMIT = 60.0
"""Seconds after which a test with real sockets fails."""

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.SelectorEventLoop

    def run(test: Coroutine[Any, Any, None]) -> None:
        unhandled: list[dict[str, Any]] = []

        async def guarded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            async with asyncio.timeout(LIMIT):
                await test
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks were left behind: {left}"

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(guarded())
        assert not unhandled

    return run
