"""All measurements, side by side with aioice; writes docs/benchmarks.md.

    make bench                              everything, five rounds each
    .venv/bin/python -m bench.run --rounds 3 --only connect memory --json -

As root it measures inside a network namespace with one interface of its own, so that figures do not depend on what else
this machine is connected to. What falls short is reported with a profile of our side.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.harness import (
    AIOICE,
    OURS,
    ROOT,
    Figure,
    Result,
    Side,
    Wrap,
    as_json,
    commit,
    compare,
    machine,
    table,
    version_of,
)
from tests.real.netns import alone

REPORT = ROOT / "docs" / "benchmarks.md"
SHOWN_OF_PROFILE = 15


@dataclass(frozen=True, slots=True)
class Measurement:
    """A script that both interpreters run, with what is read from it."""

    title: str
    about: str
    script: str
    ours: Sequence[str]
    theirs: Sequence[str]
    figures: Sequence[Figure]
    timeout: float = 180
    rounds: int | None = None
    """Rounds of its own where one takes long."""
    allocations: bool = False
    """Whether the script itself can say, with `--allocations`, where its memory goes; else its time is profiled."""


MEASUREMENTS: dict[str, Measurement] = {
    "codec": Measurement(
        title="Reading, verifying and building connectivity checks",
        about="1,000 distinct complete checks (user name, priority, role, use-candidate, integrity, fingerprint), "
        "every attribute converted to its type; messages a second of CPU time, the best of 25 passes of each round.",
        script="bench/stun_codec.py",
        ours=["polynya"],
        theirs=["aioice"],
        figures=[
            Figure("decode", "decoded", "thousand/s", 3.0, scale=1e-3),
            Figure("verify", "decoded and verified", "thousand/s", 1.6, scale=1e-3),
            Figure("build", "built and signed", "thousand/s", 2.5, scale=1e-3),
        ],
    ),
    "receive": Measurement(
        title="Receiving a datagram through a connected pair",
        about="100 bytes, asyncio's own loop; CPU time of the receiving process, kernel included. *Burst*: the "
        "socket's buffer is filled first, then read to its end. *Paced*: another process sends 5,000 a second, so "
        "that most wake-ups find one datagram and most of the cost is the wake-up itself.",
        script="bench/receive.py",
        ours=["--library", "polynya"],
        theirs=["--library", "aioice"],
        figures=[
            Figure("burst", "burst", "us", 0.25, more_is_better=False),
            Figure("paced", "paced", "us", 0.25, more_is_better=False),
        ],
    ),
    "connect": Measurement(
        title="From the start of gathering to a valid pair on both sides",
        about="Two agents in one process on one host, host candidates of IPv4 and IPv6, no server; the median of 20 "
        "connections in each round.",
        script="bench/connect.py",
        ours=["--library", "polynya", "--measure", "connect"],
        theirs=["--library", "aioice", "--measure", "connect"],
        figures=[Figure("seconds", "time", "ms", 0.5, more_is_better=False, scale=1e3)],
    ),
    "memory": Measurement(
        title="Memory of idle connected agents",
        about="1,000 agents connected in pairs in one process, 7 s after the last connected; growth of the process's "
        "anonymous memory for each agent.",
        script="bench/connect.py",
        ours=["--library", "polynya", "--measure", "memory"],
        theirs=["--library", "aioice", "--measure", "memory"],
        figures=[Figure("bytes", "memory", "KiB", 0.5, more_is_better=False, scale=1 / 1024)],
        rounds=3,
        allocations=True,
    ),
}
if shutil.which("turnserver"):
    MEASUREMENTS["relay"] = Measurement(
        title="A client's datagram through a TURN channel",
        about="100 bytes to a peer and back through coturn's channel, ten under way at once; CPU time of the client's "
        "process, asyncio's own loop.",
        script="bench/relay_client.py",
        ours=["--library", "polynya"],
        theirs=["--library", "aioice"],
        figures=[Figure("relayed", "there and back", "us", 1 / 3, more_is_better=False)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--output", type=Path, default=REPORT, help="the report, Markdown")
    parser.add_argument("--json", type=Path, help="every value of every round, - for standard output")
    arguments = parser.parse_args()

    versions = {"polynya": version_of(OURS, "polynya"), "aioice": version_of(AIOICE, "aioice")}
    print(f"{versions['polynya']} against {versions['aioice']} on {machine()}", file=sys.stderr)
    results: dict[str, list[Result]] = {}
    profiles: dict[str, str] = {}
    with ExitStack() as stack:
        wrap, where = _place(stack)
        for name in arguments.only:
            measurement = MEASUREMENTS[name]
            print(measurement.title, file=sys.stderr)
            results[name] = compare(
                Side(versions["polynya"], [OURS, measurement.script, *measurement.ours]),
                Side(versions["aioice"], [AIOICE, measurement.script, *measurement.theirs]),
                measurement.figures,
                rounds=min(arguments.rounds, measurement.rounds or arguments.rounds),
                timeout=measurement.timeout,
                wrap=wrap,
            )
            print(table(results[name], "polynya", "aioice"), file=sys.stderr)
            if not all(result.met for result in results[name]):
                profiles[name] = profile(measurement)

    command = shlex.join(["python", "-m", "bench.run", *sys.argv[1:]])
    arguments.output.write_text(report(results, profiles, versions, where, command), encoding="utf-8")
    if arguments.json:
        text = as_json(results)
        print(text) if str(arguments.json) == "-" else arguments.json.write_text(text, encoding="utf-8")
    missed = [f"{name}: {result.figure.title}" for name, group in results.items() for result in group if not result.met]
    print(f"{arguments.output} written; missed: {', '.join(missed) or 'nothing'}", file=sys.stderr)


def _place(stack: ExitStack) -> tuple[Wrap, str]:
    """Where the workloads run: a namespace with one interface as root, else this host as it is."""
    if os.geteuid() != 0:
        return list, "on this host's own interfaces"
    here = stack.enter_context(alone(["10.77.0.1/24", "fd77::1/64"]))
    return lambda command: here.command(*command), "in a network namespace with one interface, one IPv4 and one IPv6"


def profile(measurement: Measurement) -> str:
    """Where the time of our side goes, from one more run under cProfile; or its memory, from tracemalloc."""
    if measurement.allocations:
        command = [OURS, measurement.script, *measurement.ours, "--count", "100", "--allocations"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=measurement.timeout
        )
        return _without_folders(done.stdout.rpartition("{")[0])
    profiler, said, arguments = cProfile.Profile(), io.StringIO(), sys.argv
    sys.argv = [measurement.script, *measurement.ours]
    try:
        with redirect_stdout(said):
            profiler.runcall(runpy.run_path, str(ROOT / measurement.script), run_name="__main__")
    finally:
        sys.argv = arguments
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(SHOWN_OF_PROFILE)
    return _without_folders(text.getvalue())


def _without_folders(text: str) -> str:
    return text.replace(f"{ROOT}/", "").replace(sys.base_prefix, "").replace(sys.prefix, "").strip()


def report(
    results: dict[str, list[Result]], profiles: dict[str, str], versions: dict[str, str], where: str, command: str
) -> str:
    """The page of the documentation."""
    how = (
        "Written by `make bench`; do not edit. Each side runs in a process of its own, in turns with the other; shown "
        "is the median over the rounds with the least and the greatest. Machines vary by 10 to 20 % from run to run: "
        "look at ratios."
    )
    facts = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}",
        f"{machine()}, {where}",
        f"{versions['polynya']} against {versions['aioice']}",
        f"`{command}`",
    ]
    parts = ["# Benchmarks", how, "\n".join(f"- {fact}" for fact in facts)]
    for name, group in results.items():
        measurement = MEASUREMENTS[name]
        parts += [f"## {measurement.title}", measurement.about, table(group, versions["polynya"], versions["aioice"])]
        if name in profiles:
            parts += [f"Short of what was asked for. Where it goes:\n\n```text\n{profiles[name]}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
