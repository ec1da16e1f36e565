"""Random networks with TURN servers, by seed: every run connects, directly if the rules allow it, else relayed.

Every thirtieth seed of a shard continues for 30 virtual minutes with data. A failure names its seed:
`scripts/explore.py --relayed --from SEED --seeds 1` replays it byte for byte.
"""

from __future__ import annotations

import io
from collections import Counter

import pytest

from polynya.core.instants import SECOND
from polynya.core.trace import Tracer, TraceWriter
from tests.scenarios.relayed import Run, explore

pytestmark = pytest.mark.slow

SEEDS, SHARDS = 500, 4
LONG = 30
"""One of this many seeds of a shard continues for half an hour."""
LOSSY = 100


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_run_connects_directly_if_the_rules_allow_it_else_relayed(shard: int) -> None:
    faults: list[str] = []
    outcomes: Counter[tuple[bool | None, bool]] = Counter()
    for seed in range(shard, SEEDS, SHARDS):
        made = explore(seed, minutes=0 if seed // SHARDS % LONG else 30)
        outcomes[made.made.topology.expected, made.relayed] += 1
        faults += made.faults
    assert faults == []
    assert outcomes[True, False] > 50
    assert outcomes[False, True] > 30
    assert outcomes[None, True] > 0


def test_with_packet_loss_the_invariants_hold_and_nearly_all_runs_connect() -> None:
    runs = [explore(seed, lossy=True) for seed in range(10_000, 10_000 + LOSSY)]
    assert [fault for run in runs for fault in run.faults] == []
    assert sum(not run.connected for run in runs) <= LOSSY // 50


def test_the_same_seed_gives_the_same_bytes() -> None:
    def trace(seed: int) -> str:
        file = io.StringIO()
        Run(seed, trace=Tracer(TraceWriter(file))).play()
        return file.getvalue()

    for seed in range(6):
        assert trace(seed) == trace(seed)
    assert trace(1) != trace(2)


def test_nothing_stays_scheduled_after_a_run() -> None:
    for seed in range(20):
        made = Run(seed, trace=Tracer()).play()
        assert all(peer.process is not None and not peer.process.sockets for peer in made.peers)
        made.net.run_for(3 * 3600 * SECOND)
        assert (seed, made.made.allocations) == (seed, 0)
        assert (seed, made.net.clock.waiting) == (seed, 0)
