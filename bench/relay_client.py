"""CPU time of a TURN client for each datagram through a channel and back.

    python bench/relay_client.py --library polynya      # in the interpreter of either library

coturn relays on loopback; the peer is a process that echoes each datagram. The channel is bound before the clock
starts, so each datagram is ChannelData in both directions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USER, PASSWORD, REALM = "bench", "a password of the bench", "bench.example"
SIZE = 100
BATCH = 10
"""Datagrams in flight at once."""

ECHO = """
import socket
echo = socket.socket(type=socket.SOCK_DGRAM)
echo.bind(("127.0.0.1", 0))
print(echo.getsockname()[1], flush=True)
while True:
    data, source = echo.recvfrom(2048)
    echo.sendto(data, source)
"""


@contextmanager
def running(command: list[str], folder: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def relay_and_peer() -> Iterator[tuple[int, int]]:
    """Return the ports of coturn and of the peer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    coturn = [
        "turnserver", "-n", "--realm", REALM, "--lt-cred-mech", "--user", f"{USER}:{PASSWORD}", "--no-cli", "--no-tls",
        "--no-dtls", "--allow-loopback-peers", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1",
        f"--listening-port={port}", "--relay-threads=1", "--log-file=/dev/null", "--pidfile=coturn.pid",
        "--userdb=turndb",
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        running(coturn, folder, stderr=subprocess.DEVNULL),
        running([sys.executable, "-S", "-c", ECHO], folder) as echo,
    ):
        assert echo.stdout is not None
        peer = int(echo.stdout.readline())
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, peer


async def polynya_client(port: int, peer: int, count: int) -> float:
    import polynya
    from polynya.core.addresses import Address

    data, where = bytes(SIZE), Address("127.0.0.1", peer)
    async with polynya.TurnClient(f"turn:127.0.0.1:{port}", username=USER, password=PASSWORD) as relay:
        await relay.bind(where)
        return await cost(lambda: relay.send(where, data), relay.recv, count)


async def aioice_client(port: int, peer: int, count: int) -> float:
    from aioice import turn

    queue: asyncio.Queue[bytes] = asyncio.Queue()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _: object) -> None:
            queue.put_nowait(data)

    transport, _ = await turn.create_turn_endpoint(
        Receiver, server_addr=("127.0.0.1", port), username=USER, password=PASSWORD
    )
    data, where = bytes(SIZE), ("127.0.0.1", peer)
    transport.sendto(data, where)  # binds the channel; the datagram waits for it
    await queue.get()
    try:
        return await cost(lambda: transport.sendto(data, where), queue.get, count)
    finally:
        transport.close()
        await asyncio.sleep(0.3)  # its Refresh


async def cost(send: Any, receive: Any, count: int) -> float:
    """Microseconds of this process's CPU for one datagram there and back."""
    for number in (BATCH * 50, count):
        began = time.process_time()
        for _ in range(number // BATCH):
            for _ in range(BATCH):
                send()
            for _ in range(BATCH):
                await receive()
        spent = time.process_time() - began
    return spent / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clients = {"polynya": polynya_client, "aioice": aioice_client}
    parser.add_argument("--library", choices=clients, required=True)
    parser.add_argument("--count", type=int, default=20_000, help="datagrams")
    arguments = parser.parse_args()
    with relay_and_peer() as (port, peer):
        spent = asyncio.run(clients[arguments.library](port, peer, arguments.count))
    print(json.dumps({"relayed": spent}))


if __name__ == "__main__":
    main()
