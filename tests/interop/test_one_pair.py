"""Of several pairs, Polynya as the controlling side and each foreign peer end on the same one.

The peers do not signal `ice2`, so the check that answers theirs nominates a pair (`docs/deviations.md`, 8445, 8.1.1).
Our host has three addresses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.dialogue import introduce, peer, talk
from tests.real.netns import Namespace, joined

pytestmark = [pytest.mark.root, pytest.mark.peer("ip"), pytest.mark.usefixtures("free_of_leftovers")]

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent.parent / ".peers"
LEFT = ("10.81.0.1", "10.81.0.3", "10.81.0.5")
RIGHT = "10.81.0.2"
COMMANDS: dict[str, list[str | Path]] = {
    "aioice": [PEERS / "aioice" / "bin" / "python", HERE / "aioice_peer.py", "--family", "4"],
    "libnice": ["/usr/bin/python3", HERE / "libnice_peer.py", "--address", RIGHT],
    "pion": [PEERS / "pion" / "ice", "-family", "4"],
}


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined([f"{host}/24" for host in LEFT], [f"{RIGHT}/24"]) as ends:
        yield ends


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.peer(name)) for name in COMMANDS])
def test_both_sides_end_on_one_pair(ends: tuple[Namespace, Namespace], name: str) -> None:
    left, right = ends
    ours = [sys.executable, HERE / "polynya_peer.py", "--family", "4", "--controlling", "--whole"]
    with (
        peer("polynya", left.command(*ours)) as polynya,
        peer(name, right.command(*COMMANDS[name])) as other,
    ):
        introduce(polynya, other, trickle=False)
        nominated: dict[str, Any] = polynya.expect("nominated")
        theirs: dict[str, Any] = other.expect("connected")
        assert (nominated["local"], nominated["remote"]) == (theirs["remote"], theirs["local"])
        talk(polynya, other, "from us")
        talk(other, polynya, "from them")
        other.end()
        polynya.end()
