"""Seeded worlds: what must hold, holds in all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polynya.ice import AgentState
from tests.ice.exploration import broken, build, possible, trace_of

ROOT = Path(__file__).resolve().parent.parent.parent
BATCH = 25


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("first", range(0, 4 * BATCH, BATCH))
def test_both_sides_complete_on_one_path_wherever_that_can_be(first: int, restarts: bool) -> None:
    for seed in range(first, first + BATCH):
        world = build(seed, restarts=restarts)
        if not possible(world):
            world.run(30)
            assert world.a.agent.state is not AgentState.COMPLETED, seed
            assert broken(world) == [], seed
            continue
        world.run(8)
        assert world.connect(100), (seed, str(world.a.agent.why()), str(world.b.agent.why()))
        assert world.run(20, world.same_path), (seed, world.a.path, world.b.path)
        assert world.a.agent.controlling is not world.b.agent.controlling, seed
        assert broken(world) == [], seed


@pytest.mark.parametrize("seed", range(10))
def test_after_close_nothing_leaves_and_nothing_is_waited_for(seed: int) -> None:
    world = build(seed, restarts=False)
    world.run(seed / 3)
    for side in (world.a, world.b):
        side.agent.close(now=world.now)
        side.trickle = False
    world.drain()
    world.queue.clear()
    sent = len(world.packets)
    world.run(100)
    assert len(world.packets) == sent
    assert all(side.agent.next_timer() is None and not side.accepted for side in (world.a, world.b))


def test_no_transaction_outlives_what_it_is_for() -> None:
    """Once all is settled nothing but consent is under way."""
    for seed in range(8):
        world = build(seed, restarts=False)
        world.run(120)
        for side in (world.a, world.b):
            transactions = side.agent.generation.transactions
            assert len(transactions) <= 8
            assert all(one.context.consent for one in transactions.by_id.values())


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed_is() -> None:
    def run(hash_seed: str) -> bytes:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.ice.exploration", "0", "6"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout

    first, second = run("1"), run("4242")
    assert len(first) > 100_000
    assert first == second


def test_another_seed_gives_another_run() -> None:
    assert trace_of(1) != trace_of(2)
