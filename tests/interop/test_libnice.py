"""Polynya and libnice 0.1.21 connect in both roles, over IPv4 and IPv6, and exchange data.

libnice nominates aggressively (RFC 5245) by default.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.dialogue import Idle, Peer, introduce, peer, talk
from tests.real.netns import End, Namespace, cable, joined, namespace

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("ip", "libnice"),
    pytest.mark.usefixtures("free_of_leftovers"),
]

HERE = Path(__file__).resolve().parent
PYTHON = Path("/usr/bin/python3")
LEFT = {4: "10.78.0.1", 6: "fd78::1"}
RIGHT = {4: "10.78.0.2", 6: "fd78::2"}


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with joined(
        [f"{LEFT[4]}/24", f"{LEFT[6]}/64"],
        [f"{RIGHT[4]}/24", f"{RIGHT[6]}/64"],
    ) as ends:
        yield ends


@contextmanager
def both(
    ends: tuple[Namespace, Namespace],
    family: int,
    *,
    we_control: bool,
    they_control: bool,
    ours: tuple[str, ...] = (),
    theirs: tuple[str, ...] = (),
) -> Iterator[tuple[Peer, Peer]]:
    """Start Polynya in the left namespace and libnice in the right one with these flags, without signaling yet."""
    left, right = ends
    us = [sys.executable, HERE / "polynya_peer.py", "--family", str(family), *ours, *control(we_control)]
    them = [PYTHON, HERE / "libnice_peer.py", "--address", RIGHT[family], *theirs, *control(they_control)]
    with peer("polynya", left.command(*us)) as polynya, peer("libnice", right.command(*them)) as libnice:
        yield polynya, libnice


def control(controls: bool) -> list[str]:
    return ["--controlling"] if controls else []


def meet(polynya: Peer, libnice: Peer, family: int, *, trickle: bool = True) -> None:
    """Connect both, check that they selected the only pair, and exchange data."""
    introduce(polynya, libnice, trickle=trickle)
    polynya.expect("connected")
    see_both_on_one_pair(polynya, libnice, family)
    talk_both_ways(polynya, libnice)


def see_both_on_one_pair(polynya: Peer, libnice: Peer, family: int) -> None:
    ours: dict[str, Any] = polynya.expect("nominated")
    theirs: dict[str, Any] = libnice.expect("connected")
    assert (ours["local"], ours["remote"]) == (theirs["remote"], theirs["local"])
    assert (ours["local"][0], ours["remote"][0]) == (LEFT[family], RIGHT[family])
    assert not ours["relayed"] and not theirs["relayed"]


def talk_both_ways(polynya: Peer, libnice: Peer) -> None:
    talk(polynya, libnice, "from us")
    talk(libnice, polynya, "from them")


def part(polynya: Peer, libnice: Peer) -> None:
    libnice.end()
    polynya.end()


@pytest.fixture(scope="module", autouse=True)
def idle(ends: tuple[Namespace, Namespace]) -> Iterator[Idle]:
    """Connections that stay idle while other tests run."""
    with (
        both(ends, 4, we_control=True, they_control=False, theirs=("--consent",)) as asking,
        both(ends, 6, we_control=False, they_control=True) as silent,
    ):
        meet(*asking, 4)
        meet(*silent, 6)
        yield Idle((asking, silent))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "libnice controls"])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
@pytest.mark.parametrize("regular", [True, False], ids=["regular", "aggressive"])
def test_the_agents_connect_and_exchange_data(
    ends: tuple[Namespace, Namespace], family: int, we_control: bool, trickle: bool, regular: bool
) -> None:
    flags = () if trickle else ("--whole",)
    theirs = (*flags, "--regular") if regular else flags
    with both(
        ends, family, we_control=we_control, they_control=not we_control, ours=flags, theirs=theirs
    ) as (polynya, libnice):  # fmt: skip
        meet(polynya, libnice, family, trickle=trickle)
        part(polynya, libnice)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
@pytest.mark.parametrize("regular", [True, False], ids=["regular", "aggressive"])
def test_a_full_agent_connects_to_our_lite_one(
    ends: tuple[Namespace, Namespace], family: int, trickle: bool, regular: bool
) -> None:
    """RFC 8445, sections 2.5 and 7.3.2: the full agent is controlling, the lite one only answers checks."""
    flags = () if trickle else ("--whole",)
    theirs = (*flags, "--regular") if regular else flags
    with both(
        ends, family, we_control=False, they_control=True, ours=(*flags, "--lite"), theirs=theirs
    ) as (polynya, libnice):  # fmt: skip
        meet(polynya, libnice, family, trickle=trickle)
        part(polynya, libnice)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "we have to take control"])
def test_our_full_agent_connects_to_a_lite_one(
    ends: tuple[Namespace, Namespace], family: int, we_control: bool
) -> None:
    """RFC 8445, section 6.1.1: a full agent is controlling towards a lite one, whatever its option."""
    with both(
        ends, family, we_control=we_control, they_control=False, theirs=("--lite", "--whole")
    ) as (polynya, libnice):  # fmt: skip
        meet(polynya, libnice, family, trickle=False)
        part(polynya, libnice)


@pytest.mark.parametrize("conflict", [True, False], ids=["both control", "neither controls"])
def test_the_agents_resolve_a_role_conflict(ends: tuple[Namespace, Namespace], conflict: bool) -> None:
    """RFC 8445, section 7.3.1.1."""
    with both(ends, 4, we_control=conflict, they_control=conflict) as (polynya, libnice):
        meet(polynya, libnice, 4)
        part(polynya, libnice)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "libnice controls"])
@pytest.mark.parametrize("we_restart", [True, False], ids=["we restart", "libnice restarts"])
def test_a_restart_of_either_side(
    ends: tuple[Namespace, Namespace], family: int, we_control: bool, we_restart: bool
) -> None:
    """RFC 8445, section 9: new credentials, and data during the restart. Twice, to restart a restarted session."""
    with both(
        ends, family, we_control=we_control, they_control=not we_control, theirs=("--regular",)
    ) as (polynya, libnice):  # fmt: skip
        meet(polynya, libnice, family)
        for _ in range(2):
            (polynya if we_restart else libnice).command(restart=True)
            talk(polynya, libnice, "on the old pair, from us")
            talk(libnice, polynya, "on the old pair, from them")
            introduce(polynya, libnice)
            talk(polynya, libnice, "meanwhile, from us")
            talk(libnice, polynya, "meanwhile, from them")
            see_both_on_one_pair(polynya, libnice, family)
            talk_both_ways(polynya, libnice)
        part(polynya, libnice)


def test_simultaneous_restarts_of_both_sides(ends: tuple[Namespace, Namespace]) -> None:
    """Each agent treats the other's restart as the answer to its own, because libnice signals no generation."""
    with both(ends, 4, we_control=True, they_control=False) as (polynya, libnice):
        meet(polynya, libnice, 4)
        for side in (polynya, libnice):
            side.command(restart=True)
        introduce(polynya, libnice)
        see_both_on_one_pair(polynya, libnice, 4)
        talk_both_ways(polynya, libnice)
        part(polynya, libnice)


