"""Measures relaying while one client without credentials floods a stream of the server.

`python -m tests.security.flooding` prints the table of docs/explanation/security.md.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import polynya
from polynya.core.addresses import Address
from polynya.signaling.messages import PATH
from polynya.stun.message import Message
from polynya.stun.registry import Method

RATE, SECONDS = 2000, 4.0
"""Datagrams offered per second, and seconds of each run."""
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{KEY}\r\n".encode()
FRAGMENT = bytes([0x01, 0x80, 0, 0, 0, 0])
BINDING = Message.request(Method.BINDING, bytes(12)).encode()
FLOODS = {
    "none": (False, b"", b""),
    "unsolicited pongs": (True, b"", bytes([0x8A, 0x80, 0, 0, 0, 0])),
    "empty continuations": (True, FRAGMENT, bytes([0x00, 0x80, 0, 0, 0, 0])),
    "pings": (True, b"", bytes([0x89, 0x80, 0, 0, 0, 0])),
    "ChannelData `40 00 00 00`": (False, b"", bytes.fromhex("40000000")),
    "Binding requests": (False, b"", BINDING),
}
"""Each flood: whether it is on a WebSocket, what is sent first, and what is repeated."""


def flood(web: bool, port: int, first: bytes, unit: bytes) -> None:
    """Send without pause and discard all answers; connect again if the server closes the connection."""
    block = unit * (65_536 // len(unit))
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as stream:
            if web:
                stream.sendall(UPGRADE)
                stream.recv(4096)
            stream.sendall(first)
            stream.setblocking(False)
            view = memoryview(block)
            while True:
                with suppress(BlockingIOError):
                    if not stream.recv(65_536):
                        break
                try:
                    view = view[stream.send(view) :] or memoryview(block)
                except BlockingIOError:
                    time.sleep(0.0005)


class Peer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.delays: list[float] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.delays.append(time.perf_counter() - struct.unpack_from("d", data)[0])


async def measure(stun: int) -> tuple[list[float], float]:
    """Return the delays of the relayed datagrams, and the seconds until an Allocate is answered (or the limit)."""
    loop = asyncio.get_running_loop()
    transport, peer = await loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
    address = Address.of(*transport.get_extra_info("sockname")[:2])
    options = {"username": "alice", "password": "secret"}
    async with polynya.TurnClient(f"turn:127.0.0.1:{stun}", **options) as relay:
        await relay.bind(address)
        start_flood.set()
        await asyncio.sleep(0.5)
        begin, number = loop.time(), 0

        async def allocate() -> float:
            start = time.perf_counter()
            with suppress(polynya.PolynyaError, TimeoutError):
                async with asyncio.timeout(SECONDS), polynya.TurnClient(f"turn:127.0.0.1:{stun}", **options):
                    pass
            return time.perf_counter() - start

        allocating = asyncio.create_task(allocate())
        while (now := loop.time() - begin) < SECONDS:
            while number < now * RATE:
                relay.send(address, struct.pack("d", time.perf_counter()) + bytes(192))
                number += 1
            await asyncio.sleep(0.001)
        delays = list(peer.delays)
        answered = await allocating
    transport.close()
    return delays, answered


start_flood = multiprocessing.Event()


def run(web: bool, first: bytes, unit: bytes) -> tuple[list[float], float]:
    command = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--user", "alice:secret"]
    command += ["--allow-peer", "127.0.0.1", "--log-level", "error"]
    with subprocess.Popen([sys.executable, "-m", "polynya", *command], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = server.stdout.readline().split()
        stun, http = (
            int(next(each for each in ready if each.startswith(key)).rpartition(":")[2]) for key in ("stun=", "http=")
        )
        start_flood.clear()
        flooding = None
        if unit:

            def when_ready() -> None:
                start_flood.wait()
                flood(web, http if web else stun, first, unit)

            flooding = multiprocessing.get_context("fork").Process(target=when_ready, daemon=True)
            flooding.start()
        try:
            return asyncio.run(measure(stun))
        finally:
            if flooding is not None:
                flooding.kill()
                flooding.join()
            server.terminate()


def main() -> None:
    print("| one client sends | relayed datagrams/s | delay, median | delay, 99 % | an Allocate takes |")
    print("|---|---|---|---|---|")
    for name, (web, first, unit) in FLOODS.items():
        delays, answered = run(web, first, unit)
        rate = len(delays) / SECONDS
        delays = sorted(delays) or [SECONDS]
        median, worst = statistics.median(delays), delays[int(len(delays) * 0.99)]
        limit = "more than " if answered >= SECONDS else ""
        row = f"{rate:,.0f} | {median * 1000:,.1f} ms | {worst * 1000:,.1f} ms | {limit}{answered * 1000:,.0f} ms"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
