"""UDP sockets in network namespaces: link-local addresses, pinned interfaces, oversized packets, firewalls."""

from __future__ import annotations

import socket
import sys

import pytest

from polynya.aio import features, sockets
from tests.real.netns import alone, joined

LINK_LOCAL = """
import asyncio
from polynya.core.addresses import Address
from polynya.core.machine import Datagram, Send
from tests.aio.conftest import driving, open_udp

async def main():
    async with driving() as driver:
        opened = await open_udp(driver, "fe80::1%pn0", interface="pn0")
        assert opened.local.zone == "pn0", opened.local
        remote = Address("fe80::2", 4000)
        driver.call(driver.machine.put, Send(opened.flow, remote, b"anybody there?"))
        answer = await driver.machine.received(Datagram)
        assert answer == Datagram(opened.flow, remote, b"anybody there?"), answer
        delivered = asyncio.get_running_loop().create_future()
        driver.accept_data(opened.flow, answer.remote, delivered.set_result)
        assert driver.sender(opened.flow, answer.remote)(b"data")
        assert await delivered == b"data"

asyncio.run(asyncio.wait_for(main(), 10))
"""

ECHO = """
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.bind(("fe80::2", 4000, 0, socket.if_nametoindex("pn0")))
    print("ready", flush=True)
    while True:
        data, source = sock.recvfrom(99)
        sock.sendto(data, source)
"""

SAME_HOST = """
import asyncio
from polynya.core.machine import Datagram, Send
from tests.aio.conftest import driving, open_udp

async def main():
    async with driving() as driver:
        for host in ("10.7.0.1", "fd00::1"):
            one = await open_udp(driver, host, interface="pn0")
            other = await open_udp(driver, host, interface="pn0")
            assert (one.note, other.note) == ("", "")
            driver.machine.inputs.clear()
            driver.call(driver.machine.put, Send(one.flow, other.local, b"neighbor"))
            assert (await driver.machine.received(Datagram)).data == b"neighbor"

asyncio.run(asyncio.wait_for(main(), 10))
"""

FORBIDDEN = """
import asyncio, errno
from polynya.core.addresses import Address
from polynya.core.machine import Send, SendFailed
from tests.aio.conftest import driving, open_udp

async def main():
    async with driving() as driver:
        opened = await open_udp(driver, "10.7.0.1")
        remote = Address("10.7.0.9", 4000)
        driver.call(driver.machine.put, Send(opened.flow, remote, b"never leaves"))
        assert driver.machine.of(SendFailed) == [SendFailed(flow=opened.flow, remote=remote, errno=errno.EPERM)]
        assert driver.counters["send_failed_EPERM"] == 1

asyncio.run(asyncio.wait_for(main(), 10))
"""


TOO_BIG = """
import asyncio, errno
from polynya.core.addresses import Address
from polynya.core.machine import IcmpError, IcmpKind, IpFields, Send, SendFailed
from tests.aio.conftest import driving, open_udp

async def main():
    async with driving() as driver:
        for host, remote in (("10.7.0.1", Address("10.7.0.9", 4000)), ("fd00::1", Address("fd00::9", 4000))):
            opened = await open_udp(driver, host)
            whole, cut = IpFields(dont_fragment=True), IpFields(dont_fragment=False)
            driver.machine.inputs.clear()
            driver.call(
                driver.machine.put,
                Send(opened.flow, remote, bytes(1400), whole),
                Send(opened.flow, remote, bytes(1400), cut),
                Send(opened.flow, remote, bytes(1400)),
            )
            assert driver.machine.inputs == [
                IcmpError(flow=opened.flow, remote=remote, kind=IcmpKind.TOO_BIG, origin=None, mtu=1300),
                SendFailed(flow=opened.flow, remote=remote, errno=errno.EMSGSIZE),
            ], driver.machine.inputs

asyncio.run(asyncio.wait_for(main(), 10))
"""


@pytest.mark.root
@pytest.mark.peer("ip")
def test_an_oversized_datagram_with_dont_fragment_is_refused_with_the_mtu() -> None:
    with alone(["10.7.0.1/24", "fd00::1/64"]) as here:
        here.ip("link", "set", "pn0", "mtu", "1300")
        here.run(sys.executable, "-c", TOO_BIG)


@pytest.mark.root
@pytest.mark.peer("ip")
def test_a_link_local_remote_address_takes_the_zone_of_the_socket() -> None:
    """A candidate's address has no zone; its flow determines the link."""
    with joined(["fe80::1/64"], ["fe80::2/64"]) as (left, right):
        echo = right.popen(sys.executable, "-c", ECHO, stdout=-1, text=True)
        with echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            left.run(sys.executable, "-c", LINK_LOCAL)
            echo.kill()


@pytest.mark.root
@pytest.mark.peer("ip")
def test_programs_of_one_host_reach_each_other_from_pinned_sockets() -> None:
    """Packets within a host arrive on the loopback interface, whatever their addresses are."""
    with alone(["10.7.0.1/24", "fd00::1/64"]) as here:
        here.run(sys.executable, "-c", SAME_HOST)


@pytest.mark.skipif(not features.LINUX, reason="needs socket options of Linux")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_unknown_interface_is_noted_and_the_socket_still_works(family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        note = sockets.pin(sock, family, "no-such-dev")
        assert note.startswith("may leave by other interfaces than no-such-dev: "), note
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))


@pytest.mark.root
@pytest.mark.peer("ip")
@pytest.mark.peer("nft")
def test_a_refusal_of_the_firewall_is_an_input() -> None:
    """pjsip/pjproject#5031: sends fail with EPERM, and all checks fail at once."""
    with alone(["10.7.0.1/24"]) as here:
        here.run("nft", "add", "table", "inet", "pn")
        here.run("nft", "add", "chain", "inet", "pn", "out", "{ type filter hook output priority 0; policy drop; }")
        here.run(sys.executable, "-c", FORBIDDEN)
