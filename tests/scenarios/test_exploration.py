"""Seeded runs in random networks: no invariant is violated, and predicted outcomes are correct.

A failure names its seed: `run(SEED)` replays it, byte for byte.
"""

import io
from collections import Counter

import pytest

from polynya.core.instants import MILLISECOND, SECOND
from polynya.core.trace import TraceEvent, Tracer, TraceWriter
from polynya.lab import Network
from polynya.lab.invariants import unpaced
from polynya.lab.table import Meeting, meet
from polynya.lab.topologies import Topology, random_topology

CLEAN = 300
LOSSY = 60
BATCH = 50


def run(seed: int, *, lossy: bool = False, trace: Tracer | None = None) -> tuple[Topology, Meeting]:
    network = Network(seed, trace=trace or Tracer())
    topology = random_topology(network, lossy=lossy)
    chance = network.chance_of("signaling of the run")
    meeting = meet(
        topology,
        signaling_delay=chance.choice((1, 20, 200, 1000)) * MILLISECOND,
        signaling_jitter=chance.choice((0, 0, 100)) * MILLISECOND,
        later=chance.choice((0, 0, 500, 5000)) * MILLISECOND,
    )
    return topology, meeting


def faults(seed: int, *, lossy: bool = False) -> tuple[list[str], bool | None, bool]:
    events: list[TraceEvent] = []
    topology, meeting = run(seed, lossy=lossy, trace=Tracer(events.append))
    found = [f"seed {seed}: {fault} ({topology.description})" for fault in (*meeting.faults, *unpaced(events))]
    if not lossy and topology.expected is not None and topology.expected != meeting.connected:
        found.append(f"seed {seed}: expected connected={topology.expected} ({topology.description})")
    if meeting.connected and not meeting.data:
        found.append(f"seed {seed}: connected, but data does not arrive in both directions ({topology.description})")
    if not lossy and not meeting.connected and any(meeting.pairs):
        found.append(f"seed {seed}: not connected, but a pair is selected ({topology.description})")
    return found, topology.expected, meeting.connected


@pytest.mark.parametrize("first", range(0, CLEAN, BATCH))
def test_without_loss_no_invariant_is_violated_and_the_outcome_is_predicted(first: int) -> None:
    outcomes: Counter[tuple[bool | None, bool]] = Counter()
    found = []
    for seed in range(first, first + BATCH):
        faulty, expected, connected = faults(seed)
        found += faulty
        outcomes[expected, connected] += 1
    assert found == []
    assert outcomes[True, True] > 0
    assert outcomes[False, False] > 0


def test_with_loss_no_invariant_is_violated_and_no_unpredicted_connection_exists() -> None:
    found, missed = [], 0
    for seed in range(10_000, 10_000 + LOSSY):
        faulty, expected, connected = faults(seed, lossy=True)
        found += faulty
        if expected is False and connected:
            found.append(f"seed {seed}: connected, but the prediction excludes it")
        missed += expected is True and not connected
    assert found == []
    assert missed <= LOSSY // 20


@pytest.mark.parametrize("lossy", [False, True])
def test_the_same_seed_gives_the_same_bytes(lossy: bool) -> None:
    def trace(seed: int) -> str:
        file = io.StringIO()
        run(seed, lossy=lossy, trace=Tracer(TraceWriter(file)))
        return file.getvalue()

    for seed in (1, 2, 3):
        assert trace(seed) == trace(seed)
    assert trace(1) != trace(2)


def test_tracing_does_not_change_a_run() -> None:
    for seed in range(20):
        events: list[TraceEvent] = []
        _, traced = run(seed, trace=Tracer(events.append))
        _, quiet = run(seed)
        assert (traced.connected, traced.pairs) == (quiet.connected, quiet.pairs)
        assert [p.first(p.state) for p in traced.peers] == [p.first(p.state) for p in quiet.peers]


def test_nothing_stays_scheduled_after_a_run() -> None:
    for seed in range(30):
        topology, meeting = run(seed)
        assert all(peer.process is not None and not peer.process.sockets for peer in meeting.peers)
        topology.network.run_for(3 * 3600 * SECOND)
        assert topology.network.clock.waiting == 0
