"""Shared by tests of our TURN client against foreign servers: an echo peer, and checks of the echoed data."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from polynya.aio.tcp import TlsContexts
from polynya.aio.turn import TurnClient
from polynya.core.addresses import Address
from polynya.core.machine import Open
from tests.free_ports import free_port


def trusting(certificate: Path) -> TlsContexts:
    def make(request: Open) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certificate)
        context.set_alpn_protocols(list(request.alpn))
        return context

    return make


class Echo(asyncio.DatagramProtocol):
    """A peer that echoes datagrams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


@asynccontextmanager
async def echoing(host: str = "127.0.0.1") -> AsyncIterator[Address]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(host, free_port()))
    try:
        yield Address(*transport.get_extra_info("sockname")[:2])
    finally:
        transport.close()


async def exchange(relay: TurnClient, peer: Address, count: int = 100, least: int = 1) -> None:
    """Send datagrams of at least `least` bytes, a few at a time, and check that all are echoed in order."""
    for start in range(0, count, 10):
        sent = [(b"%d" % number).ljust(least) + bytes(number % 7) for number in range(start, start + 10)]
        for data in sent:
            assert relay.send(peer, data)
        assert [await relay.recv() for _ in sent] == [(data, peer) for data in sent]
