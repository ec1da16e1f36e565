"""TURN servers as their users start them: the shipped defaults, one user or some, one allowed peer network, a realm.

Each runs on loopback, so that clients of many hosts (127.1.0.1, 127.1.0.2, ...) can be played; both must be told that
peers there are wanted. A server is pinned to the first processor, whoever measures it to the last.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REALM = "bench.example"
USERS = ("bench0", "bench1", "bench2", "bench3")
"""Several, for one user may have no more than 1,000 allocations by our defaults."""
PASSWORD = "a password of the bench"
HOST = "127.0.0.1"
_TICK = os.sysconf("SC_CLK_TCK")
_PROCESSORS = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A server that listens on UDP."""

    port: int
    pid: int

    def processes(self) -> list[int]:
        """The server's process with its children, and theirs."""
        found, ahead = [], [self.pid]
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                ahead += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of user and system time of all its processes."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICK

    def memory(self) -> int:
        """Bytes of anonymous memory of all its processes."""
        size = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    size += int(line.split()[1]) * 1024
        return size


def stand_apart() -> None:
    """Keep whoever measures off the server's processor, where there is more than one."""
    os.sched_setaffinity(0, {_PROCESSORS[-1]})


@contextmanager
def polynya(*, workers: int = 0, gather: float = 0.0, profile: Path | None = None) -> Iterator[TurnServer]:
    """`polynya serve`. Where its time went is written to `profile` at its end."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        profiler = ["-m", "cProfile", "-o", str(profile)] if profile is not None else []
        command = [
            sys.executable, *profiler, "-m", "polynya", "serve", "--listen", f"{HOST}:{port}", "--realm", REALM,
            "--allow-peer", "127.0.0.0/8", "--workers", str(workers),
        ]  # fmt: skip
        for user in USERS:
            command += ["--user", f"{user}:{PASSWORD}"]
        if gather:
            (Path(folder) / "polynya.toml").write_text(f"[turn]\ngather = {gather}\n")
            command += ["--config", "polynya.toml"]
        with _running(command, folder, port) as server:
            yield server


@contextmanager
def coturn() -> Iterator[TurnServer]:
    """`turnserver`. Its logs go nowhere, which is cheaper for it than a file."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "turnserver", "-n", "--listening-ip", HOST, "--relay-ip", HOST, "--listening-port", str(port),
            "--lt-cred-mech", "--realm", REALM, "--allow-loopback-peers", "--no-cli", "--log-file", "/dev/null",
            "--pidfile", "coturn.pid", "--userdb", "turndb",
        ]  # fmt: skip
        for user in USERS:
            command += ["--user", f"{user}:{PASSWORD}"]
        with _running(command, folder, port) as server:
            yield server


@contextmanager
def _running(command: Sequence[str], folder: str, port: int) -> Iterator[TurnServer]:
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(_PROCESSORS[0]), *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield TurnServer(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it listens for TCP, which both do after UDP, too."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
