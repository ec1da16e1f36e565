"""The NAT table of the virtual network, compared with the prediction of `nat.rules`.

Each cell is a run of two sessions in virtual time (`lab/table`). It agrees with the prediction if three things hold:
the agents connected exactly if predicted, the selected candidate types are among the predicted ones, and the run
violated no invariant.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polynya.core.trace import TraceEvent, Tracer
from polynya.lab.invariants import unpaced
from polynya.lab.table import Row, cell
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.nat.rules import Expectation, expect


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run, compared with the prediction."""

    row: Row
    differs: str
    """How the run differs from the prediction; empty if it does not."""
    implied: tuple[str, ...]
    """The candidate types, local before remote, that the rules predict for the first side."""

    def as_dict(self) -> dict[str, Any]:
        """Return a document for JSON."""
        return {**self.row.as_dict(), "implied_pairs": list(self.implied), "differs": self.differs or None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All runs. `seconds` is the real time that they took."""

    classes: tuple[str, ...]
    cells: tuple[Cell, ...]
    seconds: float
    seed: int

    @property
    def ok(self) -> bool:
        return not any(cell.differs for cell in self.cells)

    @property
    def connected(self) -> int:
        return sum(cell.row.connected for cell in self.cells)

    @property
    def differing(self) -> tuple[str, ...]:
        """The runs that differ from the prediction, as sentences."""
        return tuple(f"{each.row.first} with {each.row.second}: {each.differs}" for each in self.cells if each.differs)

    def as_dict(self) -> dict[str, Any]:
        """Return a document for JSON."""
        return {
            "classes": list(self.classes),
            "runs": len(self.cells),
            "connected": self.connected,
            "as_the_rules_imply": self.ok,
            "differing": list(self.differing),
            "seconds": self.seconds,
            "seed": self.seed,
            "cells": [cell.as_dict() for cell in self.cells],
        }


Run = Callable[..., Row]


def run_table(on_cell: Callable[[Cell], None] = lambda _: None, *, seed: int = 0, run: Run = cell) -> Table:
    """Run all 81 cells with random ports and without a relay. `on_cell` is called with each finished cell."""
    began = time.perf_counter()
    classes = tuple(every_class(NatConfig(ports=PortAssignment.RANDOM)))
    cells = []
    for first in classes:
        for second in classes:
            events: list[TraceEvent] = []
            row = run(first, second, seed=seed, trace=Tracer(events.append))
            done = compare(row, expect(first, second), unpaced(events))
            cells.append(done)
            on_cell(done)
    return Table(
        classes=tuple(config.label for config in classes),
        cells=tuple(cells),
        seconds=time.perf_counter() - began,
        seed=seed,
    )


def compare(row: Row, expectation: Expectation, faults: list[str]) -> Cell:
    """Compare a run with the prediction; `faults` are violations found elsewhere."""
    implied = [
        tuple(f"{pair.local} -> {pair.remote}" for pair in expectation.pairs if pair.side == side) for side in (0, 1)
    ]
    differs = [*row.faults, *faults]
    if expectation.sure and row.connected != expectation.always:
        differs.append(f"{_word(row.connected)}, the rules imply {_word(expectation.always)}")
    if row.connected and not row.data:
        differs.append("data did not arrive in both directions")
    for pair, works in ((row.first_pair, implied[0]), (row.second_pair, implied[1])):
        if row.connected and pair not in works:
            differs.append(f"connected by {pair}, which the rules do not predict")
    return Cell(row=row, differs="; ".join(differs), implied=implied[0])


def _word(connected: bool) -> str:
    return "connected" if connected else "not connected"
