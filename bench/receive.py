"""Measures the cost of receiving a datagram: by the driver alone, by a connected pair of Polynya, or of aioice.

Run under either library's interpreter: `PYTHON bench/receive.py --library driver|polynya|aioice [--loop uvloop]`.
Prints one line of JSON, microseconds of this process's CPU for each datagram of 100 bytes:

    burst   the socket's buffer is filled first, then read to its end: what a datagram costs under load
    paced   another process sends 5,000 a second through the peer's socket: most wake-ups find one datagram

Only receiving is measured: bursts are sent before the clock starts, and the paced sender is another process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

SIZE = 100
BURST = 100  # fits the receive buffer that a system grants by default
RATE = 5000

Receive = Callable[[int], Awaitable[None]]
"""Receives a number of datagrams."""

SENDER = """
import socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
target, count, rate, size = (sys.argv[2], int(sys.argv[3])), int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
data = b"\\x80" + bytes(size - 1)
began = time.perf_counter()
for number in range(count):
    ahead = began + number / rate - time.perf_counter()
    if ahead > 0:
        time.sleep(ahead)
    sock.sendto(data, target)
sock.detach()
"""


class Link:
    """A receiver, and the socket that sends to it."""

    def __init__(self, receive: Receive, sender: socket.socket, target: tuple[str, int]) -> None:
        self.receive = receive
        self.sender = sender
        self.target = target


@asynccontextmanager
async def driver_link() -> AsyncIterator[Link]:
    """The driver alone: no agent, no connection, no coroutine to wake."""
    from polynya.aio.driver import Driver
    from polynya.core.addresses import Address
    from polynya.core.flows import FlowIds, Transport
    from polynya.core.machine import Open

    class Idle:
        """A machine that opens one socket."""

        def __init__(self) -> None:
            self.flow = FlowIds().new()
            self.wanted: list[Open] = [Open(flow=self.flow, transport=Transport.UDP, local=Address("127.0.0.1", 0))]
            self.opened: Any = None

        def receive(self, input: Any, *, now: int) -> None:  # noqa: ARG002
            self.opened = input

        def tick(self, *, now: int) -> None: ...

        def next_timer(self) -> None:
            return None

        def outputs(self) -> list[Open]:
            drained, self.wanted = self.wanted, []
            return drained

        def events(self) -> list[Any]:
            return []

    machine = Idle()
    driver: Any = Driver(machine, on_event=lambda _: None)
    try:
        driver.call(machine.tick)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            got: list[bytes] = []
            wanted = 0
            done: asyncio.Future[None] | None = None

            def deliver(data: bytes) -> None:
                got.append(data)
                if done is not None and len(got) >= wanted and not done.done():
                    done.set_result(None)

            async def receive(count: int) -> None:
                nonlocal wanted, done
                wanted, done = count, asyncio.get_running_loop().create_future()
                if len(got) < count:
                    await done
                del got[:count]

            driver.accept_data(machine.flow, Address(*sender.getsockname()), deliver)
            yield Link(receive, sender, tuple(machine.opened.local[:2]))
    finally:
        await driver.aclose()


@asynccontextmanager
async def polynya_link() -> AsyncIterator[Link]:
    """A connected pair of agents, received from by `recv`."""
    import polynya

    options: Any = {"families": (4,)}
    async with polynya.Agent(controlling=True, **options) as one, polynya.Agent(controlling=False, **options) as two:
        one.add_remote_signal(await two.signal_text())
        two.add_remote_signal(await one.signal_text())
        await asyncio.gather(one.completed(timeout=30), two.completed(timeout=30))
        sending, receiving = one.connection(), two.connection()
        target = sending.path.remote.address

        async def receive(count: int) -> None:
            recv = receiving.recv
            for _ in range(count):
                await recv()

        local = sending.path.local.address
        [sender] = [each._sock for each in one._driver._hub._sockets.values() if each.local == local]
        yield Link(receive, sender, (target.host, target.port))


@asynccontextmanager
async def aioice_link() -> AsyncIterator[Link]:
    """A connected pair of aioice, received from by `recv`."""
    import aioice

    one = aioice.Connection(ice_controlling=True, use_ipv6=False)
    two = aioice.Connection(ice_controlling=False, use_ipv6=False)
    await asyncio.gather(one.gather_candidates(), two.gather_candidates())
    for source, sink in ((one, two), (two, one)):
        sink.remote_username, sink.remote_password = source.local_username, source.local_password
        for candidate in source.local_candidates:
            await sink.add_remote_candidate(candidate)
        await sink.add_remote_candidate(None)
    await asyncio.gather(one.connect(), two.connect())
    try:

        async def receive(count: int) -> None:
            recv = two.recv
            for _ in range(count):
                await recv()

        pair = one._nominated[1]
        # asyncio's own view of the socket cannot send: a copy of it can.
        with socket.socket(fileno=os.dup(pair.protocol.transport.get_extra_info("socket").fileno())) as sender:
            yield Link(receive, sender, pair.remote_addr)
    finally:
        await asyncio.gather(one.close(), two.close())


LINKS = {"driver": driver_link, "polynya": polynya_link, "aioice": aioice_link}


async def burst(link: Link, rounds: int) -> float:
    """Microseconds of CPU for each datagram of a full buffer: the median over the rounds."""
    data = b"\x80" + bytes(SIZE - 1)
    costs = []
    for _ in range(rounds):
        for _ in range(BURST):
            link.sender.sendto(data, link.target)
        began = time.process_time_ns()
        await link.receive(BURST)
        costs.append((time.process_time_ns() - began) / BURST / 1000)
    return statistics.median(costs)


async def paced(link: Link, count: int) -> float:
    """Microseconds of CPU for each datagram of a steady flow. A lost one would make the run wait forever."""
    descriptor = link.sender.fileno()
    host, port = link.target
    words = [str(word) for word in (descriptor, host, port, count, RATE, SIZE)]
    process = subprocess.Popen(  # noqa: ASYNC220  # it starts before the clock does
        [sys.executable, "-S", "-c", SENDER, *words], pass_fds=[descriptor]
    )
    try:
        await link.receive(1)
        began = time.process_time_ns()
        await link.receive(count - 1)
        return (time.process_time_ns() - began) / (count - 1) / 1000
    finally:
        process.wait()


async def measure(library: str, rounds: int, count: int) -> dict[str, float]:
    async with LINKS[library]() as link:
        await burst(link, 20)
        return {"burst": await burst(link, rounds), "paced": await paced(link, count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LINKS, required=True)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--rounds", type=int, default=300, help="bursts of 100 datagrams")
    parser.add_argument("--count", type=int, default=10_000, help="datagrams of the steady flow")
    arguments = parser.parse_args()
    factory = None
    if arguments.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(measure(arguments.library, arguments.rounds, arguments.count))))


if __name__ == "__main__":
    main()
