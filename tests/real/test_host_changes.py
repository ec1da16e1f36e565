"""Two programs talk by `connect_room` while the addresses of their hosts change: data flows again by itself.

    one o0 10.1.0.2  ----  router, with the signaling server  ----  p0 10.2.0.2 two

Each program sends a datagram every 10 ms, with the time of the system's monotonic clock, which both share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.real.netns import End, Namespace, cable, namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip")]

URL = "http://10.9.0.1:9080"

SERVER = """
import asyncio
from polynya.core.addresses import Address
from polynya.serve import ServeConfig, Server

async def main():
    async with Server(ServeConfig(http=(Address("10.9.0.1", 9080),), listen=(Address("10.9.0.1", 3478),))):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

TALK = """
import asyncio, json, os, sys, time
import polynya

async def main(url):
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with polynya.connect_room(url, "room", timeout=30) as connection:
        latest = 0

        async def send():
            while True:
                if connection.ready:
                    connection.send(str(time.monotonic_ns()).encode())
                await asyncio.sleep(0.01)

        async def receive():
            nonlocal latest
            async for data in connection:
                latest = max(latest, int(data))

        tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
        print(json.dumps("connected"), flush=True)
        while line := await reader.readline():
            since = int(line)
            while not connection.closed and (latest < since or not connection.ready):
                await asyncio.sleep(0.001)
            seen = {"at": time.monotonic_ns(), "closed": connection.closed}
            if not connection.closed:
                seen["local"] = connection.path.local.address.host
            print(json.dumps(seen), flush=True)
        os._exit(0)

asyncio.run(main(sys.argv[1]))
"""

SLACK = 8.0
"""Seconds in which data flows again, on any machine. Without the mechanism it takes 30 s or for ever."""


