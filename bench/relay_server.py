"""Measures the cost of a TURN server: a relayed datagram, an allocation made and freed, an idle allocation.

python bench/relay_server.py --server polynya --measure saturated
python bench/relay_server.py --server coturn --measure saturated
"""

from __future__ import annotations

import argparse
import io
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from bench import turn_servers
from bench.turn_flows import ALLOCATE, FREE, Client, Load, first_allocate, idle
from bench.turn_servers import USERS, TurnServer
from polynya.stun.attributes import NONCE
from polynya.stun.message import decode
from polynya.stun.registry import Method

SIZE = 120
"""Payload of a datagram in bytes."""
GATHER = 0.001
SHOWN_OF_PROFILE = 20

Start = Callable[..., AbstractContextManager[TurnServer]]
"""Starts a server; ours accepts `workers` and `gather`."""
Values = dict[str, float]


def saturated(start: Start, packets: int = 600_000) -> Values:
    """Measure the CPU time of a datagram at saturation."""
    with start() as server:
        load = Load(server.port, 100, SIZE)
        load.saturate(packets // 10)
        before = server.cpu()
        carried = load.saturate(packets)
        spent = server.cpu() - before
    return {
        "cpu": spent / carried.received * 1e6,
        "rate": carried.received / carried.seconds,
        "busy": spent / carried.seconds,
        "lost": carried.lost,
    }


def paced(start: Start, per_second: int = 20_000, seconds: float = 6) -> Values:
    """Measure the CPU time and latency of a datagram well below saturation."""
    with start() as server:
        load = Load(server.port, 1000, SIZE)
        load.pace(per_second, per_second)
        before = server.cpu()
        carried = load.pace(round(per_second * seconds), per_second)
        spent = server.cpu() - before
    return {
        "cpu": spent / carried.received * 1e6,
        "latency": statistics.median(carried.latencies) * 1e6,
        "lost": carried.lost,
    }


def cycles(start: Start, clients: int = 200, rounds: int = 60) -> Values:
    """Measure allocations that new clients make and free: challenge, Allocate, Refresh with lifetime 0."""
    with start() as server:
        _cycles(server, clients, 5)
        before, began = server.cpu(), time.perf_counter()
        made = _cycles(server, clients, rounds)
        spent, seconds = server.cpu() - before, time.perf_counter() - began
        before = server.cpu()
        alone = _cycles(server, 1, clients * rounds // 4)
        spent_alone = server.cpu() - before
    return {"cycles": made / spent, "busy": spent / seconds, "cycles_alone": alone / spent_alone}


def _cycles(server: TurnServer, clients: int, rounds: int) -> int:
    """Run rounds of new clients, whose requests are in flight together."""
    for _ in range(rounds):
        new = [Client(server.port, USERS[number % len(USERS)]) for number in range(clients)]
        for client in new:
            client.sock.send(first_allocate())
        for client in new:
            client.nonce = decode(_answer(client, 0x0113))[NONCE]
            client.sock.send(client.signed(Method.ALLOCATE, ALLOCATE))
        for client in new:
            _answer(client, 0x0103)
            client.sock.send(client.signed(Method.REFRESH, FREE))
        for client in new:
            _answer(client, 0x0104)
            client.sock.close()
    return clients * rounds


def _answer(client: Client, kind: int) -> bytes:
    client.sock.settimeout(10)
    data = client.sock.recv(2048)
    if int.from_bytes(data[:2], "big") != kind:
        raise RuntimeError(f"expected a response of type {kind:#06x}, not {decode(data)!r}")
    return data


def memory(start: Start, first: int = 500, more: int = 3000) -> Values:
    """Measure the memory of an idle allocation; the first ones are not counted, since they fill caches."""
    with start() as server:
        kept = [idle(server.port, number) for number in range(first)]
        time.sleep(1)
        before = server.memory()
        kept += [idle(server.port, number) for number in range(more)]
        time.sleep(1)
        grown = server.memory() - before
    return {"bytes": grown / more}


MEASURES = {"saturated": saturated, "paced": paced, "cycles": cycles, "memory": memory}


def of_polynya(measure: str) -> Values:
    """Measure our server, with the options that differ from its defaults."""
    start = turn_servers.polynya
    if measure == "saturated":
        with_worker = saturated(lambda: start(workers=1))
        return {**saturated(start), "cpu_worker": with_worker["cpu"]}
    if measure == "paced":
        at_once = {f"{name}_at_once": value for name, value in paced(start).items()}
        return {**at_once, **paced(lambda: start(gather=GATHER))}
    return MEASURES[measure](start)


def profile(measure: str) -> str:
    """Return a profile of our server during a measurement."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        MEASURES[measure](lambda: turn_servers.polynya(profile=path, gather=GATHER if measure == "paced" else 0.0))
        text = io.StringIO()
        stats = pstats.Stats(str(path), stream=text)
        stats.files = []  # hides the name of the temporary file
        stats.sort_stats("tottime").print_stats(SHOWN_OF_PROFILE)
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["polynya", "coturn"], required=True)
    parser.add_argument("--measure", choices=MEASURES, required=True)
    parser.add_argument("--profile", action="store_true", help="print a profile of our server instead")
    arguments = parser.parse_args()
    turn_servers.pin_to_another_processor()
    if arguments.profile:
        print(profile(arguments.measure))
    elif arguments.server == "polynya":
        print(json.dumps(of_polynya(arguments.measure)))
    else:
        print(json.dumps(MEASURES[arguments.measure](turn_servers.coturn)))


if __name__ == "__main__":
    main()
