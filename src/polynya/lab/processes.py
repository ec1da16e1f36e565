"""Processes: a machine that runs on a host, with its sockets.

After any call to a machine it is drained once, outputs first, then events, and its one timer is set again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Input, Machine

from .links import NetworkInterface

if TYPE_CHECKING:
    from .hosts import Host
    from .streams import Listener, Stream

R = TypeVar("R")
AnyMachine = Machine[Any, Any, Any]
"""Any machine of which the inputs and outputs are those of `core.machine`."""

_TICKS_AT_ONCE = 10_000


class LabError(AssertionError):
    """A machine broke its contract: it would hang or mislead a real driver."""


class Socket:
    """A UDP socket of a host."""

    __slots__ = ("flow", "interface", "local", "process")

    def __init__(self, process: Process, flow: Flow, local: Address, interface: NetworkInterface | None) -> None:
        self.process = process
        self.flow = flow
        self.local = local
        self.interface = interface


class Process:
    """One machine that runs on a host."""

    def __init__(self, host: Host, machine: AnyMachine, on_event: Callable[[Any], None] | None) -> None:
        self.host = host
        self.machine = machine
        self.sockets: dict[Flow, Socket] = {}
        self.streams: dict[Flow, Stream | Listener] = {}
        self.log: list[tuple[Instant, Any]] = []
        """Every event of the machine, with its time."""
        self.misuses: list[str] = []
        """What the machine asked for that makes no sense, such as sending by a flow that it has closed."""
        self.stopped = False
        self.sent = 0
        """Datagrams that left, and writes to streams."""
        self._on_event = on_event
        self._clock = host.clock
        self._armed: Instant | None = None
        self._ticked_at = Instant(-1)
        self._ticks = 0

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """`method(*args, now=now)` on the machine, which is then drained."""
        result = method(*args, now=self._clock.now)
        self.drain()
        return result

    def receive(self, input: Input) -> None:
        """Tell the machine what happened."""
        if not self.stopped:
            self.machine.receive(input, now=self._clock.now)
            self.drain()

    def drain(self) -> None:
        """Carry out the machine's outputs, hand on its events, and set its timer."""
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
        """End the process as a crash does: its sockets are gone, its machine hears nothing more.

        The system ends its streams in order; `silently`, nobody is told, as when the power fails.
        """
        self.stopped = True
        self._armed = None
        for flow in [*self.sockets, *self.streams]:
            self.host.close(self, flow, silently=silently)

    def events(self, kind: type[R]) -> list[R]:
        """The logged events of a kind, oldest first."""
        return [event for _, event in self.log if isinstance(event, kind)]

    def _fire(self, due: Instant) -> None:
        if due != self._armed or self.stopped:
            return
        now = self._clock.now
        self._ticks = self._ticks + 1 if self._ticked_at == now else 0
        self._ticked_at = now
        if self._ticks > _TICKS_AT_ONCE:
            raise LabError(f"{self.host.name}: the timer of {self.machine!r} is due at {due} however often it ticks")
        self._armed = None
        self.machine.tick(now=now)
        self.drain()
