"""A host with two uplinks: packets leave by the interface of their source address, whatever the routes prefer.

    me  a0 10.1.0.2, fd01::2  ----  router  ----  peer 10.3.0.2, fd03::2
        b0 10.2.0.2, fd02::2  ----

Both interfaces have a default route; the one by b0 has the better metric.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.real.netns import End, Namespace, cable, namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip")]

SIGNALING = 9000
ADDRESSES = {("a0", 4): "10.1.0.2", ("a0", 6): "fd01::2", ("b0", 4): "10.2.0.2", ("b0", 6): "fd02::2"}

PEER = """
import asyncio, json, sys
import polynya

async def signal(agent, reader, writer):
    async def send():
        writer.write(json.dumps(agent.description.to_sdp()).encode() + b"\\n")
        async for candidate in agent.candidates():
            writer.write(json.dumps(str(candidate)).encode() + b"\\n")
        writer.write(b"null\\n")
    sending = asyncio.ensure_future(send())
    agent.set_remote(polynya.Description.parse(json.loads(await reader.readline())))
    while line := await reader.readline():
        agent.add_candidate(json.loads(line))
        if line == b"null\\n":
            break
    await sending

async def meet(reader, writer, **options):
    async with polynya.Agent(**options) as agent:
        await signal(agent, reader, writer)
        connection = await agent.connect(timeout=20)
        await agent.completed()
        connection.send(b"by " + str(connection.path.local.address.host).encode())
        received = (await connection.recv()).decode()
        writer.write(b"done\\n")  # the other side may still wait for a response of this agent
        await reader.readline()
        return received, agent.why()
"""

LISTEN = (
    PEER
    + """
async def main():
    met = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: met.set_result(streams), None, int(sys.argv[1]))
    print("ready", flush=True)
    reader, writer = await met
    print((await meet(reader, writer, controlling=False))[0], flush=True)
    writer.close()
    server.close()

asyncio.run(asyncio.wait_for(main(), 30))
"""
)

DIAL = (
    PEER
    + """
import socket
from tests.loops import until

def recorder(interface):
    # receives a copy of each packet that leaves by the interface: ETH_P_ALL
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((interface, 0))
    sock.setblocking(False)
    return sock

def sources(sock):
    found = set()
    while True:
        try:
            frame, origin = sock.recvfrom(2048)
        except BlockingIOError:
            return sorted(found)
        if origin[2] != socket.PACKET_OUTGOING:
            continue
        if frame[12:14] == b"\\x08\\x00" and frame[23] == 17:
            found.add(socket.inet_ntop(socket.AF_INET, frame[26:30]))
        elif frame[12:14] == b"\\x86\\xdd" and frame[20] == 17:
            found.add(socket.inet_ntop(socket.AF_INET6, frame[22:38]))

async def main():
    interfaces, families, host, port = json.loads(sys.argv[1])
    recorders = {name: recorder(name) for name in ("a0", "b0")}
    # A positive control: a socket that is bound to an address of a0 and not pinned.
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("10.1.0.2", 0))
    bound.sendto(b"unpinned", ("10.3.0.2", 9))
    unpinned = {name: [] for name in recorders}
    def record():
        for name, sock in recorders.items():
            unpinned[name] += sources(sock)
        return any(unpinned.values())
    await until(record, "a packet of the socket that is not pinned")
    reader, writer = await asyncio.open_connection(host, port)
    received, why = await meet(reader, writer, controlling=True, interfaces=interfaces, families=families)
    writer.close()
    pinned = {name: sources(sock) for name, sock in recorders.items()}
    print(json.dumps({"unpinned": unpinned, "pinned": pinned, "received": received, "why": why.data}))

asyncio.run(asyncio.wait_for(main(), 30))
"""
)

MOVING = """
import asyncio, json, subprocess, sys
import polynya
from tests.loops import until

async def signal(agent, reader, writer):
    async def send():
        async for text in agent.local_signals():
            writer.write(json.dumps(text).encode() + b"\\n")
    sending = asyncio.ensure_future(send())
    while line := await reader.readline():
        agent.add_remote_signal(json.loads(line))
    sending.cancel()

async def listen(port):
    met = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: met.set_result(streams), None, port)
    print("ready", flush=True)
    reader, writer = await met
    async with polynya.Agent(controlling=False) as agent:
        signaling = asyncio.ensure_future(signal(agent, reader, writer))
        connection = await agent.connect(timeout=20)
        async for message in connection:  # echo until the process is killed
            connection.send(message)

async def dial(host, port):
    allowed = ["a0"]
    reader, writer = await asyncio.open_connection(host, port)  # by b0, which has the better route
    async with polynya.Agent(interfaces=lambda interface: interface.name in allowed) as agent:
        signaling = asyncio.ensure_future(signal(agent, reader, writer))
        connection = await agent.connect(timeout=20)
        await agent.completed()
        connection.send(b"one")
        results = [(await connection.recv()).decode(), connection.path.local.address.host]
        unchanged = agent.interfaces_changed()
        subprocess.run(["ip", "link", "set", "a0", "down"], check=True)
        allowed[:] = ["b0"]
        changed = agent.interfaces_changed()
        await until(lambda: connection.ready and connection.path.nominated and agent.description.generation == 1)
        connection.send(b"two")
        results += [(await connection.recv()).decode(), connection.path.local.address.host]
        signaling.cancel()
        print(json.dumps([unchanged, changed, *results]))

