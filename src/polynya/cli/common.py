"""Shared by the commands: options, exit codes, trace and capture files, and one-line errors.

0    success
1    failure: no connection, or the server refused or disconnected
2    wrong use: an invalid option, an address in use, a missing package
130  interrupted (SIGINT); 143 terminated (SIGTERM)
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from polynya.aio import clock
from polynya.aio.packet_trace import Capture
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError, PolynyaError
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import NO_TRACE, TraceEvent, Tracer, TraceWriter

FAILED, WRONG, INTERRUPTED, TERMINATED = 1, 2, 130, 143

ServerOption = Annotated[
    str | None,
    typer.Option("--server", "-s", envvar="POLYNYA_SERVER", metavar="URL", help="Signaling server, http://HOST:PORT."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="POLYNYA_TOKEN", metavar="TOKEN", help="Room token of the signaling server, if it needs one."
    ),
]
StunOption = Annotated[
    list[str] | None, typer.Option("--stun", metavar="URI", help="STUN server, stun:HOST[:PORT]; may be repeated.")
]
InterfaceOption = Annotated[
    list[str] | None,
    typer.Option("--interface", "-i", metavar="NAME", help="Use this interface only; may be repeated."),
]
FamilyOption = Annotated[
    list[int] | None, typer.Option("--family", "-f", min=4, max=6, metavar="4|6", help="Use this IP version only.")
]
LoopbackOption = Annotated[
    bool | None,
    typer.Option(
        "--loopback/--no-loopback", help="Use loopback addresses. Default: if the signaling server is on this host."
    ),
]
PolicyOption = Annotated[
    Literal["all", "no-host", "relay"],
    typer.Option(help="no-host: do not signal addresses of this host. relay: connect through TURN servers only."),
]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Write a trace: JSON lines, one for each event.")
]
PcapOption = Annotated[
    Path | None, typer.Option("--pcap", metavar="FILE", help="Write a packet capture for Wireshark.")
]


def say(text: str) -> None:
    """Print a line for people on standard error; standard output is for data."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def run(
    main: Coroutine[Any, Any, int], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> NoReturn:
    """Run a command and exit with its exit code."""
    with errors(), asyncio.Runner(loop_factory=loop_factory) as runner:
        code = runner.run(_terminable(main))
    raise typer.Exit(code)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Turn errors of Polynya into one line and an exit code, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (ConfigurationError, DecodeError) as error:
        say(f"polynya: {error}")
        raise typer.Exit(WRONG) from None
    except PolynyaError as error:
        say(f"polynya: {error}")
        raise typer.Exit(FAILED) from None


async def _terminable(main: Coroutine[Any, Any, int]) -> int:
    """Run a command that SIGTERM cancels, as SIGINT does. A command may install its own handlers."""
    task = asyncio.ensure_future(main)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if not terminated:
            raise
        return TERMINATED


def need(extra: str, error: ModuleNotFoundError) -> NoReturn:
    """Print the extra that a command needs, and exit."""
    say(f"polynya: this command needs {error.name}; run: pip install 'polynya[{extra}]'")
    raise typer.Exit(WRONG)


def families(chosen: list[int] | None) -> tuple[int, ...]:
    if chosen and any(family not in (4, 6) for family in chosen):
        raise typer.BadParameter("a family must be 4 or 6", param_hint="--family")
    return tuple(chosen) if chosen else (6, 4)


def addresses(texts: list[str], option: str) -> tuple[Address, ...]:
    """Parse the values of an option: ADDR:PORT, [ADDR]:PORT or localhost:PORT."""
    try:
        return tuple(Address.parse(text.replace("localhost:", "127.0.0.1:", 1)) for text in texts)
    except DecodeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@contextlib.contextmanager
def tracing(node: str, trace: Path | None, pcap: Path | None) -> Iterator[tuple[Tracer, Capture | None]]:
    """Open the trace and capture files. Yield a tracer and a capture that write to them."""
    with contextlib.ExitStack() as stack:
        tracer, capture = NO_TRACE, None
        try:
            if trace is not None:
                tracer = Tracer(TraceWriter(stack.enter_context(trace.open("w", encoding="utf-8"))), node)
            if pcap is not None:
                capture = _capture(
                    PcapngWriter(stack.enter_context(pcap.open("wb")), epoch=time.time_ns() - clock.now())
                )
                tracer = tracer if tracer.enabled else Tracer(_discard, node)
        except OSError as error:
            raise ConfigurationError(f"cannot write {error.filename}: {error.strerror}") from error
        yield tracer, capture


def _capture(writer: PcapngWriter) -> Capture:
    def capture(at: Instant, packet: IpPacket) -> None:
        writer.write(at, "polynya", packet)

    return capture


def _discard(event: TraceEvent) -> None:
    """Discard an event: packets are captured only if a tracer has a sink."""
