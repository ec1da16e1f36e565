"""Runs `polynya` as a process, always with a timeout."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Queue

import pytest

TIMEOUT = 60
COMMAND = [sys.executable, "-m", "polynya"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POLYNYA")}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", **more}


def polynya(
    *arguments: str, input: bytes = b"", server: str | None = None, timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[bytes]:
    """Run `polynya` to its end."""
    env = environment(**({"POLYNYA_SERVER": server} if server else {}))
    return subprocess.run(
        [*COMMAND, *arguments], input=input, capture_output=True, timeout=timeout, env=env, check=False
    )


class Process:
    """A running `polynya`; a thread reads its standard error."""

    def __init__(self, *arguments: str, server: str | None = None) -> None:
        env = environment(**({"POLYNYA_SERVER": server} if server else {}))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*COMMAND, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        self.printed: list[str] = []
        self.lines: Queue[str | None] = Queue()
        """Lines of standard error that are not read yet; None is its end."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line.decode())
        self.lines.put(None)

    def until(self, text: str) -> str:
        """Wait for a line of standard error that contains a text."""
        while True:
            line = self.lines.get(timeout=TIMEOUT)
            assert line is not None, f"it ended before it printed {text!r}: {self.printed}"
            self.printed.append(line)
            if text in line:
                return line

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        return self.process.wait(timeout)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start processes, and end them after the test."""
    started: list[Process] = []

    def start(*arguments: str, server: str | None = None) -> Process:
        started.append(Process(*arguments, server=server))
        return started[-1]

    yield start
    for each in started:
        each.end()


@dataclass(frozen=True)
class Running:
    process: Process
    url: str
    stun: str


@pytest.fixture
def own_server(start: Callable[..., Process]) -> Running:
    """A server on loopback that only this test uses and may end."""
    return _ready(start("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"))


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A server on loopback that all tests share, because its start takes longer than most tests."""
    process = Process("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    yield _ready(process)
    process.end()


def _ready(process: Process) -> Running:
    ready = re.fullmatch(r"ready stun=(127\.0\.0\.1:\d+) http=(http://127\.0\.0\.1:\d+)\n", process.line())
    assert ready
    return Running(process, ready[2], f"stun:{ready[1]}")
