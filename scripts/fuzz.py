"""Feed random and mutated bytes to the STUN codec or to a TURN server, until interrupted or for --count cases.

    .venv/bin/python scripts/fuzz.py [codec|turn] [--seed N] [--count N]

The seed is printed at the start. A case that raises is printed with the seed and ends the run with exit code 1. For the
server, all clients are released after every 2,000 cases; then no port, permission or memory may remain in use.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.stun.mutations import Fuzzer, check
from tests.turn.server.mutations import ROUND, Assault

REPORT_EVERY = 5.0
"""Seconds between two reports."""


def codec(seed: int) -> Callable[[int], str]:
    """Return a function that runs one case of the codec."""
    fuzzer = Fuzzer(seed)
    read = 0

    def case(number: int) -> str:
        nonlocal read
        data = fuzzer.case()
        try:
            read += check(data) is not None
        except Exception as error:
            print(f"case {number} of seed {seed}: {error!r}\n{data.hex()}", file=sys.stderr)
            raise
        return f"{read:,} read as messages"

    return case


def turn(seed: int) -> Callable[[int], str]:
    """Return a function that runs one round of cases of the server."""
    assault = Assault(seed)

    def case(_: int) -> str:
        try:
            assault.run(assault.cases + ROUND)
        except Exception as error:
            print(f"case {assault.cases} of seed {seed}: {error!r}", file=sys.stderr)
            raise
        granted = sum(n for name, n in assault.table.server.control.counters.items() if name.startswith("answers to "))
        return f"{granted:,} requests granted, {assault.objects[-1]:,} objects held"

    return case


TARGETS = {"codec": (codec, 1), "turn": (turn, ROUND)}
"""Each target with the number of cases that a call runs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=list(TARGETS), default="codec")
    parser.add_argument("--seed", type=int, default=None, help="seed of the cases; default: random")
    parser.add_argument("--count", type=int, default=None, help="number of cases; default: unlimited")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    make, step = TARGETS[options.target]
    case = make(seed)
    started = reported = time.monotonic()
    done, report = 0, ""
    try:
        for number in count(step=step):
            if options.count is not None and number >= options.count:
                break
            report = case(number)
            done = number + step
            now = time.monotonic()
            if now - reported >= REPORT_EVERY:
                reported = now
                print(f"{done:,} cases, {report}, {done / (now - started):,.0f} a second", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{done:,} cases in {time.monotonic() - started:.1f} s, {report}, no case failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
