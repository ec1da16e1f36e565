"""Polynya and the current pion/ice connect in both roles, over IPv4 and IPv6, and exchange data.

pion trickles, checks every unfinished pair each 200 ms, and drops the old session on a restart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.dialogue import Idle, Peer, introduce, peer, talk
from tests.real.netns import Namespace, joined

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("ip", "pion"),
    pytest.mark.usefixtures("free_of_leftovers"),
]

HERE = Path(__file__).resolve().parent
PION = HERE.parent.parent / ".peers" / "pion" / "ice"
LEFT = {4: "10.79.0.1", 6: "fd79::1"}
RIGHT = {4: "10.79.0.2", 6: "fd79::2"}


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined([f"{LEFT[4]}/24", f"{LEFT[6]}/64"], [f"{RIGHT[4]}/24", f"{RIGHT[6]}/64"]) as ends:
        yield ends


@contextmanager
def both(
    ends: tuple[Namespace, Namespace],
    family: int,
    *,
    we_control: bool,
    they_control: bool | None = None,
    ours: tuple[str, ...] = (),
    theirs: tuple[str, ...] = (),
) -> Iterator[tuple[Peer, Peer]]:
    left, right = ends
    us: list[str | Path] = [sys.executable, HERE / "polynya_peer.py", "--family", str(family), *ours]
    them: list[str | Path] = [PION, "-family", str(family), *theirs]
    if we_control:
        us.append("--controlling")
    if they_control if they_control is not None else not we_control:
        them.append("-controlling")
    with peer("polynya", left.command(*us)) as polynya, peer("pion", right.command(*them)) as pion:
        yield polynya, pion


def meet(polynya: Peer, pion: Peer, family: int, *, trickle: bool = True) -> None:
    """Connect both, check that they selected the only pair, and exchange data."""
    introduce(polynya, pion, trickle=trickle)
    polynya.expect("connected")
    ours: dict[str, Any] = polynya.expect("nominated")
    theirs = pion.expect("connected")
    assert (ours["local"], ours["remote"]) == (theirs["remote"], theirs["local"])
    assert (ours["local"][0], ours["remote"][0]) == (LEFT[family], RIGHT[family])
    talk(polynya, pion, "from us")
    talk(pion, polynya, "from them")


@pytest.fixture(scope="module", autouse=True)
def idle(ends: tuple[Namespace, Namespace]) -> Iterator[Idle]:
    """Connections that stay idle while other tests run."""
    with (
        both(ends, 4, we_control=True) as one,
        both(ends, 6, we_control=False) as other,
    ):
        meet(*one, 4)
        meet(*other, 6)
        yield Idle((one, other))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "pion controls"])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
def test_the_agents_connect_and_exchange_data(
    ends: tuple[Namespace, Namespace], family: int, we_control: bool, trickle: bool
) -> None:
    ours = () if trickle else ("--whole",)
    with both(ends, family, we_control=we_control, ours=ours) as (polynya, pion):
        meet(polynya, pion, family, trickle=trickle)
        pion.end()
        polynya.end()


@pytest.mark.parametrize("ours", [True, False], ids=["we are lite", "pion is lite"])
def test_a_full_agent_connects_to_a_lite_one(ends: tuple[Namespace, Namespace], ours: bool) -> None:
    """RFC 8445, section 6.1.1: the full agent is controlling."""
    lite = {"ours": ("--lite",)} if ours else {"theirs": ("-lite",)}
    with both(ends, 4, we_control=not ours, **lite) as (polynya, pion):
        meet(polynya, pion, 4)
        pion.end()
        polynya.end()


@pytest.mark.parametrize("control", [True, False], ids=["both control", "neither controls"])
def test_the_agents_resolve_a_role_conflict(ends: tuple[Namespace, Namespace], control: bool) -> None:
    """RFC 8445, section 7.3.1.1."""
    with both(ends, 4, we_control=control, they_control=control) as (polynya, pion):
        meet(polynya, pion, 4)
        pion.end()
        polynya.end()


@pytest.mark.parametrize("we_restart", [True, False], ids=["we restart", "pion restarts"])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "pion controls"])
def test_a_restart_of_either_side(ends: tuple[Namespace, Namespace], we_control: bool, we_restart: bool) -> None:
    """RFC 8445, section 9. pion drops the old session, so data continues when both have a new pair."""
    with both(ends, 4, we_control=we_control) as (polynya, pion):
        meet(polynya, pion, 4)
        pion.expect("nominated")
        for _ in range(2):
            (polynya if we_restart else pion).command(restart=True)
            introduce(polynya, pion)
            ours, theirs = polynya.expect("nominated"), pion.expect("nominated")
            assert (ours["local"], ours["remote"]) == (theirs["remote"], theirs["local"])
            talk(polynya, pion, "from us, again")
            talk(pion, polynya, "from them, again")
        pion.end()
        polynya.end()


def test_idle_connections_stay(idle: Idle) -> None:
    """RFC 7675, section 5.1. pion fails after 30 s without a packet, and sends checks every 2 s."""
    idle.wait()
    for polynya, pion in idle.pairs:
        polynya.stay_silent(0)
        talk(polynya, pion, "still here")
        talk(pion, polynya, "so are we")
        pion.end()
        polynya.end()
