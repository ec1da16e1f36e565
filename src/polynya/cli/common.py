"""What the commands share: options, exit codes, the trace and capture files, and errors in one line.

0    done
1    it did not work: no connection, the server refused or went away
2    it cannot work: a wrong option, an address that is taken, a missing package
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
    typer.Option(
        "--server", "-s", envvar="POLYNYA_SERVER", metavar="URL", help="The signaling server, http://HOST:PORT."
    ),
]
StunOption = Annotated[
    list[str] | None, typer.Option("--stun", metavar="URI", help="A STUN server, stun:HOST[:PORT]; may be repeated.")
]
InterfaceOption = Annotated[
    list[str] | None,
    typer.Option("--interface", "-i", metavar="NAME", help="Use only this interface; may be repeated."),
]
FamilyOption = Annotated[
    list[int] | None, typer.Option("--family", "-f", min=4, max=6, metavar="4|6", help="Use only this IP version.")
]
LoopbackOption = Annotated[
    bool | None,
    typer.Option(
        "--loopback/--no-loopback", help="Use loopback addresses. Left out: when the signaling server is on this host."
    ),
]
PolicyOption = Annotated[
    Literal["all", "no-host", "relay"],
    typer.Option(help="no-host: tell nobody the addresses of this host. relay: go by TURN servers only."),
]
TraceOption = Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Write what happens as JSON lines.")]
PcapOption = Annotated[Path | None, typer.Option("--pcap", metavar="FILE", help="Write the packets, for Wireshark.")]


def say(text: str) -> None:
    """A line for people: to standard error, so that standard output holds nothing but data."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def run(
    main: Coroutine[Any, Any, int], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> NoReturn:
    """Run a command to its end and exit with its code."""
    with errors(), asyncio.Runner(loop_factory=loop_factory) as runner:
        code = runner.run(_terminable(main))
    raise typer.Exit(code)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Errors that are ours are one line and an exit code, not a traceback."""
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
    """SIGTERM cancels, as SIGINT does; a command that handles both itself is done before."""
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
    """Say which extra a command needs."""
    say(f"polynya: this command needs {error.name}: pip install 'polynya[{extra}]'")
    raise typer.Exit(WRONG)


def families(chosen: list[int] | None) -> tuple[int, ...]:
    if chosen and any(family not in (4, 6) for family in chosen):
        raise typer.BadParameter("a family is 4 or 6", param_hint="--family")
    return tuple(chosen) if chosen else (6, 4)


def addresses(texts: list[str], option: str) -> tuple[Address, ...]:
    """ADDR:PORT, [ADDR]:PORT or localhost:PORT, as an option gives them."""
    try:
        return tuple(Address.parse(text.replace("localhost:", "127.0.0.1:", 1)) for text in texts)
    except DecodeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@contextlib.contextmanager
def tracing(node: str, trace: Path | None, pcap: Path | None) -> Iterator[tuple[Tracer, Capture | None]]:
    """The tracer and the capture that write to the files that were asked for."""
    with contextlib.ExitStack() as stack:
        tracer, capture = NO_TRACE, None
        try:
            if trace is not None:
                tracer = Tracer(TraceWriter(stack.enter_context(trace.open("w", encoding="utf-8"))), node)
            if pcap is not None:
                capture = _capture(
                    PcapngWriter(stack.enter_context(pcap.open("wb")), epoch=time.time_ns() - clock.now())
                )
                tracer = tracer if tracer.enabled else Tracer(_nowhere, node)
        except OSError as error:
            raise ConfigurationError(f"cannot write {error.filename}: {error.strerror}") from error
        yield tracer, capture


def _capture(writer: PcapngWriter) -> Capture:
    def capture(at: Instant, packet: IpPacket) -> None:
        writer.write(at, "polynya", packet)

    return capture


def _nowhere(event: TraceEvent) -> None:
    """Packets are captured only where something is traced."""
