"""Polynya and aioice 0.13.0 connect in both roles, over IPv4 and IPv6, and exchange data.

aioice does not trickle, nominates with its first checks (aggressively, RFC 5245) and cannot restart.
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
    pytest.mark.peer("ip", "aioice"),
    pytest.mark.usefixtures("free_of_leftovers"),
]

HERE = Path(__file__).resolve().parent
AIOICE = HERE.parent.parent / ".peers" / "aioice" / "bin" / "python"
LEFT = {4: "10.77.0.1", 6: "fd77::1"}
RIGHT = {4: "10.77.0.2", 6: "fd77::2"}


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined(
        [f"{LEFT[4]}/24", f"{LEFT[6]}/64"],
        [f"{RIGHT[4]}/24", f"{RIGHT[6]}/64"],
    ) as ends:
        yield ends


@contextmanager
def both(
    ends: tuple[Namespace, Namespace], family: int, *flags: str, we_control: bool, they_control: bool
) -> Iterator[tuple[Peer, Peer]]:
    """Start Polynya with these flags in the left namespace and aioice in the right one, without signaling yet."""
    left, right = ends
    options = ["--family", str(family)]
    ours = [sys.executable, HERE / "polynya_peer.py", *options, *flags, *(["--controlling"] if we_control else [])]
    theirs = [AIOICE, HERE / "aioice_peer.py", *options, *(["--controlling"] if they_control else [])]
    with peer("polynya", left.command(*ours)) as polynya, peer("aioice", right.command(*theirs)) as aioice:
        yield polynya, aioice


def meet(polynya: Peer, aioice: Peer, family: int, *, trickle: bool = True) -> None:
    """Connect both, check that they selected the only pair, and exchange data."""
    introduce(polynya, aioice, trickle=trickle)
    connected: dict[str, Any] = polynya.expect("connected")
    nominated: dict[str, Any] = polynya.expect("nominated")
    theirs = aioice.expect("connected")
    assert connected == nominated
    assert (nominated["local"], nominated["remote"]) == (theirs["remote"], theirs["local"])
    assert (nominated["local"][0], nominated["remote"][0]) == (LEFT[family], RIGHT[family])
    talk(polynya, aioice, "from us")
    talk(aioice, polynya, "from them")


def part(polynya: Peer, aioice: Peer) -> None:
    aioice.end()
    polynya.end()


@pytest.fixture(scope="module", autouse=True)
def idle(ends: tuple[Namespace, Namespace]) -> Iterator[Idle]:
    """Connections that stay idle while other tests run."""
    with (
        both(ends, 4, we_control=True, they_control=False) as full,
        both(ends, 4, "--lite", we_control=False, they_control=True) as lite,
    ):
        for polynya, aioice in (full, lite):
            meet(polynya, aioice, 4)
        yield Idle((full, lite))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "aioice controls"])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
def test_the_agents_connect_and_exchange_data(
    ends: tuple[Namespace, Namespace], family: int, we_control: bool, trickle: bool
) -> None:
    flags = [] if trickle else ["--whole"]
    with both(ends, family, *flags, we_control=we_control, they_control=not we_control) as (polynya, aioice):
        meet(polynya, aioice, family, trickle=trickle)
        part(polynya, aioice)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
def test_a_full_agent_connects_to_a_lite_one(ends: tuple[Namespace, Namespace], family: int, trickle: bool) -> None:
    """RFC 8445, sections 2.5 and 6.1.1: the full agent is controlling and sends checks, the lite one answers.

    The user of aioice must set the controlling role: aioice does not change it by itself.
    """
    with both(ends, family, "--lite", we_control=False, they_control=True) as (polynya, aioice):
        meet(polynya, aioice, family, trickle=trickle)
        part(polynya, aioice)


@pytest.mark.parametrize("control", [True, False], ids=["both control", "neither controls"])
def test_the_agents_resolve_a_role_conflict(ends: tuple[Namespace, Namespace], control: bool) -> None:
    """RFC 8445, section 7.3.1.1."""
    with both(ends, 4, we_control=control, they_control=control) as (polynya, aioice):
        meet(polynya, aioice, 4)
        part(polynya, aioice)


def test_consent_keeps_idle_connections_alive_on_both_sides(idle: Idle) -> None:
    """RFC 7675, section 5.1: both send a consent check every 5 s +-20 %; aioice fails after six without an answer.

    A lite agent sends none; it answers.
    """
    idle.wait()
    for polynya, aioice in idle.pairs:
        polynya.stay_silent(0)
        aioice.stay_silent(0)
        talk(polynya, aioice, "still here")
        talk(aioice, polynya, "so are we")
        part(polynya, aioice)
