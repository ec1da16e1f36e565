"""aioice 0.13.0, relay-only through `polynya serve`: with another aioice, and with Polynya in both roles.

The server has its default-deny configuration. The agents connect because the peer of each is a relayed address of this
server. aioice supports one TURN server and binds a channel at once.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.dialogue import Peer, introduce, peer, talk

pytestmark = pytest.mark.peer("aioice")

HERE = Path(__file__).resolve().parent
AIOICE = HERE.parent.parent / ".peers" / "aioice" / "bin" / "python"
USER, PASSWORD = "alice", "open sesame"


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    command = [sys.executable, "-m", "polynya", "serve", "--listen", "127.0.0.1:0", "--user", f"{USER}:{PASSWORD}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"turn=127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


@contextmanager
def relayed(who: str, port: str, *flags: str) -> Iterator[Peer]:
    program = [AIOICE, HERE / "aioice_peer.py"] if who == "aioice" else [sys.executable, HERE / "polynya_peer.py"]
    options = ["--family", "4", "--relay", "127.0.0.1", port, USER, PASSWORD, *flags]
    with peer(who, [*program, *options]) as started:
        yield started


@pytest.mark.parametrize("transport", [(), ("--tcp",)], ids=["udp", "tcp"])
@pytest.mark.parametrize("pair", [("aioice", "aioice"), ("aioice", "polynya"), ("polynya", "aioice")], ids="-".join)
def test_two_relay_only_peers_exchange_data(port: str, pair: tuple[str, str], transport: tuple[str, ...]) -> None:
    with relayed(pair[0], port, "--controlling", *transport) as one, relayed(pair[1], port, *transport) as two:
        introduce(one, two)
        ends = one.expect("connected"), two.expect("connected")
        # the remote candidate is peer-reflexive if a check arrives before signaling; the address is the same
        assert ends[0]["remote"][0] == ends[1]["remote"][0] == "127.0.0.1"
        talk(one, two, "one way")
        talk(two, one, "the other")
        one.end()
        two.end()
