"""Peers in child processes, driven by lines of JSON.

    A peer writes   {"description": {"ufrag", "password", "options", "lite"}}, {"candidate": TEXT | null} (null is the
                    end), {"connected": {"local", "remote"}} or {"failed": REASON}, {"received": HEX},
                    {"closed": REASON}, and {"ended": true} as its last line; after a restart, its new description
                    and candidates
    and reads       {"description"}, {"candidate"} of the other side, {"send": HEX}, {"restart": true}, {"close": true}

Without trickle, a description that a peer reads has all "candidates" in it, including the null.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Peer:
    """The process of a peer. `expect` waits for a line of one kind and keeps the others in order."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.received: list[dict[str, Any]] = []
        self._left: list[dict[str, Any]] = []
        self._process = process
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def command(self, **command: Any) -> None:
        """Write a line to the peer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def expect(self, *kinds: str, within: float = 60) -> Any:
        """Return the value of the next line of this kind, or the whole line if several kinds are given.

        Raises AssertionError if the peer fails, ends or writes no such line in time.
        """
        until = time.monotonic() + within
        lines = self._left
        self._left = []
        try:
            while True:
                line = lines.pop(0) if lines else self._listen(until - time.monotonic())
                if not line.keys().isdisjoint(kinds):
                    return line[kinds[0]] if len(kinds) == 1 else line
                assert "failed" not in line, f"{self.name}: {line}"
                self._left.append(line)
        finally:
            self._left += lines

    def stay_silent(self, seconds: float) -> None:
        """Wait, and raise AssertionError if the peer writes a line."""
        try:
            line = self._lines.get(timeout=seconds) if seconds else self._lines.get_nowait()
        except queue.Empty:
            return
        raise AssertionError(f"{self.name} should be silent, but wrote {line}")

    def end(self) -> None:
        """Close the peer. Its last line must be `ended` and its exit code 0."""
        self.command(close=True)
        self.expect("ended", within=15)
        assert self._process.wait(timeout=10) == 0

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _listen(self, within: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(within, 0))
        except queue.Empty:
            raise AssertionError(f"{self.name} wrote nothing for {within:.1f} s after {self.received[-3:]}") from None
        if line is None:
            raise AssertionError(f"{self.name} ended after {self.received[-3:]}")
        self.received.append(line)
        return line

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)


@contextmanager
def peer(name: str, command: Sequence[str | Path]) -> Iterator[Peer]:
    """Start a peer, and kill it at the end of the block. Its standard error is that of the test."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = Peer(name, process)
    try:
        yield started
    finally:
        started.kill()


class Idle:
    """Connected pairs of peers that send no data for longer than two consent intervals.

    Create them early; other tests then run during the wait.
    """

    LONG = 13.0
    """Seconds for two consent checks of each side (RFC 7675, section 5.1)."""

    def __init__(self, pairs: Sequence[tuple[Peer, Peer]]) -> None:
        self.pairs = pairs
        self._since = time.monotonic()

    def wait(self) -> None:
        """Wait until the pairs have been idle for `LONG` seconds."""
        time.sleep(max(0.0, self._since + self.LONG - time.monotonic()))


def introduce(one: Peer, two: Peer, *, trickle: bool = True) -> None:
    """Signal descriptions and candidates between two peers until both have signaled the end."""
    with ThreadPoolExecutor(2) as threads:
        relay = _trickle if trickle else _whole
        for direction in [threads.submit(relay, one, two), threads.submit(relay, two, one)]:
            direction.result()


def _trickle(source: Peer, target: Peer) -> None:
    line: dict[str, Any] = {}
    while line.get("candidate", "") is not None:
        line = source.expect("description", "candidate")
        target.command(**line)


def _whole(source: Peer, target: Peer) -> None:
    description = source.expect("description")
    candidates: list[str | None] = [""]
    while candidates[-1] is not None:
        candidates.append(source.expect("candidate"))
    target.command(description={**description, "candidates": candidates[1:]})


def talk(source: Peer, target: Peer, label: str, count: int = 25) -> None:
    """Send data from `source` to `target`. All of it must arrive once and in order."""
    sent = [f"{label} {number} ".encode() + bytes(range(256)) * (number % 5) for number in range(count)]
    for data in sent:
        source.command(send=data.hex())
    assert [bytes.fromhex(target.expect("received")) for _ in sent] == sent
