"""Limits of a TLS listener on handshakes that do not complete (security.md, line 4)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from polynya.aio import accepting
from polynya.aio.handshakes import HandshakeLimits, Handshakes
from polynya.aio.tally import Tally
from tests.free_ports import free_port
from tests.interop.coturn import make_certificate
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")


class Heard(asyncio.Protocol):
    """Echoes what it receives; the class counts its connections."""

    count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Heard.count += 1
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


class House:
    """A TLS listener on loopback."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        make_certificate(folder / "cert.pem", folder / "key.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.trusting = ssl.create_default_context(cafile=folder / "cert.pem")
        listening = socket.create_server(("127.0.0.1", free_port()))
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self.tally = Tally()
        self.handshakes = Handshakes(listening, context, Heard, self.tally, HandshakeLimits(**limits))
        Heard.count = 0

    async def silent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def echo(self) -> None:
        reader, writer = await asyncio.open_connection("localhost", self.port, ssl=self.trusting, family=socket.AF_INET)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()

    async def close(self) -> None:
        self.handshakes.close()
        await self.handshakes.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await self.silent()


async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the other side has closed."""
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_connections_that_complete_the_handshake_are_served(tmp_path: Path) -> None:
    house = House(tmp_path)
    await asyncio.gather(*(house.echo() for _ in range(5)))
    assert Heard.count == 5
    await house.close()


async def test_silence_and_nonsense_end_the_connection_before_the_protocol_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "polynya.aio")
    house = House(tmp_path, timeout=0.2)
    silent, hostile = await house.silent(), await house.silent()
    hostile[1].write(b"GET / HTTP/1.1\r\n\r\n")
    await gone(*hostile)
    await gone(*silent)
    house.handshakes.limits = HandshakeLimits()
    await house.echo()
    assert Heard.count == 1
    assert (house.tally.handshakes_failed, house.tally.handshakes_refused) == (2, 0)
    [line] = [each.getMessage() for each in caplog.records if "TLS handshake" in each.getMessage()]
    assert line.startswith("a TLS handshake with 127.0.0.1 failed: "), "the first of them"
    await house.close()


async def test_handshakes_in_progress_are_limited(tmp_path: Path) -> None:
    house = House(tmp_path, at_once=3)
    first = [await house.silent() for _ in range(3)]
    await gone(*await house.silent())
    assert house.tally.handshakes_refused == 1
    for _, writer in first:
        writer.close()
    async with asyncio.timeout(30):
        while Heard.count == 0:
            try:
                await house.echo()
            except (ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)
    await house.close()


async def test_a_flood_of_connections_does_not_block_the_event_loop(tmp_path: Path) -> None:
    """An accept that succeeds at once does not yield to the event loop."""

    house = House(tmp_path, at_once=0)
    flood = [socket.create_connection(("127.0.0.1", house.port)) for _ in range(100)]  # no task runs meanwhile
    turns = 0
    while house.tally.handshakes_refused < len(flood):
        await asyncio.sleep(0)
        turns += 1
    assert turns >= len(flood) // accepting.BATCH
    for each in flood:
        each.close()
    await house.close()


async def test_one_source_cannot_keep_the_others_out(tmp_path: Path) -> None:
    house = House(tmp_path, at_once_per_source=2)
    first = [await asyncio.open_connection("127.0.0.1", house.port, local_addr=("127.0.0.2", 0)) for _ in range(2)]
    await gone(*await asyncio.open_connection("127.0.0.1", house.port, local_addr=("127.0.0.2", 0)))
    assert house.tally.handshakes_refused == 1
    await house.echo()
    first[0][1].close()
    async with asyncio.timeout(30):
        await until(lambda: house.handshakes.in_progress == {"127.0.0.2": 1})
    first[1][1].close()
    await house.close()
    assert house.handshakes.in_progress == {}


async def test_closing_ends_the_handshakes_and_keeps_the_streams(tmp_path: Path) -> None:
    house = House(tmp_path)
    reader, writer = await asyncio.open_connection("localhost", house.port, ssl=house.trusting, family=socket.AF_INET)
    silent = await house.silent()
    await until(lambda: house.handshakes.in_progress)
    unread = await house.silent()  # accepted by the system only
    await house.close()
    await gone(*silent)
    await gone(*unread)
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    writer.close()
    await writer.wait_closed()
