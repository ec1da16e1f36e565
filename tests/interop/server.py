"""Runs `polynya serve` in a child process for a test."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.coturn import make_certificate

LISTENERS = ("udp", "udp6", "tls", "http", "admin")
USER, PASSWORD = "alice", "open sesame"
CONFIG = """
listen = ["127.0.0.1:0", "[::1]:0"]
tls_listen = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
admin = ["127.0.0.1:0"]
log_level = "debug"

[tls]
certificate = "{folder}/cert.pem"
key = "{folder}/key.pem"

[turn]
realm = "example.org"
users = [{{ name = "alice", password = "open sesame" }}]
peers = {{ allow = {allow} }}
{turn}
"""
"""Default-deny, with exceptions for the loopback addresses of the tests' peers."""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    folder: Path
    ports: dict[str, int]
    """Ports by the names in LISTENERS; TCP has the port of UDP."""

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    def place(self, transport: str = "udp") -> str:
        """Return HOST:PORT. For TLS, HOST is the name in the certificate."""
        return f"localhost:{self.ports['tls']}" if transport == "tls" else f"127.0.0.1:{self.ports['udp']}"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def says(self, pattern: str, count: int = 1) -> None:
        """Wait for `count` matches in the log: a line is written after the answer that it reports."""
        limit = time.monotonic() + 20
        while len(re.findall(pattern, self.log(), re.MULTILINE)) < count:
            assert time.monotonic() < limit, f"{count} x {pattern!r} in the log:\n{self.log()[-2000:]}"
            time.sleep(0.02)

    def counted(self, metric: str) -> dict[str, float]:
        """Return the values of a metric by the value of its label, which may be empty."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['admin']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        lines = re.findall(rf'^{metric}(?:\{{\w+="([^"]*)"\}})? (\S+)$', text, re.MULTILINE)
        return {label: float(value) for label, value in lines}


@contextmanager
def serving(folder: Path, turn: str = "", *options: str, allow: Sequence[str] = ("127.0.0.1",)) -> Iterator[Server]:
    """Run a server with `turn` as additional keys of its table, and with further flags. It must exit cleanly."""
    folder.mkdir(exist_ok=True)
    make_certificate(folder / "cert.pem", folder / "key.pem")
    (folder / "polynya.toml").write_text(CONFIG.format(folder=folder, turn=turn, allow=list(allow)))
    command = [sys.executable, "-m", "polynya", "serve", "--config", str(folder / "polynya.toml"), *options]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            ports = re.findall(r" (?:turns?|http|admin)=(?:http://)?\S+:(\d+)", ready)
            assert len(ports) == len(LISTENERS), ready or (folder / "log").read_text()
            yield Server(process, folder, dict(zip(LISTENERS, map(int, ports), strict=True)))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
