"""The model of a TURN server (tests/turn/client/relay.py) on real sockets; its peers send back every datagram."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from polynya.aio import clock
from polynya.core.addresses import Address
from polynya.stun.framing import StreamFramer
from tests.free_ports import free_port
from tests.turn.client.relay import Relay

ECHO = Address("192.0.2.50", 4000)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for answer in answers(self.relay, data, Address(*addr[:2])):
            self.transport.sendto(answer, addr)  # type: ignore[attr-defined]


def answers(relay: Relay, data: bytes, source: Address) -> list[bytes]:
    now = clock.now()
    answer = relay.take(data, source, now=now)
    frames = [answer] if answer else []
    while relay.sent:
        peer, payload, _ = relay.sent.pop(0)
        frame = relay.from_peer(source, peer, payload, now=now)
        frames += [frame] if frame else []
    return frames


@asynccontextmanager
async def serving(relay: Relay | None = None) -> AsyncIterator[tuple[Relay, str]]:
    """A server on a UDP and a TCP port of the same number, and its host and port for a URI."""
    relay = relay or Relay()
    loop = asyncio.get_running_loop()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        framer, source = StreamFramer(), Address(*writer.get_extra_info("peername")[:2])
        while data := await reader.read(65536):
            relay.stream = True
            for frame in framer.feed(data):
                for answer in answers(relay, frame, source):
                    writer.write(answer)
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(relay), local_addr=("127.0.0.1", port))
    try:
        yield relay, f"127.0.0.1:{port}"
    finally:
        transport.close()
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.02)
