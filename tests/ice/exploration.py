"""Random worlds from a seed: addresses, NATs, delays, loss, roles, dialects, trickling and restarts at random times.

Run as a program it prints the trace of a few seeds, so that two runs can be compared.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from random import Random

from polynya.core.instants import MILLISECOND
from polynya.core.pacer import MINIMUM_INTERVAL
from polynya.ice import IceConfig, NominationPolicy, Renomination
from polynya.stun.registry import Class
from tests.ice.harness import Nat, Side, World


def build(seed: int, *, restarts: bool) -> World:
    """The world of a seed."""
    random = Random(f"world {seed}")

    def nat(host: str) -> Nat | None:
        if random.random() < 0.25:
            return None
        filtering = random.random() < 0.7
        return Nat(host, symmetric=not filtering and random.random() < 0.4, filtering=filtering)

    def config(controlling: bool) -> IceConfig:
        policy = NominationPolicy.immediate() if random.random() < 0.2 else NominationPolicy()
        options = ("ice2", "trickle") if random.random() < 0.7 else ()
        again = Renomination() if random.random() < 0.4 else None
        return IceConfig(controlling=controlling, options=options, nomination=policy, renomination=again)

    controlling = random.random() < 0.5
    conflict = random.random() < 0.25
    world = World(
        seed,
        delay=random.choice([0, 1, 5, 20, 100, 300, 500]) * MILLISECOND,
        jitter=random.choice([0, 0, 5, 50, 200]) * MILLISECOND,
        loss=random.choice([0, 0, 0, 0.05, 0.15]),
        signaling=random.choice([0, 5, 100, 1000]) * MILLISECOND,
        a=config(controlling),
        b=config(controlling if conflict else not controlling),
        nat_a=nat("198.51.100.1"),
        nat_b=nat("198.51.100.2"),
    )
    for number, side in enumerate((world.a, world.b), start=1):
        hosts = [f"203.0.113.{10 * number + n}" if side.nat is None else f"10.{number}.0.{n + 2}" for n in range(3)]
        _gather(world, side, hosts[: random.randrange(1, 4)], random)
        if restarts and random.random() < 0.6:
            world.later(random.randrange(4000) * MILLISECOND, lambda side=side: _restart(side))  # type: ignore[misc]
    return world


def _gather(world: World, side: Side, hosts: list[str], random: Random) -> None:
    def begin() -> None:
        for host in hosts:
            flow = side.host(host)
            world.later(random.randrange(300) * MILLISECOND, lambda flow=flow: side.reflexive(flow) and None)  # type: ignore[misc]
        world.later(300 * MILLISECOND, side.end)

    world.later(random.randrange(500) * MILLISECOND, begin)


def _restart(side: Side) -> None:
    side.agent.restart(now=side.world.now)


def possible(world: World) -> bool:
    """Whether plain ICE can cross these NATs: a symmetric one needs the other side to have no filter by port."""

    def blocks(one: Nat | None, other: Nat | None) -> bool:
        return bool(one and one.symmetric and other and (other.symmetric or other.filtering))

    return not blocks(world.a.nat, world.b.nat) and not blocks(world.b.nat, world.a.nat)


def broken(world: World) -> list[str]:
    """Which invariants do not hold for what has happened so far."""
    found = []
    for event in world.trace:
        if event.kind == "pair-flags" and event.fields["nominated"] and not event.fields["valid"]:
            found.append(f"a nominated pair that is not valid at {event.at}")
    began: dict[bytes, int] = {}
    consent = {event.at for event in world.trace if event.kind == "consent"}
    for packet in world.packets:
        if packet.message.cls is Class.REQUEST:
            began.setdefault(packet.message.transaction_id, packet.at)
    times = sorted(at for at in began.values() if at not in consent)
    if any(second - first < MINIMUM_INTERVAL for first, second in pairwise(times)):
        found.append("two checks of the process within 5 ms")
    for side in (world.a, world.b):
        for view in side.agent.pairs():
            if view.valid and not view.writable:
                found.append("a valid pair that is not writable")
    return found


def trace_of(seed: int) -> str:
    world = build(seed, restarts=True)
    world.run(15)
    lines = [event.to_json() for event in world.trace]
    return "\n".join([*lines, *(packet.data.hex() for packet in world.packets)])


if __name__ == "__main__":
    for number in range(*map(int, sys.argv[1:3])):
        print(trace_of(number))
