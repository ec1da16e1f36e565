"""The current pion/ice, relay-only through `polynya serve`: with another pion, and with Polynya in both roles.

The server has its default-deny configuration: the peer of each agent is a relayed address of this server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.dialogue import Peer, introduce, peer, talk
from tests.interop.server import PASSWORD, USER, Server, serving

pytestmark = pytest.mark.peer("pion")

HERE = Path(__file__).resolve().parent
PION = HERE.parent.parent / ".peers" / "pion" / "ice"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("pion-relay"), allow=()) as running:
        yield running


@contextmanager
def relayed(who: str, server: Server, *flags: str) -> Iterator[Peer]:
    host, port = server.place().split(":")
    if who == "pion":
        command = [PION, "-relay", f"{host},{port},{USER},{PASSWORD}", *(flag.removeprefix("-") for flag in flags)]
    else:
        command = [
            sys.executable, HERE / "polynya_peer.py", "--family", "4", "--relay", host, port, USER, PASSWORD, *flags
        ]  # fmt: skip
    with peer(who, command) as started:
        yield started


@pytest.mark.parametrize("transport", [(), ("--tcp",)], ids=["udp", "tcp"])
@pytest.mark.parametrize("pair", [("pion", "pion"), ("pion", "polynya"), ("polynya", "pion")], ids="-".join)
def test_two_relay_only_peers_exchange_data(server: Server, pair: tuple[str, str], transport: tuple[str, ...]) -> None:
    with (
        relayed(pair[0], server, "--controlling", *transport) as one,
        relayed(pair[1], server, *transport) as two,
    ):
        introduce(one, two)
        ends = one.expect("connected"), two.expect("connected")
        assert all(end["relayed"] for end in ends)
        assert ends[0]["remote"][0] == ends[1]["remote"][0] == "127.0.0.1"
        talk(one, two, "one way")
        talk(two, one, "the other")
        one.end()
        two.end()
