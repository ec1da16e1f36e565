"""Event loops for tests, and the one runner that async tests run on.

`tests/conftest.py` runs each `async def test_...` on every loop that its marker `loops` names; without the marker it
runs on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final

LIMIT: Final = 60.0
"""Seconds after which a test with real sockets is given up."""

POLL: Final = 0.005
"""Seconds between two looks of `until`."""


class WithoutReaders(asyncio.SelectorEventLoop):
    """Like the proactor loop of Windows: it cannot watch sockets."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: every task waits and no timer is scheduled")
            self.now += max(0.0, timeout)
        return ready


class Jumping(asyncio.SelectorEventLoop):
    """A loop with a virtual clock: sleeping takes no time, and a deadlock raises."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": _uvloop,
    "without readers": WithoutReaders,
    "jumping": Jumping,
}


def run(main: Coroutine[Any, Any, Any], loop: str = "asyncio", *, unhandled: int = 0) -> Any:
    """Run a coroutine; fail if it leaves a task behind or if the loop handled more or fewer errors than expected."""
    errors: list[dict[str, Any]] = []

    async def guarded() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with asyncio.timeout(None if loop == "jumping" else LIMIT):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks were left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        result = runner.run(guarded())
    assert len(errors) == unhandled, errors
    return result


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Poll until a condition holds; fail with its name when it does not in time."""
    try:
        async with asyncio.timeout(LIMIT / 2):
            while not condition():  # noqa: ASYNC110 - the condition may be the state of another process
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise AssertionError(f"{what} did not come to hold") from None
