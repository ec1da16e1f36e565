"""Run random worlds of two sessions and check their outcomes.

    python scripts/explore.py --seeds 10000 --from 0 [--lossy] [--relayed]

The worlds are those of `tests/scenarios/worlds.py`, with `--relayed` the networks with TURN servers of
`tests/scenarios/relayed.py`.

Prints every fault with its seed, then the counts. The exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.scenarios import relayed, worlds


def main() -> int:
    parser = argparse.ArgumentParser(description="Run random worlds and check their outcomes.")
    parser.add_argument("--seeds", type=int, default=1000, help="number of worlds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--lossy", action="store_true", help="links may lose packets")
    parser.add_argument("--relayed", action="store_true", help="networks with TURN servers")
    options = parser.parse_args()
    began = time.process_time()
    outcomes: Counter[str] = Counter()
    faults = 0
    for seed in range(options.first, options.first + options.seeds):
        if options.relayed:
            run = relayed.explore(seed, lossy=options.lossy, minutes=0 if seed % 30 else 30)
            found, expected = run.faults, run.made.topology.expected
            outcome = ("relayed" if run.relayed else "direct") if run.connected else "not connected"
        else:
            world = worlds.explore(seed, lossy=options.lossy)
            found, expected = world.faults, world.expected
            missed = "not connected because of loss" if world.excused else "not connected"
            outcome = "connected" if world.connected else missed
        for fault in found:
            print(fault, flush=True)
        faults += len(found)
        prediction = {True: "a direct path", False: "no direct path", None: "undecided"}[expected]
        outcomes[f"predicted {prediction}: {outcome}"] += 1
    for description, count in sorted(outcomes.items()):
        print(f"{count:8} {description}")
    spent = time.process_time() - began
    print(f"{faults} faults in {options.seeds} worlds, {1000 * spent / max(options.seeds, 1):.1f} ms of CPU each")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
