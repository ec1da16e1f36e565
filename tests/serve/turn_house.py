"""A server with TURN on loopback, its clients, and a peer that echoes datagrams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import polynya
from polynya.aio.tcp import TlsContexts
from polynya.core.addresses import Address
from polynya.core.machine import Open
from polynya.serve import ServeConfig, Server, TlsFiles, TurnOptions
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.users import User
from tests.free_ports import free_port

ANY4, ANY6 = Address("127.0.0.1", 0), Address("::1", 0)
REALM, NAME, PASSWORD = "example.org", "alice", "open sesame"
ALICE = User.with_password(NAME, REALM, PASSWORD)
LOOPBACK = PeerPolicy(allow=("127.0.0.0/8",))
"""Allows the peers of the tests, which are on this host and so denied by default."""


def turn_config(**changes: Any) -> ServerConfig:
    relays = (RelayHost(host="127.0.0.1"), RelayHost(host="::1"))
    return ServerConfig(**({"realm": REALM, "relays": relays, "policy": LOOPBACK} | changes))


def options(**changes: Any) -> TurnOptions:
    return TurnOptions(**({"config": turn_config(), "users": (ALICE,)} | changes))


def config(turn: TurnOptions | None = None, **changes: Any) -> ServeConfig:
    return ServeConfig(**({"listen": (ANY4,), "turn": turn or options()} | changes))


def tls_config(folder: Path, turn: TurnOptions | None = None, **changes: Any) -> ServeConfig:
    files = TlsFiles(certificate=folder / "cert.pem", key=folder / "key.pem")
    return config(turn, tls=files, tls_listen=(ANY4,), **changes)


def trusting(certificate: Path) -> TlsContexts:
    def make(request: Open) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certificate)
        context.set_alpn_protocols(list(request.alpn))
        return context

    return make


def uri(server: Server, transport: str = "udp") -> str:
    if transport == "tls":
        return f"turns:localhost:{server.tls_addresses[0].port}"
    return f"turn:127.0.0.1:{server.stun_addresses[0].port}?transport={transport}"


def client(server: Server, transport: str = "udp", **changes: Any) -> polynya.TurnClient:
    return polynya.TurnClient(uri(server, transport), **({"username": NAME, "password": PASSWORD} | changes))


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(b"echo " + data, addr)


@asynccontextmanager
async def echo() -> AsyncIterator[Address]:
    """An echoing peer. Its port differs from those of all listeners, which the server denies as peers."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Echo, local_addr=("127.0.0.1", free_port()))
    try:
        yield Address.of(*transport.get_extra_info("sockname")[:2])
    finally:
        transport.close()
        await asyncio.sleep(0)


async def works(relay: polynya.TurnClient, peer: Address, text: bytes = b"x") -> None:
    relay.send(peer, text)
    assert await relay.recv() == (b"echo " + text, peer)


async def forbidden(server: Server) -> None:
    """Wait until the data plane has dropped one datagram to a denied peer."""
    while server.counters.get("turn.not-forwarded.peer denied by policy", 0) != 1:
        await server.refresh()
        await asyncio.sleep(0.01)
