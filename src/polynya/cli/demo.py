"""`polynya demo`: two processes connect on this machine; then the NAT table."""

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
"""The version of the JSON document. It changes if a field is removed or changes its meaning."""


def demo(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    messages: Annotated[int, typer.Option(min=1, max=1000, help="Messages that each side sends.")] = 20,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0.1, max=600, help="Seconds to connect and exchange all messages.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the virtual network: the same seed gives the same runs.")] = 0,
    trace: TraceOption = None,
    pcap: PcapOption = None,
) -> None:
    """Connect two processes on this machine, then test every NAT class against every other.

    The server (STUN and signaling) and both processes use loopback only.
    No packet leaves this machine, and no privilege is needed. The NATs run in
    the virtual network. Each run is compared with the prediction of the
    mapping and filtering rules.

    Exit codes: 0 success, 1 a failed connection or a difference, 2 wrong use,
    130 interrupted.
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

    ignore: Callable[[object], None] = lambda _: None  # noqa: E731
    with show or contextlib.nullcontext():
        meeting = asyncio.run(meet(options, show.show_notice if show else ignore, recording))
    if show is not None:
        show.show_meeting(meeting)
        show.begin_table()
    with show or contextlib.nullcontext():
        table = run_table(show.show_cell if show else ignore, seed=seed)
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
    """Yield the screen, or None if standard output is for the JSON document."""
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
    """Yield a recording, and write it to the files at the end, even after an error."""
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
