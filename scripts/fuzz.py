"""Feed hostile bytes to the STUN codec, or to a whole TURN server, until it is stopped, or for --count cases.

    .venv/bin/python scripts/fuzz.py [codec|turn] [--seed N] [--count N]

The seed is printed at the start; a case that does harm is printed with it and ends the run with status 1. Against the
server all is let go after every 2,000 cases, and then no port, permission or memory may be left behind.
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
"""Seconds."""


def codec(seed: int) -> Callable[[int], str]:
    """Cases of the codec, one for each call."""
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
    """Cases of the server, a round of them for each call."""
    assault = Assault(seed)

    def case(_: int) -> str:
        try:
            assault.run(assault.cases + ROUND)
        except Exception as error:
            print(f"case {assault.cases} of seed {seed}: {error!r}", file=sys.stderr)
            raise
        granted = sum(n for what, n in assault.table.server.control.counters.items() if what.startswith("answers to "))
        return f"{granted:,} requests granted, {assault.objects[-1]:,} objects held"

    return case


TARGETS = {"codec": (codec, 1), "turn": (turn, ROUND)}
"""Each with how many cases a call runs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=list(TARGETS), default="codec")
    parser.add_argument("--seed", type=int, default=None, help="of the cases; one is drawn when it is left out")
    parser.add_argument("--count", type=int, default=None, help="how many cases; without end when it is left out")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    make, step = TARGETS[options.target]
    case = make(seed)
    started = reported = time.monotonic()
    done, said = 0, ""
    try:
        for number in count(step=step):
            if options.count is not None and number >= options.count:
                break
            said = case(number)
            done = number + step
            now = time.monotonic()
            if now - reported >= REPORT_EVERY:
                reported = now
                print(f"{done:,} cases, {said}, {done / (now - started):,.0f} a second", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{done:,} cases in {time.monotonic() - started:.1f} s, {said}, none did harm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
