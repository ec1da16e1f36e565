"""Peers in processes of their own, spoken to in lines of JSON.

A peer says     {"description": {"ufrag", "password", "options"}}, {"candidate": TEXT | null} (null: that was the last),
                {"connected": {"local", "remote"}} or {"failed": REASON}, {"received": HEX}, {"closed": REASON},
                {"ended": true} as its last line
and is told     {"description"}, {"candidate"} of the other side, {"send": HEX}, {"close": true}
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Peer:
    """A peer's process. What it says is kept in order; `expect` waits for a line of one kind."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.said: list[dict[str, Any]] = []
        self._process = process
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def tell(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def listen(self, within: float) -> dict[str, Any]:
        """The next line, waited for at most `within` seconds."""
        try:
            line = self._lines.get(timeout=max(within, 0))
        except queue.Empty:
            raise AssertionError(f"{self.name} was silent for {within:.1f} s after {self.said[-3:]}") from None
        if line is None:
            raise AssertionError(f"{self.name} ended after {self.said[-3:]}")
        self.said.append(line)
        return line

    def expect(self, kind: str, within: float = 20) -> Any:
        """The value of the next line of this kind; AssertionError when the peer failed, ended or was silent."""
        until = time.monotonic() + within
        while True:
            line = self.listen(until - time.monotonic())
            if kind in line:
                return line[kind]
            assert "failed" not in line, f"{self.name}: {line}"

    def stay_silent(self, seconds: float) -> None:
        """Let this much time pass; AssertionError when the peer has anything to say."""
        try:
            line = self._lines.get(timeout=seconds) if seconds else self._lines.get_nowait()
        except queue.Empty:
            return
        raise AssertionError(f"{self.name} should have been silent, but said {line}")

    def end(self) -> None:
        """Close the peer in good order: its last line is `ended` and its exit code 0."""
        self.tell(close=True)
        self.expect("ended", 15)
        assert self._process.wait(timeout=10) == 0

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)


@contextmanager
def peer(name: str, command: Sequence[str | Path]) -> Iterator[Peer]:
    """Start a peer; it is gone when the block ends. Its standard error goes to the test's."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = Peer(name, process)
    try:
        yield started
    finally:
        started.kill()


def introduce(one: Peer, two: Peer) -> None:
    """Hand each peer's description and candidates to the other until both have told the last."""
    for source, target in ((one, two), (two, one)):
        line: dict[str, Any] = {}
        while line.get("candidate", "") is not None:
            line = source.listen(15)
            if "description" in line or "candidate" in line:
                target.tell(**line)
