"""One complete run of `polynya demo`, shared by the tests of its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polynya.core.trace import TraceEvent, read_trace

TIMEOUT = 60
COMMAND = [sys.executable, "-m", "polynya", "demo"]


def environment() -> dict[str, str]:
    """Return the environment without variables that change colors or width of the output."""
    left_out = {"COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    return {name: value for name, value in os.environ.items() if name not in left_out}


@dataclass(frozen=True)
class Run:
    """The output of one run."""

    done: subprocess.CompletedProcess[bytes]
    trace: Path
    pcap: Path

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.done.stdout)
        return document

    def events(self) -> list[TraceEvent]:
        with self.trace.open(encoding="utf-8") as file:
            return read_trace(file)


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, timeout=TIMEOUT, env=environment(), check=False
    )


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run `polynya demo --json --trace FILE --pcap FILE` once."""
    folder = tmp_path_factory.mktemp("demo")
    trace, pcap = folder / "trace.jsonl", folder / "packets.pcapng"
    return Run(run_demo("--json", "--trace", trace, "--pcap", pcap), trace, pcap)
