"""Lossy worlds without trickle: which direct paths are lost because gathering ends early if UDP seems blocked?

    python -m tests.scenarios.blocked_udp --seeds 1000 --from 900000 [--servers known]

Each world runs twice, with `SessionConfig.blocked_udp` and without. Both agents have a TURN server over TCP, which
allocates before slow STUN servers answer; with `--servers known`, the servers are those of the random world.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, replace

from polynya.core.instants import SECOND, Instant
from polynya.core.trace import Tracer
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.exploring import random_relayed
from polynya.lab.relaying import relay
from tests.scenarios.relays import TCP


@dataclass(frozen=True)
class Result:
    path: str
    """`direct`, `relayed` or `none`."""
    early: bool
    """Whether an agent ended gathering because UDP seemed blocked."""


def play(seed: int, *, blocked_udp: bool, known: bool = False) -> Result:
    """Run one lossy world until both agents have settled."""
    net = Network(seed, trace=Tracer(None))
    made = random_relayed(net, lossy=True)
    servers = {} if known else {"turn_servers": (relay(TCP),)}
    configs = [replace(config, blocked_udp=blocked_udp, **servers) for config in made.configs]
    one, other = Peer(net, made.topology.one, configs[0]), Peer(net, made.topology.other, configs[1])
    Exchange(net, one, other, delay=made.signaling_delay, trickle=False).start(made.later)
    net.run_until(lambda: one.settled and other.settled, Instant(120 * SECOND))
    if made.renomination:
        net.run_for(10 * SECOND)
    pairs = [one.selected, other.selected]
    path = "none" if None in pairs else "relayed" if any(pair and pair.relayed for pair in pairs) else "direct"
    answers = [answer for peer in (one, other) for answer in peer.session.gathering.answers.all]
    return Result(path, any("UDP seems blocked" in answer.reason for answer in answers))


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the direct paths that are lost.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", type=int, default=900_000, dest="first")
    parser.add_argument("--servers", choices=("tcp", "known"), default="tcp")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        without, early = (play(seed, blocked_udp=flag, known=options.servers == "known") for flag in (False, True))
        counts[without.path, early.path] += 1
        if without.path != early.path:
            print(f"seed {seed}: {without.path} without, {early.path} with the option, ended early: {early.early}")
    for (old, new), count in sorted(counts.items()):
        print(f"{count:8} {old} without, {new} with the option")
    return 0


if __name__ == "__main__":
    sys.exit(main())
