"""All measurements, side by side with aioice and coturn; writes docs/benchmarks.md.

    make bench                              everything, five rounds each
    .venv/bin/python -m bench.run --rounds 3 --only connect memory --json -
    make bench ARGS="--against HEAD~3 --rounds 9"    this checkout against an earlier commit of it, in turns

As root it measures inside a network namespace with one interface, so that the networks of this machine do not affect
the results. A missed goal is reported with a profile of our side.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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
    coturn_version,
    machine,
    table,
    version_of,
)
from tests.real.netns import alone

REPORT = ROOT / "docs" / "benchmarks.md"
SHOWN_OF_PROFILE = 15


@dataclass(frozen=True, slots=True)
class Measurement:
    """A script that both interpreters run, and the figures in its output."""

    title: str
    about: str
    script: str
    ours: Sequence[str]
    theirs: Sequence[str]
    figures: Sequence[Figure]
    timeout: float = 180
    rounds: int | None = None
    """The number of rounds, if a round takes long."""
    allocations: bool = False
    """Whether the script has `--allocations`, which lists its memory; otherwise its time is profiled."""
    server: bool = False
    """Whether a server is measured: then the other side is coturn, and `--profile` of the script profiles ours."""


MEASUREMENTS: dict[str, Measurement] = {
    "codec": Measurement(
        title="Reading, verifying and building connectivity checks",
        about="The workload is 1,000 different complete checks (user name, priority, role, use-candidate, "
        "integrity, fingerprint). Every attribute is converted to its type. The result is messages per "
        "second of CPU time: the best of 25 passes in each round.",
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
        about="Datagrams of 100 bytes arrive in asyncio's own loop. The result is the CPU time of the receiving "
        "process, including the kernel. *Burst*: the socket's buffer is filled, then read until it is empty. "
        "*Paced*: another process sends 5,000 datagrams a second, so most wake-ups find one datagram. Most "
        "of the cost is then the wake-up.",
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
        about="Two agents in one process connect over host candidates of IPv4 and IPv6, without a server. The "
        "result is the median of 20 connections in each round. *In a row*: each connection starts when the "
        "previous one is ready. Each side needs a transaction, and a process starts one every 5 ms (RFC "
        "8445, section 14.2), so a connection waits for the previous one. *Alone*: after a pause.",
        script="bench/connect.py",
        ours=["--library", "polynya", "--measure", "connect"],
        theirs=["--library", "aioice", "--measure", "connect"],
        figures=[
            Figure("seconds", "in a row", "ms", 0.5, more_is_better=False, scale=1e3),
            Figure("alone", "alone", "ms", 0.5, more_is_better=False, scale=1e3),
        ],
    ),
    "memory": Measurement(
        title="Memory of idle connected agents",
        about="1,000 agents are connected in pairs in one process. The result is the growth of the process's "
        "anonymous memory for each agent, 7 s after the last connection.",
        script="bench/connect.py",
        ours=["--library", "polynya", "--measure", "memory"],
        theirs=["--library", "aioice", "--measure", "memory"],
        figures=[Figure("bytes", "memory", "KiB", 0.5, more_is_better=False, scale=1 / 1024)],
        rounds=3,
        allocations=True,
    ),
}
if shutil.which("turnserver") and shutil.which("taskset"):
    MEASUREMENTS |= {
        "relay": Measurement(
            title="A client's datagram through a TURN channel",
            about="Datagrams of 100 bytes go to a peer and back through a channel of coturn, ten at the same time. "
            "The result is the CPU time of the client's process, in asyncio's own loop.",
            script="bench/relay_client.py",
            ours=["--library", "polynya"],
            theirs=["--library", "aioice"],
            figures=[Figure("relayed", "there and back", "us", 1 / 3, more_is_better=False)],
        ),
        "relayed": Measurement(
            title="CPU time of a relayed datagram on a busy TURN server",
            about="100 flows send datagrams of 120 bytes through channels in both directions, as fast as possible. "
            "Each client has a host of its own. Each server runs with its default configuration, users, a "
            "realm and one allowed peer network. It is pinned to one processor and the load to another. The "
            "result is the CPU time, user and system, of all its processes for each datagram that arrived. "
            "*Busy* is the used share of its processor.",
            script="bench/relay_server.py",
            ours=["--server", "polynya", "--measure", "saturated"],
            theirs=["--server", "coturn", "--measure", "saturated"],
            figures=[
                Figure("cpu", "CPU of a datagram", "us", 1.6, more_is_better=False),
                Figure("cpu_worker", "the same with `workers = 1`", "us", more_is_better=False, against="cpu"),
                Figure("rate", "relayed at that", "thousand/s", scale=1e-3),
                Figure("busy", "busy", "%", scale=100),
                Figure("lost", "lost", "datagrams", more_is_better=False),
            ],
            server=True,
        ),
        "gathered": Measurement(
            title="CPU time of a relayed datagram on a TURN server that is mostly idle",
            about="1,000 flows send datagrams of 120 bytes: 20,000 a second in both directions together, evenly "
            "spaced. Most of the cost is then the wake-up. *Gathered*: with `gather = 0.001`, which is off "
            "by default. The latency is from one end to the other.",
            script="bench/relay_server.py",
            ours=["--server", "polynya", "--measure", "paced"],
            theirs=["--server", "coturn", "--measure", "paced"],
            figures=[
                Figure("cpu", "CPU of a datagram, gathered", "us", 1.0, more_is_better=False),
                Figure("cpu_at_once", "CPU of a datagram, at once", "us", more_is_better=False, against="cpu"),
                Figure("latency", "median latency, gathered", "us", more_is_better=False),
                Figure("latency_at_once", "median latency, at once", "us", more_is_better=False, against="latency"),
                Figure("lost", "lost", "datagrams", more_is_better=False),
            ],
            server=True,
        ),
        "allocated": Measurement(
            title="Allocations created and freed",
            about="Each cycle has a new client with a host of its own. Its first request is refused because it has "
            "no credentials; then it creates and frees an allocation. The result is cycles per second of CPU "
            "time of the server on one processor.",
            script="bench/relay_server.py",
            ours=["--server", "polynya", "--measure", "cycles"],
            theirs=["--server", "coturn", "--measure", "cycles"],
            figures=[
                Figure("cycles", "200 clients at a time", "thousand/s", 1.0, scale=1e-3),
                Figure("busy", "busy at that", "%", scale=100),
                Figure("cycles_alone", "one client after the other", "thousand/s", scale=1e-3),
            ],
            server=True,
        ),
        "idle": Measurement(
            title="Memory of an idle allocation",
            about="3,000 clients have one allocation each. The result is the growth of the anonymous memory of the "
            "server's processes for each allocation. The first 500 are not counted, because they include "
            "memory that the server needs anyway.",
            script="bench/relay_server.py",
            ours=["--server", "polynya", "--measure", "memory"],
            theirs=["--server", "coturn", "--measure", "memory"],
            figures=[Figure("bytes", "memory", "KiB", 0.5, more_is_better=False, scale=1 / 1024)],
            rounds=3,
            server=True,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds for each side")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--output", type=Path, default=REPORT, help="file for the report, in Markdown")
    parser.add_argument("--against", metavar="REV", help="compare with this commit and print; no report is written")
    parser.add_argument("--json", type=Path, help="file for every value of every round; - is standard output")
    arguments = parser.parse_args()
    if arguments.against:
        compare_with(arguments.against, arguments.only, arguments.rounds)
        return

    versions = {"polynya": version_of(OURS, "polynya"), "aioice": version_of(AIOICE, "aioice")}
    if any(MEASUREMENTS[name].server for name in arguments.only):
        versions["coturn"] = coturn_version()
    against = " and ".join(each for name, each in versions.items() if name != "polynya")
    print(f"{versions['polynya']} against {against} on {machine()}", file=sys.stderr)
    results: dict[str, list[Result]] = {}
    profiles: dict[str, str] = {}
    with ExitStack() as stack:
        wrap, where = _place(stack)
        for name in arguments.only:
            measurement = MEASUREMENTS[name]
            print(measurement.title, file=sys.stderr)
            peer, interpreter = ("coturn", OURS) if measurement.server else ("aioice", AIOICE)
            results[name] = compare(
                Side(versions["polynya"], [OURS, measurement.script, *measurement.ours]),
                Side(versions[peer], [interpreter, measurement.script, *measurement.theirs]),
                measurement.figures,
                rounds=min(arguments.rounds, measurement.rounds or arguments.rounds),
                timeout=measurement.timeout,
                wrap=wrap,
            )
            print(table(results[name], "polynya", peer), file=sys.stderr)
            if not all(result.met for result in results[name]):
                profiles[name] = profile(measurement)

    command = shlex.join(["python", "-m", "bench.run", *sys.argv[1:]])
    arguments.output.write_text(report(results, profiles, versions, where, command), encoding="utf-8")
    if arguments.json:
        text = as_json(results)
        print(text) if str(arguments.json) == "-" else arguments.json.write_text(text, encoding="utf-8")
    missed = [f"{name}: {result.figure.title}" for name, group in results.items() for result in group if not result.met]
    print(f"{arguments.output} written; missed: {', '.join(missed) or 'nothing'}", file=sys.stderr)


SLOWER: Final = 1.03
"""The ratio to an earlier commit from which on a figure counts as worse."""


def compare_with(revision: str, names: Sequence[str], rounds: int) -> None:
    """Print each measurement of this checkout beside the same of an earlier commit, run in turns."""
    with ExitStack() as stack:
        wrap, where = _place(stack)
        then = stack.enter_context(checkout(revision))
        print(f"{commit()} against {revision} on {machine()}, {where}, {rounds} rounds", flush=True)
        for name in names:
            measurement = MEASUREMENTS[name]
            command = [OURS, measurement.script, *measurement.ours]
            results = compare(
                Side("now", command),
                Side(revision, command, then),
                [
                    replace(figure, against="", goal=1 / SLOWER if figure.more_is_better else SLOWER)
                    for figure in measurement.figures
                ],
                rounds=rounds,
                timeout=measurement.timeout,
                wrap=wrap,
            )
            print(f"\n{measurement.title}\n\n{table(results, 'now', revision)}", flush=True)


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A checkout of an earlier commit, removed at the end."""
    folder = ROOT / ".cache" / "bench-against"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--force", "--detach", str(folder), revision], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _place(stack: ExitStack) -> tuple[Wrap, str]:
    """The place of the workloads: as root a namespace with one interface, otherwise this host."""
    if os.geteuid() != 0:
        return list, "on this host's own interfaces"
    here = stack.enter_context(alone(["10.77.0.1/24", "fd77::1/64"]))
    return lambda command: here.command(*command), "in a network namespace with one interface, one IPv4 and one IPv6"


def profile(measurement: Measurement) -> str:
    """A profile of our side from another run: its time by cProfile, or its memory by tracemalloc."""
    if measurement.allocations or measurement.server:
        more = ["--profile"] if measurement.server else ["--count", "100", "--allocations"]
        done = subprocess.run(
            [OURS, measurement.script, *measurement.ours, *more],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=measurement.timeout,
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
        "`make bench` writes this page; do not edit it. The two sides run in turns, each in a process of its "
        "own. Each value is the median over the rounds, with the minimum and the maximum. Results vary by 10 "
        "to 20 % from run to run, so compare the ratios."
    )
    facts = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}",
        f"{machine()}, {where}",
        f"{versions['polynya']} against {' and '.join(each for name, each in versions.items() if name != 'polynya')}",
        f"`{command}`",
    ]
    parts = ["# Benchmarks", how, "\n".join(f"- {fact}" for fact in facts)]
    for name, group in results.items():
        measurement = MEASUREMENTS[name]
        parts += [
            f"## {measurement.title}",
            measurement.about,
            table(group, versions["polynya"], versions["coturn" if measurement.server else "aioice"]),
        ]
        if name in profiles:
            parts += [f"The goal was missed. The profile of our side:\n\n```text\n{profiles[name]}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