asyncio.run(asyncio.wait_for(listen(9001) if len(sys.argv) == 1 else dial(sys.argv[1], 9001), 40))
"""


@dataclass(frozen=True, slots=True)
class Hosts:
    me: Namespace
    peer: Namespace


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with ExitStack() as stack:
        me, router, peer = (stack.enter_context(namespace(name)) for name in ("me", "router", "peer"))
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        cable(End(me, "a0", ["10.1.0.2/24", "fd01::2/64"]), End(router, "a0", ["10.1.0.1/24", "fd01::1/64"]))
        cable(End(me, "b0", ["10.2.0.2/24", "fd02::2/64"]), End(router, "b0", ["10.2.0.1/24", "fd02::1/64"]))
        cable(End(peer, "p0", ["10.3.0.2/24", "fd03::2/64"]), End(router, "p0", ["10.3.0.1/24", "fd03::1/64"]))
        peer.ip("route", "add", "default", "via", "10.3.0.1")
        peer.ip("-6", "route", "add", "default", "via", "fd03::1")
        for number, metric in (("1", "600"), ("2", "100")):
            me.ip("route", "add", "default", "via", f"10.{number}.0.1", "metric", metric)
            me.ip("-6", "route", "add", "default", "via", f"fd0{number}::1", "metric", metric)
        yield Hosts(me, peer)


def connect(hosts: Hosts, interfaces: list[str], families: list[int]) -> dict[str, Any]:
    """Connect the two hosts. Return what the dialing side recorded; `reached` is what the other side received."""
    listener = hosts.peer.popen(sys.executable, "-c", LISTEN, str(SIGNALING), stdout=subprocess.PIPE, text=True)
    with listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            options = json.dumps([interfaces, families, "10.3.0.2", SIGNALING])
            seen: dict[str, Any] = json.loads(hosts.me.run(sys.executable, "-c", DIAL, options, timeout=40).stdout)
            seen["reached"] = listener.stdout.readline().strip()
        finally:
            listener.kill()
    return seen


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("interface", ["a0", "b0"])
def test_packets_leave_by_the_interface_of_their_address_despite_a_better_route(
    hosts: Hosts, interface: str, family: int
) -> None:
    """RFC 8445, section 5.1.1.1: each address has a candidate, which is a path of its own only with its interface."""
    seen = connect(hosts, [interface], [family])
    own, other = ADDRESSES[interface, family], {"a0": "b0", "b0": "a0"}[interface]
    assert seen["unpinned"]["b0"] == ["10.1.0.2"], "the source address alone does not choose the route"
    assert seen["reached"] == f"by {own}"
    assert seen["pinned"][interface] == [own]
    assert seen["pinned"][other] == []
    assert [socket["note"] for socket in seen["why"]["gathering"]["sockets"]] == [""]


def test_each_of_two_interfaces_sends_only_packets_of_its_addresses(hosts: Hosts) -> None:
    seen = connect(hosts, ["a0", "b0"], [4, 6])
    assert set(seen["pinned"]["a0"]) <= {"10.1.0.2", "fd01::2"}
    assert set(seen["pinned"]["b0"]) <= {"10.2.0.2", "fd02::2"}
    assert seen["reached"].removeprefix("by ") in ADDRESSES.values()


def test_a_connection_moves_to_the_other_interface_when_its_interface_goes_down(hosts: Hosts) -> None:
    """The interface goes down, `interfaces_changed` is called, and both sides move."""
    listener = hosts.peer.popen(sys.executable, "-c", MOVING, stdout=subprocess.PIPE, text=True)
    with listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            seen = json.loads(hosts.me.run(sys.executable, "-c", MOVING, "10.3.0.2", timeout=60).stdout)
        finally:
            listener.kill()
            hosts.me.ip("link", "set", "a0", "up")
    unchanged, changed, first, before, second, after = seen
    assert (unchanged, changed) == (False, True)
    assert (first, second) == ("one", "two")
    assert before in {"10.1.0.2", "fd01::2"} and after in {"10.2.0.2", "fd02::2"}


def test_packets_of_an_address_on_a_dead_end_leave_by_another_interface() -> None:
    """Routers and load balancers have addresses on dummy interfaces, where pinned packets would be lost."""
    with namespace("service") as here, namespace("client") as there:
        cable(End(here, "pn0", ["10.5.0.1/24"]), End(there, "pn0", ["10.5.0.2/24"]))
        _dead_end(here, "service0")
        here.ip("link", "set", "service0", "up")
        here.ip("address", "add", "192.0.2.77/32", "dev", "service0")
        there.ip("route", "add", "192.0.2.77", "via", "10.5.0.1")
        listener = there.popen(sys.executable, "-c", LISTEN, str(SIGNALING), stdout=subprocess.PIPE, text=True)
        with listener:
            try:
                assert listener.stdout is not None
                assert listener.stdout.readline() == "ready\n"
                options = json.dumps([["service0"], [4], "10.5.0.2", SIGNALING])
                here.run(sys.executable, "-c", SERVICE, options, timeout=40)
                assert listener.stdout.readline().strip() == "by 192.0.2.77"
            finally:
                listener.kill()


SERVICE = (
    PEER
    + """
async def main():
    interfaces, families, host, port = json.loads(sys.argv[1])
    reader, writer = await asyncio.open_connection(host, port)
    await meet(reader, writer, controlling=True, interfaces=interfaces, families=families)
    writer.close()

asyncio.run(asyncio.wait_for(main(), 30))
"""
)


def _dead_end(here: Namespace, name: str) -> None:
    """Add an interface that no packet leaves by; not every kernel has the same kinds."""
    for kind in ("dummy", "ifb"):
        try:
            here.ip("link", "add", name, "type", kind)
        except RuntimeError:
            continue
        return
    pytest.skip("this kernel has neither dummy nor ifb interfaces")
