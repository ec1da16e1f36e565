"""`polynya connect`: standard input to the other side's standard output, and back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polynya import Connection, ConnectionClosed

from . import common
from .common import (
    FamilyOption,
    InterfaceOption,
    LoopbackOption,
    PcapOption,
    PolicyOption,
    ServerOption,
    StunOption,
    TraceOption,
    say,
)

if TYPE_CHECKING:
    from polynya.aio.meeting import Meeting, Step

STDIN, STDOUT = 0, 1
WRITE_TIMEOUT = 5.0
"""Seconds that whoever reads our output gets for the rest of it."""


def connect(
    room: Annotated[str, typer.Argument(help="A name that both sides use; whoever knows it can enter.")],
    *,
    server: ServerOption = None,
    stun: StunOption = None,
    interface: InterfaceOption = None,
    family: FamilyOption = None,
    loopback: LoopbackOption = None,
    policy: PolicyOption = "all",
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0.1, help="Seconds for the other side to come and to connect."),
    ] = None,
    linger: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to wait for more once one side has sent all and the other is silent."),
    ] = 1.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    trace: TraceOption = None,
    pcap: PcapOption = None,
) -> None:
    """Connect with the other program in ROOM: what is read here is written there, and back.

    Each piece that is read is one datagram: pieces may be lost or change places, and nothing is encrypted. It ends when
    both sides have sent all, or when one has and the other is silent. Exit codes: 0 both sides ended in order, 1 no
    connection or one that broke, 2 wrong use, 130 interrupted.
    """
    if server is None:
        raise typer.BadParameter("give --server http://HOST:PORT or set POLYNYA_SERVER", param_hint="--server")
    try:
        from polynya.aio.meeting import Meeting  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("signaling", error)
    with common.errors(), common.tracing("connect", trace, pcap) as (tracer, capture):
        meeting = Meeting(
            server,
            room,
            servers=stun or [],
            loopback=loopback,
            tell=None if quiet else _tell,
            trace=tracer,
            capture=capture,
            families=common.families(family),
            interfaces=interface or None,
            policy=policy,
        )
        common.run(_connect(meeting, timeout, linger, quiet=quiet))


async def _connect(meeting: Meeting, timeout: float | None, linger: float, *, quiet: bool) -> int:
    from polynya import ConnectError  # noqa: PLC0415

    async with meeting:
        try:
            connection = await meeting.connect(timeout)
        except ConnectError as error:
            say(f"polynya: {error.message}")
            if meeting.agent is not None:
                say(str(meeting.agent.why()))
            return common.FAILED
        if not quiet:
            say("connected. What is sent is not encrypted: anybody on the path can read and change it")
        showing = asyncio.create_task(_show_path(connection)) if not quiet else None
        try:
            return await _exchange(connection, linger, quiet=quiet)
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)


async def _exchange(connection: Connection, linger: float, *, quiet: bool) -> int:
    from polynya.stream.chunks import ChunkStream  # noqa: PLC0415
    from polynya.stream.stdio import Writer, read_chunks  # noqa: PLC0415

    output = Writer(STDOUT)
    stream = ChunkStream(connection, output.write, linger=linger)
    try:
        outcome = await stream.run(read_chunks(STDIN, connection.max_datagram_size))
    except BrokenPipeError:
        return 0  # whoever read our output has enough
    finally:
        await output.aclose(WRITE_TIMEOUT)
    if not quiet:
        lost = f", {outcome.refused} were refused by the system" if outcome.refused else ""
        dropped = connection.datagrams_dropped
        late = f", {dropped} came faster than they were read" if dropped else ""
        say(f"{outcome.reason}: {outcome.chunks_sent} sent{lost}, {outcome.chunks_received} received{late}")
    return 0 if outcome.confirmed else common.FAILED


async def _show_path(connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        path = connection.path
        while True:
            rtt = f", {path.rtt * 1000:.1f} ms round trip" if path.rtt is not None else ""
            say(f"path: {path}{rtt}")
            path = await connection.path_changed()


def _tell(step: Step) -> None:
    """One line for each step."""
    from polynya.aio import meeting as m  # noqa: PLC0415
    from polynya.aio.signaling import RemoteCandidate  # noqa: PLC0415

    match step:
        case m.RoomEntered():
            servers = ", ".join(step.servers) or "none"
            waiting = "the other side is here" if step.peers else "waiting for the other side"
            say(f"in the room as {step.peer_id[:8]}; servers: {servers}; {waiting}")
        case m.PeerFound():
            say(f"found {step.peer[:8]}; this side is {'controlling' if step.controlling else 'controlled'}")
        case m.LocalCandidateSent(candidate=None):
            say("no more candidates of this side")
        case m.LocalCandidateSent(candidate=candidate):
            say(f"this side: {_place(candidate)}")
        case RemoteCandidate(candidate=None):
            say("no more candidates of the other side")
        case RemoteCandidate(candidate=candidate):
            say(f"other side: {_place(candidate)}")
        case m.PeerGone():
            say(f"{step.peer[:8]} left the room: {step.reason}")
        case m.SignalingLost():
            say(f"signaling is gone, the connection goes on without it: {step.reason}")
        case _:
            pass


def _place(candidate: Any) -> str:
    """A candidate for people; what the other side named is shown without control characters."""
    return ascii(candidate.label)[1:-1]
