"""A TURN server on the portable plane with our client over UDP and TCP, with and without workers."""

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
from polynya.plane.portable import PortablePlane
from polynya.plane.sockets import bind_listeners
from polynya.plane.workers import WorkerPlane
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.server import TurnServer
from polynya.turn.server.users import StaticUsers, User
from tests.free_ports import free_port
from tests.loops import until
from tests.plane.benches import LOOPBACK

REALM = "example.org"


class Streams:
    """The TURN server with a TCP listener, for a driver."""

    def __init__(self, server: TurnServer, flow_ids: FlowIds, port: int) -> None:
        self._opens: list[Any] = [Open(flow=flow_ids.new(), transport=Transport.TCP, local=Address(LOOPBACK, port))]
        self.receive, self.tick, self.next_timer = server.receive, server.tick, server.next_timer
        self.events, self._server = server.events, server

    def outputs(self) -> list[Any]:
        opens, self._opens = self._opens, []
        return opens + self._server.outputs()


@asynccontextmanager
async def served(workers: int) -> AsyncIterator[tuple[TurnServer, int]]:
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
    server = TurnServer(config, users, plane, random=random.SystemRandom())
    driver = Driver(Streams(server, flow_ids, port), on_event=lambda _: None, flow_ids=flow_ids)
    driver.call(server.settle)

    def run() -> None:
        plane.run(0)
        driver.call(server.settle)

    loop = asyncio.get_running_loop()
    loop.add_reader(plane.fileno(), run)
    try:
        yield server, port
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
async def test_our_client_allocates_and_relays(workers: int, transport: str) -> None:
    async with served(workers) as (server, port):
        loop = asyncio.get_running_loop()
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
            assert len(server.control.allocations.by_client) == 1
        await until(lambda: server.control.allocations.claimed == 0, "the quota is released")
        echo.close()
