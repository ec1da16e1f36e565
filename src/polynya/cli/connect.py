"""`polynya connect`: standard input to the other side's standard output, and back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polynya import Connection, ConnectionClosed, Redactor

from . import common
from .common import (
    FamilyOption,
    InterfaceOption,
    LoopbackOption,
    PcapOption,
    PolicyOption,
    RedactOption,
    ServerOption,
    StunOption,
    TokenOption,
    TraceOption,
    say,
)

if TYPE_CHECKING:
    from polynya.aio.meeting import Meeting, MeetingStep

STDIN, STDOUT = 0, 1
WRITE_TIMEOUT = 1.0
"""Seconds to wait for the reader of standard output after an interrupt or an error."""
INCOMPLETE = 3
"""Exit code if pieces are missing."""


def connect(
    room: Annotated[str, typer.Argument(help="A name that both sides use. Any program that knows it can join.")],
    *,
    server: ServerOption = None,
    token: TokenOption = None,
    stun: StunOption = None,
    interface: InterfaceOption = None,
    family: FamilyOption = None,
    loopback: LoopbackOption = None,
    policy: PolicyOption = "all",
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0.1, help="Seconds for the other side to join and connect."),
    ] = None,
    linger: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds of silence after which to end, once one side has sent everything."),
    ] = 1.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the candidates of both sides, too.")] = False,
    trace: TraceOption = None,
    pcap: PcapOption = None,
    redact: RedactOption = False,
) -> None:
    """Connect standard input and output to those of the other program in ROOM.

    Each chunk of input becomes one datagram. Datagrams may be lost or
    reordered, and they are not encrypted. The command ends when both sides have
    sent everything, or when one side has and the other is silent.

    Each side counts what it sends: lost pieces are reported at the end.

    Exit codes: 0 both sides ended normally and nothing is missing, 1 no
    connection or a broken one, 2 wrong use, 3 pieces of the other side are
    missing, 130 interrupted.
    """
    if server is None:
        raise typer.BadParameter("give --server http://HOST:PORT or set POLYNYA_SERVER", param_hint="--server")
    try:
        from polynya.aio.meeting import Meeting  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("signaling", error)
    redactor = Redactor() if redact else None
    with common.errors(), common.tracing("connect", trace, pcap, redactor) as (tracer, capture):
        steps = _Steps(verbose=verbose)
        meeting = Meeting(
            server,
            room,
            servers=stun or [],
            token=token,
            loopback=loopback,
            on_step=None if quiet else steps.show,
            trace=tracer,
            capture=capture,
            families=common.families(family),
            interfaces=common.interfaces(interface),
            policy=policy,
        )
        common.run(_connect(meeting, timeout, linger, steps, quiet=quiet, redactor=redactor))


async def _connect(
    meeting: Meeting,
    timeout: float | None,
    linger: float,
    steps: _Steps,
    *,
    quiet: bool,
    redactor: Redactor | None,
) -> int:
    from polynya import ConnectError  # noqa: PLC0415

    async with meeting:
        try:
            connection = await meeting.connect(timeout)
        except ConnectError as error:
            say(f"polynya: {error.message}")
            if meeting.agent is not None:
                if meeting.signaling.no_relay:
                    say(f"no relay: {ascii(meeting.signaling.no_relay)[1:-1]}")
                report = meeting.agent.why()
                say(str(report if redactor is None else report.redacted(redactor)))
            return common.FAILED
        steps.connected = True
        if not quiet:
            say("connected; data is not encrypted: anyone on the path can read and change it")
        showing = asyncio.create_task(_show_path(connection, verbose=steps.verbose)) if not quiet else None
        try:
            return await _exchange(connection, linger, quiet=quiet)
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)


async def _exchange(connection: Connection, linger: float, *, quiet: bool) -> int:
    from polynya.stream.chunks import HEADER, ChunkStream  # noqa: PLC0415
    from polynya.stream.stdio import Writer, read_chunks  # noqa: PLC0415

    output = Writer(STDOUT)
    stream = ChunkStream(connection, output.write, linger=linger)
    patience: float | None = WRITE_TIMEOUT
    try:
        if not connection.ready:
            await connection.path_changed()
        outcome = await stream.run(read_chunks(STDIN, connection.max_datagram_size - HEADER))
        patience = None  # a slow reader gets everything
    except BrokenPipeError:
        return 0  # the reader of standard output has closed it
    except OSError as error:
        say(f"polynya: cannot read standard input or write standard output: {error.strerror or error}")
        return common.FAILED
    finally:
        await output.aclose(patience)
    if output.broken is not None and not isinstance(output.broken, BrokenPipeError):
        say(f"polynya: cannot write standard output: {output.broken.strerror}")
        return common.FAILED
    if not quiet:
        refused = f", {outcome.refused} refused by the system" if outcome.refused else ""
        say(f"{outcome.reason}: {outcome.chunks_sent} sent{refused}, {outcome.chunks_received} received")
    if outcome.chunks_missing:
        sent = outcome.chunks_missing + outcome.chunks_received
        dropped = connection.datagrams_dropped
        late = f"; {dropped} arrived while the receive queue was full" if dropped else ""
        missing = f"{outcome.chunks_missing} of {sent} pieces, {outcome.bytes_missing} bytes"
        say(f"polynya: {missing} of the other side are missing{late}")
        return INCOMPLETE
    if not outcome.confirmed and quiet:
        say(f"polynya: {outcome.reason}")
    return 0 if outcome.confirmed else common.FAILED


async def _show_path(connection: Connection, *, verbose: bool) -> None:
    """Print the path and each change of it; with `verbose` also the nomination of the same pair."""
    shown = None
    with contextlib.suppress(ConnectionClosed):
        path = connection.path if connection.ready else await connection.path_changed()
        while True:
            ends = path.local, path.remote
            if verbose or ends != shown:
                rtt = f", {path.rtt * 1000:.1f} ms round trip" if path.rtt is not None else ""
                say(f"path: {path}{rtt}")
            shown = ends
            path = await connection.path_changed()


class _Steps:
    """Prints the steps of a meeting, one line each: who, and what changes. With `verbose` the candidates, too."""

    def __init__(self, *, verbose: bool) -> None:
        self.verbose = verbose
        self.connected = False

    def show(self, step: MeetingStep) -> None:
        """Print a step."""
        from polynya.aio import meeting as m  # noqa: PLC0415

        match step:
            case m.RoomEntered():
                servers = ", ".join(step.servers) or "none"
                waiting = "the other side is here" if step.peers else "waiting for the other side"
                if step.no_relay:
                    servers += f" (no relay: {ascii(step.no_relay)[1:-1]})"
                say(f"joined the room as {step.peer_id[:8]}; servers: {servers}; {waiting}")
            case m.PeerFound():
                say(f"found {step.peer[:8]}; this side is {'controlling' if step.controlling else 'controlled'}")
            case m.SignalingLost():
                say(f"the signaling server is lost, the connection continues without it: {step.reason}")
            case m.PeerGone() if self.verbose or not self.connected:
                say(f"{step.peer[:8]} left the room: {step.reason}")
            case _ if self.verbose:
                self._show_detail(step)
            case _:
                pass

    def _show_detail(self, step: MeetingStep) -> None:
        from polynya.aio import meeting as m  # noqa: PLC0415
        from polynya.aio.signaling import RemoteCandidate  # noqa: PLC0415

        match step:
            case m.LocalCandidateSent(candidate=None):
                say("this side: end of candidates")
            case m.LocalCandidateSent(candidate=candidate):
                say(f"this side: {_label(candidate)}")
            case RemoteCandidate(candidate=None):
                say("other side: end of candidates")
            case RemoteCandidate(candidate=candidate):
                say(f"other side: {_label(candidate)}")
            case _:
                pass


def _label(candidate: Any) -> str:
    """Return a candidate for display, with control characters from the other side escaped."""
    return ascii(candidate.label)[1:-1]
