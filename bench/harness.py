"""Runs the same workload in two libraries, in turns, each in a process of its own.

A workload is a command that prints one line of JSON, `{"NAME": NUMBER, ...}`, as its last line. The sides take turns
(A B A B ...), so that a machine that becomes slower affects both. The median over the rounds is compared, and shown
with the minimum and the maximum. A goal is a ratio of medians.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / ".venv" / "bin" / "python"
AIOICE = ROOT / ".peers" / "aioice" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the programs compared: its name with its version, and the command that runs the workload in it."""

    name: str
    command: Sequence[str | Path]
    root: Path = ROOT
    """The checkout that the command runs in and imports from."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value in a workload's JSON, with the goal for its ratio."""

    key: str
    title: str
    unit: str
    goal: float | None = None
    """With `more_is_better` ours / theirs must be at least this; without, at most. None without a goal."""
    more_is_better: bool = True
    scale: float = 1.0
    """The factor that converts a value into `unit`."""
    against: str = ""
    """The key of the other side's value, if it is different."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The values of one side over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Result:
    """A figure measured on both sides."""

    figure: Figure
    ours: Sample
    theirs: Sample

    @property
    def ratio(self) -> float:
        """Ours to theirs."""
        return self.ours.median / self.theirs.median if self.theirs.median else float(self.ours.median > 0)

    @property
    def met(self) -> bool:
        if self.figure.goal is None:
            return True
        return self.ratio >= self.figure.goal if self.figure.more_is_better else self.ratio <= self.figure.goal


Wrap = Callable[[Sequence[str | Path]], Sequence[str | Path]]


def run(side: Side, *, timeout: float = 120, wrap: Wrap = list) -> dict[str, float]:
    """Run a workload once and read its last line. Raises RuntimeError with the output of a workload that fails."""
    path = os.pathsep.join([str(side.root), str(side.root / "src")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        wrap(side.command), cwd=side.root, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{side.name}: {' '.join(map(str, side.command))} failed:\n{done.stdout}{done.stderr}")
    values: dict[str, float] = json.loads(lines[-1])
    return values


def compare(
    ours: Side, theirs: Side, figures: Sequence[Figure], *, rounds: int = 5, timeout: float = 120, wrap: Wrap = list
) -> list[Result]:
    """Run both sides in turns; returns each figure of both."""
    taken: dict[str, list[dict[str, float]]] = {ours.name: [], theirs.name: []}
    for number in range(rounds):
        for side in (ours, theirs):
            print(f"  round {number + 1}/{rounds}: {side.name}", file=sys.stderr, flush=True)
            taken[side.name].append(run(side, timeout=timeout, wrap=wrap))
    return [
        Result(
            figure,
            *(
                Sample(tuple(values[key] * figure.scale for values in taken[side.name]))
                for side, key in ((ours, figure.key), (theirs, figure.against or figure.key))
            ),
        )
        for figure in figures
    ]


def show(sample: Sample) -> str:
    """The median with the minimum and maximum: `12.3 (11.9-13.0)`."""
    return f"{_number(sample.median)} ({_number(min(sample.values))}-{_number(max(sample.values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(results: Sequence[Result], ours: str, theirs: str) -> str:
    """The results as a Markdown table."""
    lines = [f"| measured | {ours} | {theirs} | ratio | goal | |", "|---|---|---|---|---|---|"]
    for result in results:
        figure = result.figure
        goal = verdict = ""
        if figure.goal is not None:
            goal = f"{'at least' if figure.more_is_better else 'at most'} {figure.goal:g}"
            verdict = "met" if result.met else "**missed**"
        lines.append(
            f"| {figure.title}, {figure.unit} | {show(result.ours)} | {show(result.theirs)} "
            f"| {result.ratio:.2f} | {goal} | {verdict} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """The machine of the measurements: processor, cores, kernel, Python."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def version_of(python: Path, package: str) -> str:
    """`NAME VERSION` of a package in a virtual environment; RuntimeError if it is missing."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{package} is not in {python.parent.parent.name}: run `make setup`")
    return f"{package} {done.stdout.strip()}"


def coturn_version() -> str:
    """`coturn VERSION`."""
    done = subprocess.run(["turnserver", "--version"], capture_output=True, text=True, check=False)
    return f"coturn {done.stdout.strip().splitlines()[-1]}"


def commit() -> str:
    """The measured commit, with a `+` if files differ from it."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (head.stdout.strip() or "unknown") + ("+" if dirty.stdout.strip() else "")


def as_json(results: Mapping[str, Sequence[Result]]) -> str:
    """All results with every round's value, for a program to read."""
    return json.dumps(
        {
            title: [
                {
                    "measured": result.figure.title,
                    "unit": result.figure.unit,
                    "ours": result.ours.values,
                    "theirs": result.theirs.values,
                    "ratio": result.ratio,
                    "goal": result.figure.goal,
                    "met": result.met,
                }
                for result in group
            ]
            for title, group in results.items()
        },
        indent=1,
    )
