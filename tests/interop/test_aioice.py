"""Polynya and aioice 0.13.0 connect with each other, in both roles, over IPv4 and IPv6, and talk both ways."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.dialogue import Peer, introduce, peer
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


def talk(source: Peer, target: Peer, label: str, count: int = 25) -> None:
    """Everything that `source` sends arrives at `target`, once and in order: the cable loses nothing."""
    sent = [f"{label} {number} ".encode() + bytes(range(256)) * (number % 5) for number in range(count)]
    for data in sent:
        source.tell(send=data.hex())
    assert [bytes.fromhex(target.expect("received")) for _ in sent] == sent


@contextmanager
def both(
    ends: tuple[Namespace, Namespace], family: int, *, we_control: bool, they_control: bool
) -> Iterator[tuple[Peer, Peer]]:
    """Polynya in the left namespace and aioice in the right one, not yet introduced."""
    left, right = ends
    options = ["--family", str(family)]
    ours = left.command(sys.executable, HERE / "polynya_peer.py", *options, *(["--controlling"] if we_control else []))
    theirs = right.command(AIOICE, HERE / "aioice_peer.py", *options, *(["--controlling"] if they_control else []))
    with peer("polynya", ours) as polynya, peer("aioice", theirs) as aioice:
        yield polynya, aioice


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "aioice controls"])
def test_they_connect_and_talk(ends: tuple[Namespace, Namespace], family: int, we_control: bool) -> None:
    with both(ends, family, we_control=we_control, they_control=not we_control) as (polynya, aioice):
        introduce(polynya, aioice)
        our_path, their_path = polynya.expect("connected"), aioice.expect("connected")
        assert our_path["local"] == their_path["remote"]
        assert our_path["remote"] == their_path["local"]
        assert (our_path["local"][0], our_path["remote"][0]) == (LEFT[family], RIGHT[family])
        talk(polynya, aioice, "from us")
        talk(aioice, polynya, "from them")
        aioice.end()
        polynya.end()


@pytest.mark.parametrize("control", [True, False], ids=["both control", "neither controls"])
def test_they_settle_a_role_conflict(ends: tuple[Namespace, Namespace], control: bool) -> None:
    """RFC 8445, section 7.3.1.1."""
    with both(ends, 4, we_control=control, they_control=control) as (polynya, aioice):
        introduce(polynya, aioice)
        polynya.expect("connected")
        aioice.expect("connected")
        talk(polynya, aioice, "from us")
        talk(aioice, polynya, "from them")
        aioice.end()
        polynya.end()


def test_consent_keeps_an_idle_connection_alive_on_both_sides(ends: tuple[Namespace, Namespace]) -> None:
    """RFC 7675, section 5.1: both ask every 5 s +-20 %; aioice gives up after six that went unanswered."""
    with both(ends, 4, we_control=True, they_control=False) as (polynya, aioice):
        introduce(polynya, aioice)
        polynya.expect("connected")
        aioice.expect("connected")
        polynya.stay_silent(13)
        aioice.stay_silent(0)
        talk(polynya, aioice, "still here")
        talk(aioice, polynya, "so are we")
        aioice.end()
        polynya.end()
