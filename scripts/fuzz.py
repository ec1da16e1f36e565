"""Feed the STUN codec hostile bytes until it is stopped, or for --count cases.

    .venv/bin/python scripts/fuzz.py [--seed N] [--count N]

The seed is printed at the start; a case that does harm is printed with it and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.stun.mutations import Fuzzer, check

REPORT_EVERY = 5.0
"""Seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="of the cases; one is drawn when it is left out")
    parser.add_argument("--count", type=int, default=None, help="how many cases; without end when it is left out")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    fuzzer = Fuzzer(seed)
    started = reported = time.monotonic()
    read = done = 0
    try:
        for number in count():
            if number == options.count:
                break
            data = fuzzer.case()
            try:
                read += check(data) is not None
            except Exception as error:
                print(f"case {number} of seed {seed}: {error!r}\n{data.hex()}", file=sys.stderr)
                raise
            done = number + 1
            now = time.monotonic()
            if now - reported >= REPORT_EVERY:
                reported = now
                print(f"{done:,} cases, {read:,} read, {done / (now - started):,.0f} a second", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{done:,} cases in {time.monotonic() - started:.1f} s, {read:,} read as messages, none did harm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
