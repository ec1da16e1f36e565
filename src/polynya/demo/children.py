"""A peer's process, as its parent sees it: started with a task, read to its end, and ended whatever happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from polynya.core.errors import ConfigurationError, DecodeError

from .records import Outcome, Record, Task, decode_record, encode

LINE_LIMIT: Final = 1 << 20
ERRORS_KEPT: Final = 8192
"""Bytes of a peer's standard error, the last ones."""
COMMAND: Final = (sys.executable, "-P", "-m", "polynya.demo.peer")
"""-P: a module of the current folder must not stand in for one of Python's."""


class Child:
    """`start`, then `outcome`, then `stop`: the last one always."""

    def __init__(
        self,
        task: Task,
        tell: Callable[[str, Record], None],
        *,
        command: Sequence[str] = COMMAND,
        patience: float = 3.0,
    ) -> None:
        """`patience` is for how many seconds it may take to leave in order, before it is killed."""
        self.name = task.name
        self.errors = b""
        """What it wrote to its standard error."""
        self.ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        """Its outcome; None when its output ended before there was one."""
        self._task = task
        self._tell = tell
        self._command = command
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative: the number of the signal that ended it."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process and give it its task; ConfigurationError when the system does not start it."""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_LIMIT,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
            )
        except OSError as error:
            program = self._command[0]
            raise ConfigurationError(f"cannot start {self.name}: {program}: {error.strerror or error}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(encode(self._task))
        self._readers = [
            asyncio.create_task(self._read(process.stdout), name=f"records of {self.name}"),
            asyncio.create_task(self._keep(process.stderr), name=f"errors of {self.name}"),
        ]

    async def stop(self) -> None:
        """Let it leave, and kill it when it does not. Safe to call twice, and to cancel."""
        process = self._process
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await asyncio.gather(process.wait(), *self._readers)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            for reader in self._readers:
                reader.cancel()
            await process.wait()
            await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read(self, output: asyncio.StreamReader) -> None:
        try:
            while line := await output.readline():
                record = decode_record(line)
                self._tell(self.name, record)
                if isinstance(record, Outcome) and not self.ended.done():
                    self.ended.set_result(record)
        except (DecodeError, ValueError) as error:  # ValueError: a line beyond the limit
            self.errors += f"\n{error}".encode()
        finally:
            if not self.ended.done():
                self.ended.set_result(None)

    async def _keep(self, errors: asyncio.StreamReader) -> None:
        while data := await errors.read(4096):
            self.errors = (self.errors + data)[-ERRORS_KEPT:]
