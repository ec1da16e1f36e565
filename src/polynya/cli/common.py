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
from types import TracebackType
from typing import IO, Annotated, Any, Literal, NoReturn, cast

import typer

from polynya.aio import clock
from polynya.aio.interfaces import list_interfaces
from polynya.aio.packet_trace import Capture
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError, PolynyaError, UsageError
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import NO_TRACE, Sink, Tracer, TraceWriter
from polynya.stun.redaction import Redactor

from . import process

FAILED, WRONG, INTERRUPTED, TERMINATED = process.FAILED, process.WRONG, process.INTERRUPTED, process.TERMINATED

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
RedactOption = Annotated[
    bool,
    typer.Option("--redact", help="Replace addresses, names and users in the report, the trace and the capture."),
]


def say(text: str) -> None:
    """Print a line for people on standard error; standard output is for data."""
    with contextlib.suppress(OSError):
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
        with process.interruptible():
            yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (ConfigurationError, DecodeError, UsageError) as error:
        say(f"polynya: {error}")
        raise typer.Exit(WRONG) from None
    except PolynyaError as error:
        say(f"polynya: {error}")
        raise typer.Exit(FAILED) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None  # the reader of standard output has closed it
    except OSError as error:
        raise typer.Exit(process.output_failed(error)) from None


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
    return tuple(dict.fromkeys(chosen)) if chosen else (6, 4)


def interfaces(chosen: list[str] | None) -> list[str] | None:
    """Return the option --interface; raises ConfigurationError for a name that no interface of this host has."""
    known = [interface.name for interface in list_interfaces()]
    for name in chosen or ():
        if name not in known:
            raise ConfigurationError(f"no interface is named {name}; up on this host: {', '.join(known) or 'none'}")
    return chosen or None


def addresses(texts: list[str], option: str) -> tuple[Address, ...]:
    """Parse the values of an option: ADDR:PORT, [ADDR]:PORT or localhost:PORT."""
    try:
        return tuple(Address.parse(text.replace("localhost:", "127.0.0.1:", 1)) for text in texts)
    except DecodeError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


class OutputFile:
    """A trace or capture file. An error of the disk ends the file, not the command, and is reported at the end.

    Raises ConfigurationError if the file cannot be opened.
    """

    def __init__(self, path: Path, mode: Literal["w", "wb"] = "w") -> None:
        self._error: OSError | None = None
        self.path = path
        try:
            self._file: IO[Any] = path.open(mode, encoding=None if "b" in mode else "utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"cannot write {path}: {reason}") from None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self._error = error
        return 0

    def __enter__(self) -> IO[Any]:
        return cast("IO[Any]", self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failed:
            self._error = self._error or failed
        if self._error is not None:
            say(f"polynya: {self.path} is incomplete: {self._error.strerror}")
            if kind is None or (isinstance(error, typer.Exit) and error.exit_code == 0):
                raise typer.Exit(FAILED) from None


@contextlib.contextmanager
def tracing(
    node: str, trace: Path | None, pcap: Path | None, redactor: Redactor | None = None
) -> Iterator[tuple[Tracer, Capture | None]]:
    """Open the trace and capture files. Yield a tracer and a capture that write to them."""
    with contextlib.ExitStack() as stack:
        tracer, capture = NO_TRACE, None
        if trace is not None:
            sink: Sink = TraceWriter(stack.enter_context(OutputFile(trace)))
            tracer = Tracer(sink if redactor is None else _redacting(sink, redactor), node)
        if pcap is not None:
            writer = PcapngWriter(stack.enter_context(OutputFile(pcap, "wb")), epoch=time.time_ns() - clock.now())
            capture = _capture(writer, redactor)
        yield tracer, capture


def _redacting(sink: Sink, redactor: Redactor) -> Sink:
    return lambda event: sink(redactor.event(event))


def _capture(writer: PcapngWriter, redactor: Redactor | None) -> Capture:
    def capture(at: Instant, packet: IpPacket) -> None:
        writer.write(at, "polynya", packet if redactor is None else redactor.packet(packet))

    return capture
