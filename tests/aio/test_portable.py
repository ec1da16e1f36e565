"""The portable path: what macOS and Windows get, selected on Linux by POLYNYA_PORTABLE=1."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polynya.aio import netlink
from tests.loops import LIMIT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these tests use /proc")

PRELUDE = """
import asyncio, os, selectors, socket, sys

def forbid(event, arguments):
    # Refuses netlink sockets and timerfd in this process from here on.
    if event == "socket.__new__" and arguments[1] == socket.AF_NETLINK:
        raise AssertionError("a netlink socket was created")
    if event == "ctypes.dlsym" and "timerfd" in str(arguments[1]):
        raise AssertionError("timerfd was looked up")

sys.addaudithook(forbid)
import polynya
from polynya.aio import features

assert features.PORTABLE and not (features.LINUX or features.EPOLL or features.TIMERFD)
"""

CONNECT = (
    PRELUDE
    + """
class EndpointLoop(asyncio.SelectorEventLoop):
    # Like Windows' proactor, it cannot watch sockets.
    def add_reader(self, *_):
        raise NotImplementedError

LOOPS = {"selector": asyncio.SelectorEventLoop, "endpoint": EndpointLoop}

def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the folder itself, which was read
    return found

def check_descriptors():
    # No timerfd, no epoll, no error queue and no pinned interface.
    links = descriptors()
    assert not [link for link in links.values() if "timerfd" in link or "eventpoll" in link], links
    udp = []
    for number, link in links.items():
        if not link.startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(number)) as sock:
            if sock.type != socket.SOCK_DGRAM:
                continue
            udp.append(sock.getsockname()[0])
            six = sock.family == socket.AF_INET6
            assert sock.getsockopt(*((socket.IPPROTO_IPV6, 25) if six else (socket.IPPROTO_IP, 11))) == 0, "RECVERR"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).strip(b"\\0") == b""
    assert "127.0.0.1" in udp, udp

async def trickle(source, target):
    async for candidate in source.candidates():
        target.add_candidate(str(candidate))
    target.add_candidate(None)

async def main():
    options = {"loopback": True, "addresses": ["127.0.0.1", "::1"]}
    async with polynya.Agent(controlling=True, **options) as a, polynya.Agent(controlling=False, **options) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        *_, here, there = await asyncio.gather(trickle(a, b), trickle(b, a), a.connect(20), b.connect(20))
        check_descriptors()
        for number in range(20):
            here.send(b"to b %d" % number)
            assert await there.recv() == b"to b %d" % number
            there.send(b"to a %d" % number)
            assert await here.recv() == b"to a %d" % number
    print("connected")

loop = LOOPS[sys.argv[1]](selectors.SelectSelector())
with asyncio.Runner(loop_factory=lambda: loop) as runner:
    runner.run(asyncio.wait_for(main(), 40))
"""
)

LIST = (
    PRELUDE
    + """
from polynya.aio.interfaces import list_interfaces

for interface in list_interfaces():
    for address in interface.addresses:
        assert not (address.temporary or address.deprecated or address.tentative), address
        print(interface.name, interface.index, interface.loopback, f"{address.host}/{address.prefix_length}")
"""
)


def portable(program: str, *arguments: str) -> list[str]:
    """Run a program on the portable path; return the lines that it printed."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "POLYNYA_PORTABLE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("loop", ["selector", "endpoint"])
def test_two_agents_connect_and_exchange_data_on_the_portable_path(loop: str) -> None:
    assert portable(CONNECT, loop) == ["connected"]


def test_interfaces_and_addresses_are_listed_without_netlink() -> None:
    listed = portable(LIST)
    expected = [
        f"{interface.name} {interface.index} {interface.loopback} {address.host}/{address.prefix_length}"
        for interface in netlink.list_interfaces()
        for address in interface.addresses
    ]
    assert set(expected) <= set(listed), "the portable path may also list interfaces that are down"
    assert any(line.endswith(" True 127.0.0.1/8") for line in listed)
