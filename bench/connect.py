"""Measures how long a connection takes, and the memory of an idle one, in Polynya or aioice.

Run under either library's interpreter: `PYTHON bench/connect.py --library NAME --measure connect|memory`. Prints one
line of JSON. Both agents are in this process and on the addresses of this host, without any server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol


class Pair(Protocol):
    """Two agents that are connected with each other."""

    async def close(self) -> None: ...


class PolynyaPair:
    def __init__(self, agents: list[Any]) -> None:
        self.agents = agents

    async def close(self) -> None:
        for agent in self.agents:
            await agent.__aexit__(None, None, None)


class AioicePair:
    def __init__(self, connections: list[Any]) -> None:
        self.connections = connections

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self.connections))


async def connect_polynya() -> PolynyaPair:
    """Gather, trickle and connect two agents; both have a valid pair when this returns."""
    import polynya

    one, two = polynya.Agent(controlling=True), polynya.Agent(controlling=False)
    await asyncio.gather(one.__aenter__(), two.__aenter__())
    one.set_remote(two.description)
    two.set_remote(one.description)

    async def trickle(source: Any, target: Any) -> None:
        async for candidate in source.candidates():
            target.add_candidate(candidate)
        target.add_candidate(None)

    await asyncio.gather(trickle(one, two), trickle(two, one), one.connect(timeout=60), two.connect(timeout=60))
    return PolynyaPair([one, two])


async def connect_aioice() -> AioicePair:
    import aioice

    one, two = aioice.Connection(ice_controlling=True), aioice.Connection(ice_controlling=False)
    await asyncio.gather(one.gather_candidates(), two.gather_candidates())
    for source, target in ((one, two), (two, one)):
        target.remote_username, target.remote_password = source.local_username, source.local_password
        for candidate in source.local_candidates:
            await target.add_remote_candidate(candidate)
        await target.add_remote_candidate(None)
    await asyncio.gather(one.connect(), two.connect())
    return AioicePair([one, two])


CONNECT: dict[str, Callable[[], Awaitable[Pair]]] = {"polynya": connect_polynya, "aioice": connect_aioice}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    """The anonymous memory of this process, in bytes; files that are mapped do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has")


REST = 0.05
"""Seconds: the longest Ta of both libraries and more."""


async def measure_connect(library: str, count: int) -> dict[str, float]:
    """Seconds from the start of gathering until both sides have a valid pair: the median of `count` after a first.

    `seconds` is that of connections one right after another. A process may begin a transaction every 5 ms (RFC 8445,
    section 14.2) and both sides need one, so one that keeps to it takes no less than 10 ms for each, the first wait
    being due to the connection before. `alone` is that of connections which come after a rest.
    """
    connect = CONNECT[library]
    await (await connect()).close()
    wall, alone, cpu = [], [], []
    for _ in range(count):
        started, used = time.perf_counter(), cpu_seconds()
        pair = await connect()
        wall.append(time.perf_counter() - started)
        cpu.append(cpu_seconds() - used)
        await pair.close()
    for _ in range(count):
        await asyncio.sleep(REST)
        started = time.perf_counter()
        pair = await connect()
        alone.append(time.perf_counter() - started)
        await pair.close()
    return {
        "seconds": statistics.median(wall),
        "alone": statistics.median(alone),
        "cpu": statistics.median(cpu),
    }


def print_allocations(agents: int, lines: int = 25) -> None:
    """The lines of code that took the most memory that is still held."""
    statistics = tracemalloc.take_snapshot().statistics("lineno")
    print(f"{sum(each.size for each in statistics) / agents:8.0f} bytes an agent by Python's own account, of these")
    for each in statistics[:lines]:
        frame = each.traceback[0]
        print(f"{each.size / agents:8.0f} in {each.count / agents:5.1f} pieces  {frame.filename}:{frame.lineno}")


async def measure_memory(library: str, count: int, *, allocations: bool = False) -> dict[str, float]:
    """Bytes for each of `count` idle connected agents: what the process grows by, once they have been idle.

    `allocations` prints where they were taken, bytes for each agent; it slows the run and spoils the figure.
    """
    connect = CONNECT[library]
    await (await connect()).close()
    gc.collect()
    if allocations:
        tracemalloc.start()
    before = resident_bytes()
    pairs: list[Pair] = []
    for _ in range(count // 2):
        pairs.append(await connect())
    # Consent of every pair has gone around at least once: what an agent keeps for it is there.
    await asyncio.sleep(7)
    gc.collect()
    grown = resident_bytes() - before
    if allocations:
        print_allocations(2 * len(pairs))
    for pair in pairs:
        await pair.close()
    return {"bytes": grown / (2 * len(pairs)), "agents": 2 * len(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=CONNECT, required=True)
    parser.add_argument("--measure", choices=["connect", "memory"], required=True)
    parser.add_argument("--count", type=int)
    parser.add_argument("--allocations", action="store_true", help="with memory: print where it was taken")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))
    if arguments.measure == "connect":
        values = asyncio.run(measure_connect(arguments.library, arguments.count or 20))
    else:
        values = asyncio.run(
            measure_memory(arguments.library, arguments.count or 1000, allocations=arguments.allocations)
        )
    print(json.dumps(values))


if __name__ == "__main__":
    main()
