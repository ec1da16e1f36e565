"""The network namespaces of the tests: joined by a cable, and removed afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.netns import alone, ip, joined, namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip"), pytest.mark.usefixtures("free_of_leftovers")]

ECHO = """
import socket, sys
with socket.socket({family}, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.bind(({host!r}, 4000))
    print("bound", flush=True)
    data, source = s.recvfrom(100)
    s.sendto(data, source)
"""
ASK = """
import socket
with socket.socket({family}, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.sendto(b"hello", ({host!r}, 4000))
    print(s.recv(100).decode())
"""


@pytest.mark.parametrize(("family", "host"), [("socket.AF_INET", "10.77.0.2"), ("socket.AF_INET6", "fd77::2")])
def test_a_datagram_crosses_the_cable_at_once(family: str, host: str) -> None:
    with joined(["10.77.0.1/24", "fd77::1/64"], ["10.77.0.2/24", "fd77::2/64"]) as (left, right):
        with right.popen("python3", "-c", ECHO.format(family=family, host=host), stdout=-1, text=True) as echo:
            assert echo.stdout.readline() == "bound\n"
            assert left.run("python3", "-c", ASK.format(family=family, host=host)).stdout == "hello\n"
        assert echo.returncode == 0


def test_a_namespace_is_removed_with_its_processes() -> None:
    with alone(["10.77.0.1/24"]) as here:
        sleeper = here.popen("sh", "-c", "echo up; exec sleep 1000", stdout=-1, text=True)
        assert sleeper.stdout.readline() == "up\n"
        assert Path("/etc/netns", here.name, "resolv.conf").exists()
    assert sleeper.communicate(timeout=5) == ("", None)
    assert sleeper.returncode == -9
    assert here.name not in ip("netns", "list")
    assert not Path("/etc/netns", here.name).exists()


def test_a_namespace_is_removed_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="no such"), namespace("fails") as here:
        raise RuntimeError("no such thing")
    assert here.name not in ip("netns", "list")


def test_an_interface_has_only_the_given_addresses() -> None:
    with joined(["10.77.0.1/24"], ["10.77.0.2/24"]) as (left, _):
        shown = left.ip("-brief", "address", "show", "dev", "pn0")
        assert "10.77.0.1/24" in shown and ":" not in shown
