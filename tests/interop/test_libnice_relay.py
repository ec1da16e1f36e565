"""libnice 0.1.21, relay-only through `polynya serve`: with another libnice, and with Polynya in both roles.

The server has its default-deny configuration: the peer of each agent is a relayed address of this server.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.dialogue import Peer, introduce, peer, talk
from tests.real.netns import Namespace, alone

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("ip", "libnice"),
    pytest.mark.usefixtures("free_of_leftovers"),
]

HERE = Path(__file__).resolve().parent
PYTHON = Path("/usr/bin/python3")
HOST, PORT, USER, PASSWORD = "10.81.0.1", "3478", "alice", "open sesame"


@pytest.fixture(scope="module")
def here() -> Iterator[Namespace]:
    """Create a namespace with the server and one address, which all clients use."""
    with alone([f"{HOST}/24"]) as here:
        command = ["serve", "--listen", f"{HOST}:{PORT}", "--user", f"{USER}:{PASSWORD}"]
        with here.popen(sys.executable, "-m", "polynya", *command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout.readline().startswith("ready ")
                yield here
            finally:
                server.terminate()
            assert server.wait(timeout=10) == 0


@contextmanager
def relayed(here: Namespace, who: str, *flags: str) -> Iterator[Peer]:
    program = {
        "libnice": [PYTHON, HERE / "libnice_peer.py", "--address", HOST],
        "polynya": [sys.executable, HERE / "polynya_peer.py", "--family", "4"],
    }[who]
    command = here.command(*program, "--relay", HOST, PORT, USER, PASSWORD, *flags)
    with peer(who, command) as started:
        yield started


@pytest.mark.parametrize("transport", [(), ("--tcp",)], ids=["udp", "tcp"])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
@pytest.mark.parametrize("pair", [("libnice", "libnice"), ("libnice", "polynya"), ("polynya", "libnice")], ids="-".join)
def test_two_relay_only_peers_exchange_data(
    here: Namespace, pair: tuple[str, str], trickle: bool, transport: tuple[str, ...]
) -> None:
    flags = transport if trickle else (*transport, "--whole")
    with relayed(here, pair[0], "--controlling", *flags) as one, relayed(here, pair[1], *flags) as two:
        introduce(one, two, trickle=trickle)
        ends = one.expect("connected"), two.expect("connected")
        assert all(end["relayed"] for end in ends)
        assert ends[0]["remote"][0] == ends[1]["remote"][0] == HOST
        talk(one, two, "one way")
        talk(two, one, "the other")
        one.end()
        two.end()
