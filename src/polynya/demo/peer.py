"""The process of one peer: `python -m polynya.demo.peer`, which reads its task from its parent (`records.py`).

It joins the room, gathers on loopback, connects to the other peer, exchanges the messages and writes its outcome. It
keeps the connection open for the other side until its standard input ends. If the input ends early, because the parent
has exited, the peer exits, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable

from polynya.aio import clock
from polynya.aio.agent import Agent
from polynya.aio.connection import Connection
from polynya.aio.meeting import Meeting
from polynya.core.addresses import scope
from polynya.core.errors import DecodeError, PolynyaError
from polynya.core.instants import Instant
from polynya.core.machine import Interface, InterfaceAddress
from polynya.core.packets import IpPacket
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice.pairs import PairView

from .dialogue import Dialogue
from .records import Outcome, PacketRecord, PairRecord, Progress, Record, Task, TraceRecord, decode_task, encode

STDIN, STDOUT = 0, 1
INTERVAL = 0.01
"""Seconds between two messages."""

Emit = Callable[[Record], None]


async def take_part(task: Task, emit: Emit, leave: asyncio.Event) -> bool:
    """Carry out the task, then wait for `leave`. Return whether the task succeeded."""
    dialogue = Dialogue(name=task.name, other=task.other, room=task.room, messages=task.messages)

    def on_event(event: TraceEvent) -> None:
        emit(TraceRecord.of(event))

    def capture(at: Instant, packet: IpPacket) -> None:
        emit(PacketRecord.of(at, packet))

    meeting = Meeting(
        task.url,
        task.room,
        loopback=True,
        interfaces=_is_loopback,
        addresses=_is_loopback_address,
        families=tuple(task.families),
        trace=Tracer(on_event, task.name),
        capture=capture,
    )
    error = ""
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(task.timeout) as limit:
                await stack.enter_async_context(meeting)
                connection = await meeting.connect(task.timeout)
                await _talk(connection, dialogue, emit)
                await connection.agent.completed()
        except TimeoutError:
            if not limit.expired():
                raise
            error = _unfinished(task, dialogue)
        except PolynyaError as failure:
            error = str(failure)
        emit(_outcome(meeting, dialogue, error))
        await leave.wait()
    return not error


async def _talk(connection: Connection, dialogue: Dialogue, emit: Emit) -> None:
    """Send and receive all messages concurrently."""

    async def send() -> None:
        while not dialogue.all_sent:
            now = clock.now()
            if connection.send(dialogue.message(now=now)):  # a message that the system refused is sent again
                dialogue.count_sent(now=now)
                emit(Progress(dialogue.sent, dialogue.received))
            await asyncio.sleep(INTERVAL)

    async def receive() -> None:
        while not dialogue.all_received:
            dialogue.take(await connection.recv(), now=clock.now())
            emit(Progress(dialogue.sent, dialogue.received))

    sending, receiving = asyncio.ensure_future(send()), asyncio.ensure_future(receive())
    try:
        await asyncio.gather(sending, receiving)
    finally:
        sending.cancel()
        receiving.cancel()


def _unfinished(task: Task, dialogue: Dialogue) -> str:
    return (
        f"not done within {task.timeout:g} s: sent {dialogue.sent} and received {dialogue.received} "
        f"of {task.messages} messages"
    )


def _outcome(meeting: Meeting, dialogue: Dialogue, error: str) -> Outcome:
    agent = meeting.agent
    if agent is None:
        return Outcome(error=error, messages=dialogue.counts(), why="the other peer did not appear in the room")
    why = agent.why()
    return Outcome(
        error=error,
        peer_id=meeting.signaling.peer_id,
        controlling=agent.is_controlling,
        messages=dialogue.counts(),
        candidates=why.data["ice"]["local_candidates"],
        remote_candidates=why.data["ice"]["remote_candidates"],
        pairs=_pairs(agent),
        servers=why.data["gathering"]["servers"],
        counters=agent.counters,
        why=str(why),
    )


def _pairs(agent: Agent) -> list[PairRecord]:
    return [_pair(view) for view in agent.pairs()]


def _pair(view: PairView) -> PairRecord:
    return PairRecord(
        id=view.id,
        local=view.local.label,
        remote=view.remote.label,
        local_address=str(view.local.address),
        remote_address=str(view.remote_address),
        state=view.state.value,
        writable=view.writable,
        readable=view.readable,
        valid=view.valid,
        nominated=view.nominated,
        selected=view.selected,
        priority=view.priority,
        rtt_ms=None if view.rtt is None else view.rtt * 1000,
        reason=view.reason,
    )


def _is_loopback(interface: Interface) -> bool:
    return interface.loopback


def _is_loopback_address(_interface: Interface, address: InterfaceAddress) -> bool:
    """Accept 127.0.0.1 and ::1 alone, so that the demo is the same on every host."""
    return scope(address.host.partition("%")[0]) == "loopback"


# ------------------------------------------------------------------------------------------------------- the process


def main() -> int:
    """Run one peer. The exit code is 0 if the task succeeded."""
    try:
        task = decode_task(_first_line())
    except DecodeError as error:
        sys.stderr.write(f"{error}\n`polynya demo` starts this program; do not run it by hand\n")
        return 2
    with contextlib.suppress(BrokenPipeError):
        return asyncio.run(_run(task))
    return 1


async def _run(task: Task) -> int:
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    finished = False

    def emit(record: Record) -> None:
        nonlocal finished
        finished = finished or isinstance(record, Outcome)
        _write(encode(record))

    def watch() -> None:
        while os.read(STDIN, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(leave.set)

    threading.Thread(target=watch, daemon=True, name="standard input").start()
    working = asyncio.ensure_future(take_part(task, emit, leave))
    leaving = asyncio.ensure_future(leave.wait())
    await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not finished:
        working.cancel()
    try:
        return 0 if await working else 1
    except asyncio.CancelledError:
        return 1


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(STDIN, 1)):
        line += byte
    return line


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(STDOUT, data) :]


if __name__ == "__main__":
    sys.exit(main())
