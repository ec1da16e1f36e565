"""The child process of a peer: the parent starts it with a task, reads its records and always ends it."""

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
"""How many of the last bytes of a peer's standard error are kept."""
COMMAND: Final = (sys.executable, "-P", "-m", "polynya.demo.peer")
"""-P keeps modules of the current folder from replacing those of Python."""


class Child:
    """A child process. Call `start`, await `ended`, and always call `stop`."""

    def __init__(
        self,
        task: Task,
        on_record: Callable[[str, Record], None],
        *,
        command: Sequence[str] = COMMAND,
        grace: float = 3.0,
    ) -> None:
        """`on_record(name, record)` receives each record. `stop` kills the process after `grace` seconds."""
        self.name = task.name
        self.errors = b""
        """The end of its standard error."""
        self.ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        """Its outcome; None if its output ended without one."""
        self._task = task
        self._on_record = on_record
        self._command = command
        self._grace = grace
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; a negative one is the number of the signal that ended the process."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the process and write its task. Raises ConfigurationError if the system cannot start it."""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_LIMIT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its children
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
        """Close its input and wait for its exit; kill it after the grace period. Safe to call twice and to cancel."""
        process = self._process
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
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
                self._on_record(self.name, record)
                if isinstance(record, Outcome) and not self.ended.done():
                    self.ended.set_result(record)
        except (DecodeError, ValueError) as error:  # ValueError: a line longer than the limit
            self.errors += f"\n{error}".encode()
        finally:
            if not self.ended.done():
                self.ended.set_result(None)

    async def _keep(self, errors: asyncio.StreamReader) -> None:
        while data := await errors.read(4096):
            self.errors = (self.errors + data)[-ERRORS_KEPT:]