def test_consent_keeps_idle_connections_alive_until_it_is_revoked(idle: Idle) -> None:
    """RFC 7675, section 5.1: libnice with and without consent checks.

    libnice revokes consent by answering a consent check with 403.
    """
    idle.wait()
    asking, silent = idle.pairs
    for polynya, libnice in (asking, silent):
        polynya.stay_silent(0)
        talk_both_ways(polynya, libnice)
    part(*silent)
    polynya, libnice = asking
    libnice.command(revoke=True)
    assert "403" in polynya.expect("closed", within=8)
    part(polynya, libnice)


# ------------------------------------------------------------------------------------------------------- behind NATs

INSIDE = {"left": "192.168.1", "right": "192.168.2"}
OUTSIDE = {"left": "203.0.113", "right": "198.51.100"}
NAT = """
table ip polynya {
    chain out { type nat hook postrouting priority 100; oifname "outer" masquerade; }
    chain own { type filter hook input priority 0; iifname "outer" drop; }
    chain through {
        type filter hook forward priority 0; policy drop;
        iifname "inner" accept
        ct state established,related accept
    }
}
"""


@pytest.fixture(scope="module")
def homes() -> Iterator[tuple[Namespace, Namespace, str]]:
    """Create two hosts behind the kernel's NAT (masquerade), and a STUN server. Yield them with its address."""
    with ExitStack() as stack:
        hub = stack.enter_context(namespace("hub"))
        forward(hub)
        hosts = [home(stack, hub, side) for side in INSIDE]
        server = stack.enter_context(stun_server(hub, f"{OUTSIDE['left']}.1"))
        yield hosts[0], hosts[1], server


