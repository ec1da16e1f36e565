"""A whole server on the portable plane: our client over UDP and TCP, with the plane in the loop and in workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import polynya
from polynya.aio.driver import Driver
from polynya.aio.icmp import read_errors
from polynya.core.addresses import Address
from polynya.core.flows import FlowIds, Transport
from polynya.core.machine import Open
from polynya.plane.portable import PortablePlane, now
from polynya.plane.sockets import bind_listeners
from polynya.plane.workers import WorkerPlane
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.control import TurnServer
from polynya.turn.server.joined import JoinedServer
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.users import StaticUsers, User
from tests.free_ports import free_port
from tests.plane.benches import LOOPBACK

REALM = "example.org"


class Streams:
    """The joined server with a TCP listener, for a driver."""

    def __init__(self, joined: JoinedServer, flow_ids: FlowIds, port: int) -> None:
        self._opens: list[Any] = [Open(flow=flow_ids.new(), transport=Transport.TCP, local=Address(LOOPBACK, port))]
        self.receive, self.tick, self.next_timer = joined.receive, joined.tick, joined.next_timer
        self.events, self._joined = joined.events, joined

    def outputs(self) -> list[Any]:
        opens, self._opens = self._opens, []
        return opens + self._joined.outputs()


@asynccontextmanager
async def served(workers: int) -> AsyncIterator[tuple[JoinedServer, int]]:
    flow_ids = FlowIds()
    listeners = bind_listeners(Address(LOOPBACK, free_port()), max(workers, 1))
    port = listeners[0].getsockname()[1]
    flow = flow_ids.new()
    plane: Any
    if workers:
        plane = WorkerPlane({flow: listeners}, workers, errors="polynya.aio.icmp:read_errors", read_errors=read_errors)
    else:
        plane = PortablePlane({flow: listeners[0]}, read_errors=read_errors)
    config = ServerConfig(
        realm=REALM, relays=(RelayHost(host=LOOPBACK),), policy=PeerPolicy(allow=("127.0.0.0/8",)), ports=(40000, 48000)
    )
    users = StaticUsers(REALM, [User.with_password("alice", REALM, "wonder")])
    joined = JoinedServer(TurnServer(config, users, random=random.SystemRandom()), plane)
    driver = Driver(Streams(joined, flow_ids, port), on_event=lambda _: None, flow_ids=flow_ids)
    driver.call(joined.settle)

    def run() -> None:
        plane.run(0)
        driver.call(joined.pump)

    loop = asyncio.get_running_loop()
    loop.add_reader(plane.fileno(), run)
    try:
        yield joined, port
    finally:
        loop.remove_reader(plane.fileno())
        await driver.aclose()
        plane.close()
        for listener in listeners:
            listener.close()


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data[::-1], addr)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_our_client_is_served(workers: int, transport: str) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30), served(workers) as (joined, port):
            echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=(LOOPBACK, free_port()))
            host, peer_port = echo.get_extra_info("sockname")[:2]
            peer = f"{host}:{peer_port}"
            uri = f"turn:{LOOPBACK}:{port}?transport={transport}"
            async with polynya.TurnClient(uri, username="alice", password="wonder") as relay:
                await relay.permit(peer)
                relay.send(peer, b"by Send")
                assert (await relay.recv())[0] == b"dneS yb"
                await relay.bind(peer)
                for number in range(50):
                    relay.send(peer, b"%d!" % number)
                    assert (await relay.recv())[0] == (b"%d!" % number)[::-1]
                assert len(joined.control.allocations.by_client) == 1
            for _ in range(100):
                if not joined.control.allocations.claimed:
                    break
                await asyncio.sleep(0.02)
            assert joined.control.allocations.claimed == 0
            echo.close()
        assert now() > 0

    asyncio.run(run())
