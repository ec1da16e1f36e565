"""Starts TURN servers with their default configuration, a realm, some users and one allowed peer network.

Each listens on loopback, so that there can be clients on many hosts (127.1.0.1, 127.1.0.2, ...); both servers need an
option that permits loopback peers. The server is pinned to the first processor, the measuring process to the last.
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
"""Several users, since our default limit is 1,000 allocations for each."""
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
        """The process ids of the server and all its descendants."""
        found, ahead = [], [self.pid]
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                ahead += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> float:
        """Return the user and system time of all its processes in seconds."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICK

    def memory(self) -> int:
        """Return the anonymous memory of all its processes in bytes."""
        size = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    size += int(line.split()[1]) * 1024
        return size


def pin_to_another_processor() -> None:
    """Pin this process to another processor than the server's, if there is one."""
    os.sched_setaffinity(0, {_PROCESSORS[-1]})


@contextmanager
def polynya(*, workers: int = 0, gather: float = 0.0, profile: Path | None = None) -> Iterator[TurnServer]:
    """Start `polynya serve`; with `profile` it writes a profile to that file at its end."""
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
    """Start coturn's `turnserver` without a log, which is cheaper for it than a log file."""
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
    """Wait until the server listens for TCP; both servers open UDP before."""
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
