"""Random worlds for as long as you like: two sessions, what may stand between them and what may happen to them.

    python scripts/explore.py --seeds 10000 --from 0 [--lossy]

Prints every fault with the seed that shows it, then the counts; the exit code is 1 when there was a fault.
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
    parser = argparse.ArgumentParser(description="Run random worlds and judge them.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
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
        can = {True: "can meet", False: "cannot meet", None: "may meet"}[outcome.expected]
        did = "met" if outcome.connected else "did not, excused by loss" if outcome.excused else "did not"
        outcomes[f"{can}: {did}"] += 1
    for what, count in sorted(outcomes.items()):
        print(f"{count:8} {what}")
    spent = time.process_time() - began
    print(f"{faults} faults in {options.seeds} worlds, {1000 * spent / max(options.seeds, 1):.1f} ms of CPU each")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
