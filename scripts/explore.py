"""Run random worlds of two sessions (`tests/scenarios/worlds.py`) and check their outcomes.

    python scripts/explore.py --seeds 10000 --from 0 [--lossy]

Prints every fault with its seed, then the counts. The exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.scenarios.worlds import explore


def main() -> int:
    parser = argparse.ArgumentParser(description="Run random worlds and check their outcomes.")
    parser.add_argument("--seeds", type=int, default=1000, help="number of worlds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--lossy", action="store_true", help="links may lose packets")
    options = parser.parse_args()
    began = time.process_time()
    outcomes: Counter[str] = Counter()
    faults = 0
    for seed in range(options.first, options.first + options.seeds):
        outcome = explore(seed, lossy=options.lossy)
        for fault in outcome.faults:
            print(fault, flush=True)
        faults += len(outcome.faults)
        prediction = {True: "connection", False: "no connection", None: "undecided"}[outcome.expected]
        without = "not connected because of loss" if outcome.excused else "not connected"
        outcomes[f"predicted {prediction}: {'connected' if outcome.connected else without}"] += 1
    for description, count in sorted(outcomes.items()):
        print(f"{count:8} {description}")
    spent = time.process_time() - began
    print(f"{faults} faults in {options.seeds} worlds, {1000 * spent / max(options.seeds, 1):.1f} ms of CPU each")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
