"""The control plane beside a data plane that has sockets of its own: a machine for a driver, which runs the streams.

    driver --streams--> JoinedServer --commands, answers by UDP--> plane
    driver <--to streams, Close-- JoinedServer <--reports-- plane

Whoever runs the plane calls `pump` after the plane was run, so that its reports are heard. `LookUp` comes as an event
and is answered by `receive(UserFound)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from polynya.core.instants import Instant
from polynya.core.machine import Close, Counters, Send

from .commands import Command, Forward, Report, Traffic
from .control import TurnInput, TurnServer
from .events import TurnEvent
from .lookups import LookUp


class SocketPlane(Protocol):
    """A data plane with sockets of its own: the listeners' and the relays'."""

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command, now or when the system allows it."""

    def reports(self) -> list[Report]:
        """What the control plane should know; drained by the call."""

    def send(self, output: Send) -> bool:
        """Send an answer by a listener; False when the plane has no such flow."""

    def traffic(self) -> list[Traffic]:
        """What each open relay carried so far, as far as it is known here."""

    @property
    def counters(self) -> Counters:
        """What was not forwarded, by why."""

    @property
    def size(self) -> Mapping[str, int]:
        """How much of everything is held."""


class JoinedServer:
    """A control plane with its data plane, as a machine."""

    def __init__(self, control: TurnServer, plane: SocketPlane) -> None:
        self.control = control
        self.plane = plane
        self._outputs: list[Send | Close] = []
        self._events: list[TurnEvent | LookUp] = []

    def receive(self, input: TurnInput, *, now: Instant) -> None:
        self.control.receive(input, now=now)
        self.pump(now=now)

    def tick(self, *, now: Instant) -> None:
        self.control.tick(now=now)
        self.pump(now=now)

    def next_timer(self) -> Instant | None:
        return self.control.next_timer()

    def outputs(self) -> list[Send | Close]:
        """What is for streams; answers by UDP have left by the plane."""
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[TurnEvent | LookUp]:
        drained, self._events = self._events, []
        return drained + self.control.events()

    def settle(self, *, now: Instant) -> None:
        """Carry out what a call of the control plane's own methods (`drain`, `set_policy`, ...) has set off."""
        self.pump(now=now)

    def pump(self, *, now: Instant) -> None:
        """Carry commands down and reports up until both are silent. Call it whenever the plane was run."""
        control, plane = self.control, self.plane
        while True:
            for output in control.outputs():
                if isinstance(output, Send):
                    if not plane.send(output):
                        self._outputs.append(output)
                elif isinstance(output, LookUp):
                    self._events.append(output)
                elif isinstance(output, Close):
                    self._outputs.append(output)
                else:
                    plane.execute(output, now=now)
            reports = plane.reports()
            for report in reports:
                control.receive(report, now=now)
            if not reports:
                return