class Program:
    """One of the two programs."""

    def __init__(self, host: Namespace, *, portable: bool) -> None:
        command = ["env", f"POLYNYA_PORTABLE={int(portable)}", sys.executable, "-c", TALK, URL]
        self._process = host.popen(*command, stdin=-1, stdout=-1, text=True)

    def ask(self, since: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{since}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class Hosts:
    one: Namespace
    two: Namespace
    router: Namespace
    programs: tuple[Program, Program]

    def flows_again(self, since: int | None = None) -> list[dict[str, Any]]:
        """Wait until each side has received a datagram that was sent from now on; return what they saw."""
        began = time.monotonic_ns() if since is None else since
        for program in self.programs:
            program.ask(began)
        seen = [program.answer() for program in self.programs]
        for each in seen:
            assert not each["closed"]
            print(f"after {(each['at'] - began) / 1e9:.3f} s: {each}")
            assert (each["at"] - began) / 1e9 < SLACK, seen
        return seen


@contextmanager
def talking(*, portable: bool = False) -> Iterator[Hosts]:
    with ExitStack() as stack:
        one, two, router = (stack.enter_context(namespace(name)) for name in ("one", "two", "router"))
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.ip("address", "add", "10.9.0.1/32", "dev", "lo")
        cable(End(one, "o0", ["10.1.0.2/24"]), End(router, "o0", ["10.1.0.1/24"]))
        cable(End(two, "p0", ["10.2.0.2/24"]), End(router, "p0", ["10.2.0.1/24"]))
        one.ip("route", "add", "default", "via", "10.1.0.1")
        two.ip("route", "add", "default", "via", "10.2.0.1")
        server = router.popen(sys.executable, "-c", SERVER, stdout=subprocess.PIPE, text=True)
        stack.callback(server.communicate)
        stack.callback(server.kill)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        programs = Program(one, portable=portable), Program(two, portable=portable)
        for program in programs:
            stack.callback(program.end)
        for program in programs:
            assert program.answer() == "connected"
        hosts = Hosts(one, two, router, programs)
        hosts.flows_again()
        yield hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with talking() as made:
        yield made


def move(host: Namespace, interface: str, old: str, new: str, gateway: str) -> None:
    """Replace the address of an interface, as a new DHCP lease does: the default route goes and comes with it."""
    host.ip("address", "delete", f"{old}/24", "dev", interface)
    host.ip("address", "add", f"{new}/24", "dev", interface)
    host.ip("route", "add", "default", "via", gateway)


def move_one(hosts: Hosts, old: str = "10.1.0.2", new: str = "10.1.0.77") -> None:
    move(hosts.one, "o0", old, new, "10.1.0.1")


def move_two(hosts: Hosts, old: str = "10.2.0.2", new: str = "10.2.0.77") -> None:
    move(hosts.two, "p0", old, new, "10.2.0.1")


def both(hosts: Hosts) -> None:
    move_one(hosts)
    move_two(hosts)


@pytest.mark.parametrize(
    ("change", "addresses"),
    [
        (move_one, ("10.1.0.77", "10.2.0.2")),
        (move_two, ("10.1.0.2", "10.2.0.77")),
        (both, ("10.1.0.77", "10.2.0.77")),
    ],
    ids=["one side", "the other side", "both at once"],
)
def test_data_flows_again_after_an_address_was_replaced(
    hosts: Hosts, change: Callable[[Hosts], None], addresses: tuple[str, str]
) -> None:
    change(hosts)
    one, two = hosts.flows_again()
    assert (one["local"], two["local"]) == addresses


def test_data_flows_on_while_addresses_change_again_and_again(hosts: Hosts) -> None:
    last = "10.1.0.2", "10.2.0.2"
    for number in range(31, 37):
        new = f"10.1.0.{number}", f"10.2.0.{number}"
        move_one(hosts, last[0], new[0])
        if number % 2:
            move_two(hosts, last[1], new[1])
        else:
            new = new[0], last[1]
        last = new
    one, two = hosts.flows_again()
    assert (one["local"], two["local"]) == last


def test_an_address_that_comes_before_the_old_one_goes_is_used(hosts: Hosts) -> None:
    hosts.one.run("sysctl", "-qw", "net.ipv4.conf.o0.promote_secondaries=1")
    hosts.one.ip("address", "add", "10.1.0.77/24", "dev", "o0")
    hosts.flows_again()
    hosts.one.ip("address", "delete", "10.1.0.2/24", "dev", "o0")
    assert hosts.flows_again()[0]["local"] == "10.1.0.77"


def test_an_interface_goes_down_and_comes_up_again(hosts: Hosts) -> None:
    hosts.one.ip("link", "set", "o0", "down")
    time.sleep(3)
    hosts.one.ip("link", "set", "o0", "up")
    hosts.one.ip("route", "add", "default", "via", "10.1.0.1")
    assert hosts.flows_again()[0]["local"] == "10.1.0.2"


def test_a_host_without_any_address_for_a_while_gets_one(hosts: Hosts) -> None:
    """All attempts have failed by then, and the next one would be seconds away: the new route is a reason to try."""
    hosts.one.ip("address", "delete", "10.1.0.2/24", "dev", "o0")
    time.sleep(6)
    hosts.one.ip("address", "add", "10.1.0.77/24", "dev", "o0")
    time.sleep(2.2)
    hosts.one.ip("route", "add", "default", "via", "10.1.0.1")
    assert hosts.flows_again()[0]["local"] == "10.1.0.77"


def test_a_second_interface_takes_over_when_the_first_goes_down(hosts: Hosts) -> None:
    cable(End(hosts.one, "o1", ["10.4.0.2/24"]), End(hosts.router, "o1", ["10.4.0.1/24"]))
    hosts.one.ip("route", "add", "default", "via", "10.4.0.1", "metric", "100")
    hosts.flows_again()
    hosts.one.ip("link", "set", "o0", "down")
    assert hosts.flows_again()[0]["local"] == "10.4.0.2"


def test_without_netlink_the_interfaces_are_polled() -> None:
    with talking(portable=True) as hosts:
        move_one(hosts)
        assert hosts.flows_again()[0]["local"] == "10.1.0.77"
