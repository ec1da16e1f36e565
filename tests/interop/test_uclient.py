"""coturn's load client is relayed by `polynya serve`: what it sends comes back whole.

The server has its default-deny policy with one named exception, the loopback addresses on which all of this happens,
and the channels of RFC 5766, which `turnutils_uclient` 4.6.1 goes by. The client paces itself for some seconds, so all
its runs go on at once, and each test looks at one of them.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.coturn import make_certificate

pytestmark = pytest.mark.peer("turnutils")

MESSAGES = 30
SECRET = "north"
CONFIG = """
listen = ["127.0.0.1:0", "[::1]:0"]
tls_listen = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
log_level = "debug"

[tls]
certificate = "{folder}/cert.pem"
key = "{folder}/key.pem"

[turn]
realm = "example.org"
shared_secrets = ["south", "north"]
channel_range = "rfc5766"
peers = {{ allow = ["127.0.0.1"] }}
users = [{{ name = "alice", password = "open sesame" }}]
"""

CASES = {
    "channels": "-y -c",
    "channels with rtcp": "-y",
    "send indications": "-y -c -s",
    "tcp": "-y -c -t",
    "tcp, send indications": "-y -c -t -s",
    "tls": "-y -c -t -S",
    "tls, the certificate checked": "-y -c -t -S -E {folder}/cert.pem",
    "ipv6 relay": "-y -c -x",
    "ipv4 relay asked for": "-y -c -X",
    "dual allocation": "-y -c -Z",
    "dont-fragment": "-y -c -g",
    "a shared secret's credentials": "-y -c -W north",
    "several clients": "-y -c -m 5",
    "several clients over tcp": "-y -c -t -m 5",
    "extra requests": "-y -c -G",
    "padded channel data": "-y -c -D",
    "large messages": "-y -c -l 1200",
}


@dataclass(frozen=True)
class Server:
    ports: dict[str, int]
    folder: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("uclient")
    make_certificate(folder / "cert.pem", folder / "key.pem")
    (folder / "polynya.toml").write_text(CONFIG.format(folder=folder))
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "polynya", "serve", "--config", str(folder / "polynya.toml")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            try:
                assert process.stdout is not None
                ready = process.stdout.readline()
                found = re.search(r"turn=127\.0\.0\.1:(\d+) turn=\[::1\]:(\d+) turns=127\.0\.0\.1:(\d+)", ready)
                assert found, ready or (folder / "log").read_text()
                yield Server(
                    dict(zip(("127.0.0.1", "::1", "tls"), map(int, found.groups()), strict=True)), folder, process
                )
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def runs(server: Server) -> Iterator[dict[str, subprocess.Popen[str]]]:
    started = {}
    for name, options in CASES.items():
        chosen = options.format(folder=server.folder).split()
        host = "::1" if "-x" in chosen else "127.0.0.1"
        port = server.ports["tls" if "-S" in chosen else host]
        command = ["turnutils_uclient", "-u", "alice", "-w", "open sesame", "-p", str(port), "-n", str(MESSAGES)]
        started[name] = subprocess.Popen(
            [*command, *chosen, host], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", CASES)
def test_what_it_sends_comes_back(runs: dict[str, subprocess.Popen[str]], server: Server, name: str) -> None:
    said, _ = runs[name].communicate(timeout=60)
    log = (server.folder / "log").read_text()
    totals = re.findall(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)$", said, re.MULTILINE)
    assert totals, said[-2000:] + log[-2000:]
    sent, received = map(int, totals[-1])
    assert sent == received >= MESSAGES
    assert re.search(r"Total lost packets 0 \(0\.000000%\), total send dropped 0 ", said)
    assert runs[name].returncode == 0


def test_a_wrong_password_is_refused(server: Server) -> None:
    command = ["turnutils_uclient", "-u", "alice", "-w", "wrong", "-y", "-c", "-p", str(server.ports["127.0.0.1"])]
    done = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    log = (server.folder / "log").read_text()
    assert re.search(
        r"INFO polynya\.serve\.turn: ALLOCATE from 127\.0\.0\.1:\d+ refused: 401 wrong password$", log, re.MULTILINE
    )