def home(stack: ExitStack, hub: Namespace, side: str) -> Namespace:
    host, router = (stack.enter_context(namespace(f"{what}-{side}")) for what in ("host", "nat"))
    inside, outside = INSIDE[side], OUTSIDE[side]
    cable(End(host, "pn0", [f"{inside}.2/24"]), End(router, "inner", [f"{inside}.1/24"]))
    cable(End(router, "outer", [f"{outside}.2/24"]), End(hub, side, [f"{outside}.1/24"]))
    host.ip("route", "add", "default", "via", f"{inside}.1")
    router.ip("route", "add", "default", "via", f"{outside}.1")
    forward(router)
    router.run("nft", "-f", "-", input=NAT)
    return host


def forward(router: Namespace) -> None:
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


@contextmanager
def stun_server(hub: Namespace, host: str) -> Iterator[str]:
    """Run `polynya serve`, and yield HOST:PORT of its STUN listener."""
    listen = ["--listen", f"{host}:0", "--http", "127.0.0.1:0"]
    with hub.popen(sys.executable, "-m", "polynya", "serve", *listen, stdout=subprocess.PIPE, text=True) as server:
        ready = server.stdout.readline()
        found = re.search(rf"{re.escape(host)}:\d+", ready)
        assert found, ready
        yield found[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0


@pytest.mark.peer("nft")
@pytest.mark.parametrize("we_control", [True, False], ids=["we control", "libnice controls"])
@pytest.mark.parametrize("trickle", [True, False], ids=["trickle", "whole"])
def test_the_agents_connect_directly_through_two_nats(
    homes: tuple[Namespace, Namespace, str], we_control: bool, trickle: bool
) -> None:
    """Both use the STUN server of `polynya serve`. libnice sends requests without the cookie (RFC 3489)."""
    left, right, server = homes
    flags = [] if trickle else ["--whole"]
    us = [sys.executable, HERE / "polynya_peer.py", "--family", "4", "--server", f"stun:{server}", *flags]
    them = [PYTHON, HERE / "libnice_peer.py", "--address", f"{INSIDE['right']}.2", "--server", server, *flags]
    with (
        peer("polynya", left.command(*us, *control(we_control))) as polynya,
        peer("libnice", right.command(*them, *control(not we_control))) as libnice,
    ):
        introduce(polynya, libnice, trickle=trickle)
        ours, theirs = polynya.expect("nominated"), libnice.expect("connected")
        assert (ours["local"][0], ours["remote"][0]) == (f"{OUTSIDE['left']}.2", f"{OUTSIDE['right']}.2")
        assert theirs["remote"] == ours["local"]
        assert not ours["relayed"] and not theirs["relayed"]
        signaled = [line["candidate"].split() for line in libnice.received if line.get("candidate")]
        assert [words[4:6] for words in signaled if words[7] == "srflx"] == [
            [ours["remote"][0], str(ours["remote"][1])]
        ]
        talk_both_ways(polynya, libnice)
        part(polynya, libnice)
