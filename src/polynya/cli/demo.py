"""`polynya demo`: the main job, shown on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TextIO

import typer

from polynya import ConfigurationError, __version__
from polynya.aio import clock

from . import common
from .common import PcapOption, TraceOption

if TYPE_CHECKING:
    from polynya.demo.nats import Table
    from polynya.demo.recording import Recording
    from polynya.demo.result import MeetingResult

    from .demo_screen import Screen

FORMAT = 1
"""The version of the JSON document; it changes when a field changes its meaning or goes."""


def demo(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")
    ] = False,
    messages: Annotated[int, typer.Option(min=1, max=1000, help="Messages that each side sends.")] = 20,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0.1, max=600, help="Seconds for the two to meet and talk.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the virtual network: the same seed gives the same runs.")] = 0,
    trace: TraceOption = None,
    pcap: PcapOption = None,
) -> None:
    """Two processes find each other on this machine and talk; then every kind of NAT meets every other.

    The server (STUN and signaling) and both processes stay on loopback: nothing leaves this machine, and no privilege
    is needed. The NATs are those of the virtual network; each run is compared with what the rules of mapping and
    filtering imply. Exit codes: 0 all is well, 1 something did not connect or differs, 2 wrong use, 130 interrupted.
    """
    try:
        from polynya.demo.run import MeetingOptions  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("all", error)
    with common.errors(), _files(trace, pcap) as recording:
        options = MeetingOptions(messages=messages, timeout=timeout)
        with _shown(as_json) as show:
            began = time.perf_counter()
            meeting, table, faults = _run(options, recording, show, seed)
            seconds = time.perf_counter() - began
            if show is not None:
                show.show_verdict(faults, seconds)
    if as_json:
        print(json.dumps(_document(meeting, table, faults, seconds), indent=2))
    raise typer.Exit(common.FAILED if faults else 0)


def _run(
    options: Any, recording: Recording, show: Screen | None, seed: int
) -> tuple[MeetingResult, Table, tuple[str, ...]]:
    from polynya.demo.nats import run_table  # noqa: PLC0415
    from polynya.demo.run import meet  # noqa: PLC0415

    nothing: Callable[[object], None] = lambda _: None  # noqa: E731
    with show or contextlib.nullcontext():
        meeting = asyncio.run(meet(options, show.tell if show else nothing, recording))
    if show is not None:
        show.show_meeting(meeting)
        show.begin_table()
    with show or contextlib.nullcontext():
        table = run_table(show.tell_cell if show else nothing, seed=seed)
    if show is not None:
        show.show_table(table)
    return meeting, table, (*meeting.faults, *table.differing)


def _document(meeting: MeetingResult, table: Table, faults: tuple[str, ...], seconds: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "polynya": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "ok": not faults,
        "faults": list(faults),
        "seconds": seconds,
        "meeting": meeting.as_dict(),
        "table": table.as_dict(),
    }


@contextlib.contextmanager
def _shown(as_json: bool) -> Iterator[Screen | None]:
    """The screen, unless standard output is for the document."""
    if as_json:
        yield None
        return
    try:
        from rich.console import Console  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("cli", error)
    from .demo_screen import Screen  # noqa: PLC0415

    yield Screen(Console(highlight=False, soft_wrap=False))


@contextlib.contextmanager
def _files(trace: Path | None, pcap: Path | None) -> Iterator[Recording]:
    """A recording that is written to the files at the end, whatever the end is."""
    from polynya.demo.recording import Recording  # noqa: PLC0415

    recording, epoch = Recording(), time.time_ns() - clock.now()
    with contextlib.ExitStack() as stack:
        trace_file: TextIO | None = None
        pcap_file: BinaryIO | None = None
        try:
            if trace is not None:
                trace_file = stack.enter_context(trace.open("w", encoding="utf-8"))
            if pcap is not None:
                pcap_file = stack.enter_context(pcap.open("wb"))
        except OSError as error:
            raise ConfigurationError(f"cannot write {error.filename}: {error.strerror}") from error
        try:
            yield recording
        finally:
            if trace_file is not None:
                recording.write_trace(trace_file)
            if pcap_file is not None:
                recording.write_pcapng(pcap_file, epoch=epoch)
