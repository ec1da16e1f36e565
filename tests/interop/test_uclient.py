"""coturn's load client with `polynya serve`: it receives all data that it sends.

The server has its default-deny policy with one exception, the loopback address of the test. By default it allows the
channel numbers of RFC 5766, which `turnutils_uclient` 4.6.1 uses. The client takes some seconds, so all runs are
concurrent, against a server without workers and one with two, and each test checks one of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.interop.server import PASSWORD, USER, Server, serving

pytestmark = pytest.mark.peer("turnutils")

MESSAGES = 30
TURN = """
shared_secrets = ["south", "north"]
"""
WORKERS = {"no workers": "0", "two workers": "2"}
CASES = {
    "channels": "-y -c",
    "channels with rtcp": "-y",
    "send indications": "-y -c -s",
    "send indications with rtcp": "-y -s",
    "tcp": "-y -c -t",
    "tcp with rtcp": "-y -t",
    "tcp, send indications": "-y -c -t -s",
    "tls": "-y -c -t -S",
    "tls, the certificate checked": "-y -c -t -S -E {certificate}",
    "tls, send indications": "-y -c -t -S -s",
    "ipv6 relay": "-y -c -x",
    "ipv6 relay over tcp": "-y -c -x -t",
    "ipv4 relay asked for": "-y -c -X",
    "dual allocation": "-y -c -Z",
    "dual allocation over tcp": "-y -c -Z -t",
    "dont-fragment": "-y -c -g",
    "dont-fragment, send indications": "-y -c -g -s",
    "a shared secret's credentials": "-y -c -W north",
    "the other secret's, over tls": "-y -c -t -S -W south",
    "several clients": "-y -c -m 5",
    "several clients, send indications": "-y -c -s -m 5",
    "several clients over tcp": "-y -c -t -m 5",
    "extra requests": "-y -c -G",
    "padded channel data": "-y -c -D",
    "large messages": "-y -c -l 1200",
}
RUNS = [(workers, name) for workers in WORKERS for name in CASES]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(tmp_path_factory.mktemp("uclient"), TURN, "--workers", count))
            for name, count in WORKERS.items()
        }


@pytest.fixture(scope="module")
def runs(servers: dict[str, Server]) -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    started = {}
    for workers, name in RUNS:
        server = servers[workers]
        options = CASES[name].format(certificate=server.certificate).split()
        host = "::1" if "-x" in options else "127.0.0.1"
        port = server.ports["tls" if "-S" in options else "udp6" if "-x" in options else "udp"]
        command = ["turnutils_uclient", "-u", USER, "-w", PASSWORD, "-p", str(port), "-n", str(MESSAGES)]
        started[workers, name] = subprocess.Popen(
            [*command, *options, host], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize(("workers", "name"), RUNS)
def test_uclient_receives_all_that_it_sends(
    runs: dict[tuple[str, str], subprocess.Popen[str]], servers: dict[str, Server], workers: str, name: str
) -> None:
    run = runs[workers, name]
    said, _ = run.communicate(timeout=120)
    totals = re.findall(r"start_mclient: tot_send_msgs=(\d+), tot_recv_msgs=(\d+)$", said, re.MULTILINE)
    assert totals, said[-2000:] + servers[workers].log()[-2000:]
    sent, received = map(int, totals[-1])
    assert sent == received >= MESSAGES
    assert re.search(r"Total lost packets 0 \(0\.000000%\), total send dropped 0 ", said)
    assert run.returncode == 0


def test_a_wrong_password_is_refused(servers: dict[str, Server]) -> None:
    server = servers["no workers"]
    command = ["turnutils_uclient", "-u", USER, "-w", "wrong", "-y", "-c", "-p", str(server.ports["udp"])]
    done = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    server.says(r"INFO polynya\.serve\.turn: ALLOCATE from 127\.0\.0\.1:\d+ refused: 401 wrong password$")
