"""One watch of an event loop reports changes of interfaces and routes to all of its followers."""

from __future__ import annotations

import asyncio
import struct

import pytest

from polynya.aio import interface_watch
from polynya.aio.features import LINUX
from polynya.aio.interface_watch import HostChange, InterfaceWatch, follow_host
from polynya.aio.netlink import has_new_route
from polynya.core.machine import Interface, InterfaceAddress
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop", "without readers")


class Host:
    """A host whose addresses the test sets."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self.fails = False

    def interfaces(self) -> tuple[Interface, ...]:
        if self.fails:
            raise OSError("no answer")
        addresses = tuple(InterfaceAddress(host=each, prefix_length=32) for each in self.hosts)
        return (Interface(name="eth0", index=2, addresses=addresses),)


class Follower:
    def __init__(self) -> None:
        self.seen: list[tuple[tuple[str, ...], bool]] = []

    def _host_changed(self, change: HostChange) -> None:
        hosts = tuple(address.host for interface in change.interfaces for address in interface.addresses)
        self.seen.append((hosts, change.routes))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host("198.18.0.5")
    monkeypatch.setattr(interface_watch, "list_interfaces", made.interfaces)
    monkeypatch.setattr(interface_watch, "CHECK", 0.02)
    monkeypatch.setattr(interface_watch, "POLL", 0.02)
    return made


async def test_each_follower_gets_a_change_once(host: Host) -> None:
    one, two, gone = Follower(), Follower(), Follower()
    watch = follow_host(one)
    assert follow_host(two) is watch is follow_host(gone)
    watch.remove(gone)
    host.hosts = ("198.18.0.6",)
    await until(lambda: one.seen and two.seen)
    watch.check()
    assert one.seen == two.seen == [(("198.18.0.6",), False)]
    assert gone.seen == []
    watch.remove(one)
    watch.remove(two)
    watch.remove(two)
    other = follow_host(one)
    assert other is not watch, "the last follower ended the watch"
    other.remove(one)


async def test_a_listing_that_fails_is_repeated(host: Host) -> None:
    follower = Follower()
    watch = follow_host(follower)
    host.fails = True
    watch.check()
    host.fails, host.hosts = False, ()
    await until(lambda: follower.seen)
    watch.remove(follower)


async def test_an_error_of_one_follower_reaches_the_loop_and_not_the_others(host: Host) -> None:
    class Broken(Follower):
        def _host_changed(self, change: HostChange) -> None:
            raise RuntimeError("broken")

    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    broken, follower = Broken(), Follower()
    watch = follow_host(broken)
    follow_host(follower)
    host.hosts = ()
    await until(lambda: follower.seen)
    watch.remove(broken)
    watch.remove(follower)
    assert [str(error) for error in errors] == ["broken"]


@pytest.mark.loops("jumping")
async def test_reports_of_routes_alone_are_rare(host: Host) -> None:
    follower = Follower()
    watch = InterfaceWatch(asyncio.get_running_loop(), reports=False)
    watch.add(follower)
    for _ in range(40):
        watch.routes_reported()
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    assert 4 <= len(follower.seen) <= 6
    assert all(routes for _, routes in follower.seen)
    watch.close()


def report(kind: int, *, table: int = 254, protocol: int = 3, route: int = 1, flags: int = 0) -> bytes:
    """Make a report of a route: `struct nlmsghdr` and `struct rtmsg`."""
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, protocol, 0, route, flags)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.skipif(not LINUX, reason="netlink exists on Linux only")
def test_only_routes_that_lead_somewhere_count() -> None:
    assert has_new_route(report(24))
    assert has_new_route(report(20) + report(25) + report(24))
    for other in (report(25), report(24, table=255), report(24, protocol=2), report(24, route=2)):
        assert not has_new_route(other)
    assert not has_new_route(report(24, flags=0x200))
    for cut in range(28):
        assert not has_new_route(report(24)[:cut])
    assert not has_new_route(bytes(16))
