"""pion/ice, current: relay-only through `polynya serve`, and directly, with Polynya on the other side in both roles.

pion pings every unfinished pair each 200 ms and waits before it accepts what is not a host candidate; the relayed ones
here it takes at once. It trickles.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.dialogue import Peer, introduce, peer, talk
from tests.interop.server import PASSWORD, USER, Server, serving
from tests.real.netns import Namespace, joined

pytestmark = pytest.mark.peer("pion")

HERE = Path(__file__).resolve().parent
PION = HERE.parent.parent / ".peers" / "pion" / "ice"
LEFT = {4: "10.79.0.1", 6: "fd79::1"}
RIGHT = {4: "10.79.0.2", 6: "fd79::2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("pion-ice")) as running:
        yield running


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined([f"{LEFT[4]}/24", f"{LEFT[6]}/64"], [f"{RIGHT[4]}/24", f"{RIGHT[6]}/64"]) as ends:
        yield ends


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
def test_two_relay_only_peers_talk(server: Server, pair: tuple[str, str], transport: tuple[str, ...]) -> None:
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


@contextmanager
def both(
    ends: tuple[Namespace, Namespace],
    family: int,
    *,
    we_control: bool,
    ours: tuple[str, ...] = (),
    theirs: tuple[str, ...] = (),
) -> Iterator[tuple[Peer, Peer]]:
    left, right = ends
    us = [sys.executable, HERE / "polynya_peer.py", "--family", str(family), *ours]
    them = [PION, "-family", str(family), *theirs]
    us, them = [*us, *(["--controlling"] if we_control else [])], [*them, *([] if we_control else ["-controlling"])]
    with peer("polynya", left.command(*us)) as polynya, peer("pion", right.command(*them)) as pion:
        yield polynya, pion


def meet(polynya: Peer, pion: Peer, family: int, *, trickle: bool = True) -> None:
    """Introduce both, see them on the one pair that there is, and let them talk."""
    introduce(polynya, pion, trickle=trickle)
    polynya.expect("connected")
    ours: dict[str, Any] = polynya.expect("nominated")
    theirs = pion.expect("connected")
    assert (ours["local"], ours["remote"]) == (theirs["remote"], theirs["local"])
    assert (ours["local"][0], ours["remote"][0]) == (LEFT[family], RIGHT[family])
    talk(polynya, pion, "from us")
    talk(pion, polynya, "from them")


@pytest.mark.root
@pytest.mark.peer("ip")
@pytest.mark.usefixtures("free_of_leftovers")
class TestDirectly:
    @pytest.mark.parametrize("family", [4, 6])
    @pytest.mark.parametrize("we_control", [True, False], ids=["we control", "pion controls"])
    @pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
    def test_they_connect_and_talk(
        self, ends: tuple[Namespace, Namespace], family: int, we_control: bool, trickle: bool
    ) -> None:
        ours = () if trickle else ("--whole",)
        with both(ends, family, we_control=we_control, ours=ours) as (polynya, pion):
            meet(polynya, pion, family, trickle=trickle)
            pion.end()
            polynya.end()

    @pytest.mark.parametrize("ours", [True, False], ids=["we are lite", "pion is lite"])
    def test_a_lite_agent_is_found_by_a_full_one(self, ends: tuple[Namespace, Namespace], ours: bool) -> None:
        """RFC 8445, section 6.1.1: the full agent controls."""
        lite = {"ours": ("--lite",)} if ours else {"theirs": ("-lite",)}
        with both(ends, 4, we_control=not ours, **lite) as (polynya, pion):
            meet(polynya, pion, 4)
            pion.end()
            polynya.end()

    @pytest.mark.parametrize("we_restart", [True, False], ids=["we restart", "pion restarts"])
    @pytest.mark.parametrize("we_control", [True, False], ids=["we control", "pion controls"])
    def test_a_restart_of_either_side(
        self, ends: tuple[Namespace, Namespace], we_control: bool, we_restart: bool
    ) -> None:
        """RFC 8445, section 9. pion keeps nothing of the old session, so data goes on when both have a new pair."""
        with both(ends, 4, we_control=we_control) as (polynya, pion):
            meet(polynya, pion, 4)
            pion.expect("nominated")
            for _ in range(2):
                (polynya if we_restart else pion).tell(restart=True)
                introduce(polynya, pion)
                ours, theirs = polynya.expect("nominated"), pion.expect("nominated")
                assert (ours["local"], ours["remote"]) == (theirs["remote"], theirs["local"])
                talk(polynya, pion, "from us, again")
                talk(pion, polynya, "from them, again")
            pion.end()
            polynya.end()
