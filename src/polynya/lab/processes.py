"""Processes: a machine that runs on a host, with its sockets and streams.

After each call to a machine, the process drains its outputs, then its events, and re-arms its timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Input, Machine, Output

from .clock import Clock
from .links import NetworkInterface

R = TypeVar("R")
AnyMachine = Machine[Any, Any, Any]
"""A machine with the inputs and outputs of `core.machine`."""

_TICKS_AT_ONCE = 10_000


class LabError(AssertionError):
    """A machine broke its contract in a way that would block or mislead a real driver."""


class ProcessHost(Protocol):
    """A host as its processes see it."""

    name: str
    clock: Clock

    def carry_out(self, process: Process, output: Output) -> None:
        """Carry out an output of the process's machine."""

    def close(self, process: Process, flow: Flow, *, silently: bool = False) -> bool:
        """Close a socket, stream or listener of the process; False if it has none for `flow`."""


class StreamHandle(Protocol):
    """A stream or stream listener of a process."""

    def send(self, data: bytes) -> int:
        """Send bytes. Return the system's error number, or 0 if the bytes were accepted."""

    def close(self, *, silently: bool = False) -> None:
        """Close the stream or listener; `silently` sends no packet, as after a power failure."""


class Socket:
    """A UDP socket of a process."""

    __slots__ = ("flow", "interface", "local", "process")

    def __init__(self, process: Process, flow: Flow, local: Address, interface: NetworkInterface | None) -> None:
        self.process = process
        self.flow = flow
        self.local = local
        self.interface = interface


class Process:
    """One machine that runs on a host."""

    def __init__(self, host: ProcessHost, machine: AnyMachine, on_event: Callable[[Any], None] | None) -> None:
        self.host = host
        self.machine = machine
        self.sockets: dict[Flow, Socket] = {}
        self.streams: dict[Flow, StreamHandle] = {}
        self.log: list[tuple[Instant, Any]] = []
        """Every event of the machine, with its time."""
        self.misuses: list[str] = []
        """Outputs that make no sense, such as a Send on a closed flow."""
        self.stopped = False
        self.sent = 0
        """Datagrams sent and writes to streams."""
        self._on_event = on_event
        self._clock = host.clock
        self._armed: Instant | None = None
        self._ticked_at = Instant(-1)
        self._ticks = 0

    def __repr__(self) -> str:
        state = "stopped" if self.stopped else f"{len(self.sockets)} sockets, {len(self.streams)} streams"
        return f"<Process {type(self.machine).__name__} on {self.host.name}: {state}>"

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """Call `method(*args, now=now)` of the machine, drain the machine and return the result."""
        result = method(*args, now=self._clock.now)
        self.drain()
        return result

    def receive(self, input: Input) -> None:
        """Pass an input to the machine and drain it. A stopped process ignores inputs."""
        if not self.stopped:
            self.machine.receive(input, now=self._clock.now)
            self.drain()

    def drain(self) -> None:
        """Carry out the machine's outputs, log its events and arm its timer."""
        machine, carry_out = self.machine, self.host.carry_out
        for output in machine.outputs():
            carry_out(self, output)
        for event in machine.events():
            self.log.append((self._clock.now, event))
            if self._on_event is not None:
                self._on_event(event)
        due = machine.next_timer()
        if due != self._armed:
            self._armed = due
            if due is not None:
                self._clock.at(due, self._fire, due)

    def stop(self, *, silently: bool = False) -> None:
        """End the process as a crash does: its sockets are closed and its machine receives no more inputs.

        The system closes its streams in order. `silently` sends no packet, as after a power failure.
        """
        self.stopped = True
        self._armed = None
        for flow in [*self.sockets, *self.streams]:
            self.host.close(self, flow, silently=silently)

    def events(self, kind: type[R]) -> list[R]:
        """Return the logged events of one type, oldest first."""
        return [event for _, event in self.log if isinstance(event, kind)]

    def _fire(self, due: Instant) -> None:
        if due != self._armed or self.stopped:
            return
        now = self._clock.now
        self._ticks = self._ticks + 1 if self._ticked_at == now else 0
        self._ticked_at = now
        if self._ticks > _TICKS_AT_ONCE:
            raise LabError(f"{self.host.name}: the timer of {self.machine!r} is still due at {due} after every tick")
        self._armed = None
        self.machine.tick(now=now)
        self.drain()
