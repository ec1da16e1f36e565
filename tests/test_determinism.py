"""The same seed gives the same bytes: in one process, in two, and whatever PYTHONHASHSEED says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polynya.core.trace import read_trace
from tests.lab_traces import write_run

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(12)


def trace_of(seed: int) -> str:
    file = io.StringIO()
    write_run(seed, file)
    return file.getvalue()


def start(hash_seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.lab_traces", *map(str, SEEDS)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def first_difference(one: str, other: str) -> str:
    """The first line in which two traces differ, or "" when they are equal: all that is worth printing of them."""
    for number, (left, right) in enumerate(zip(one.splitlines(), other.splitlines(), strict=False), start=1):
        if left != right:
            return f"line {number}:\n{left}\n{right}"
    return "" if one == other else f"{len(one.splitlines())} lines against {len(other.splitlines())}"


def test_two_hash_seeds_give_one_trace() -> None:
    runs = [start("1"), start("2"), start("random")]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert outputs[0].count('"trace":"polynya"') == len(SEEDS)
    assert first_difference(outputs[0], outputs[1]) == ""
    assert first_difference(outputs[0], outputs[2]) == ""


@pytest.mark.parametrize("seed", [0, 7])
def test_a_run_leaves_nothing_behind_that_changes_the_next(seed: int) -> None:
    first = trace_of(seed)
    trace_of(seed + 1)
    assert first_difference(first, trace_of(seed)) == ""


def test_what_is_compared_is_a_whole_life_of_two_agents() -> None:
    kinds = {event.kind for seed in SEEDS for event in read_trace(io.StringIO(trace_of(seed)))}
    assert kinds >= {"packet-sent", "packet-dropped", "nat", "transaction", "candidate", "pair", "agent", "selected"}


def test_different_seeds_are_different_runs() -> None:
    assert len({trace_of(seed) for seed in SEEDS}) == len(SEEDS)
