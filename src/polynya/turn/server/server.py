"""A TURN server as one machine: the control plane joined with a data plane.

    driver --inputs--------> TurnServer --commands, answers--> data plane
    driver <--Send, Close--- TurnServer <--reports------------ data plane

The driver opens the listeners. With the reference plane (`forwarder.Forwarder`) the driver has every socket, so packets
pass through `receive` and `outputs`. The planes of `polynya.plane` have UDP sockets of their own, so the driver has
streams only. The owner of such a plane calls `settle` after each run of the plane, so that its reports are handled.

`LookUp` is emitted as an event; the owner answers it with `receive(UserFound(...))`.
"""

from __future__ import annotations

import random

from polynya.core.compact import Queue
from polynya.core.instants import Instant
from polynya.core.machine import Close, IcmpError, Open, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .config import ServerConfig
from .control import ControlPlane, TurnInput
from .events import TurnEvent
from .lookups import LookUp
from .plane import DataPlane
from .users import Directory


class TurnServer:
    """A control plane with its data plane. `random` must be the system's in production."""

    def __init__(
        self,
        config: ServerConfig,
        directory: Directory,
        plane: DataPlane,
        *,
        random: random.Random,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.control = ControlPlane(config, directory, random=random, trace=trace)
        self.plane = plane
        self._outputs: Queue[Send | Open | Close] = Queue()
        self._events: Queue[TurnEvent | LookUp] = Queue()

    def receive(self, input: TurnInput, *, now: Instant) -> None:
        """Pass an input to the data plane, and to the control plane if the data plane doesn't take it."""
        taken = self.plane.receive(input, now=now)
        if not taken and not isinstance(input, (IcmpError, SendFailed)):  # these are about clients that don't listen
            self.control.receive(input, now=now)
        self.settle(now=now)

    def tick(self, *, now: Instant) -> None:
        self.control.tick(now=now)
        self.settle(now=now)

    def next_timer(self) -> Instant | None:
        return self.control.next_timer()

    def outputs(self) -> list[Send | Open | Close]:
        """Return the outputs for the driver. Answers that a listener of the data plane has sent are not among them."""
        return self._outputs.drain()

    def events(self) -> list[TurnEvent | LookUp]:
        return self._events.drain() + self.control.events()

    def settle(self, *, now: Instant) -> None:
        """Exchange commands and reports until both planes are idle.

        Call it after the data plane was run, and after a method of the control plane (`drain`, `set_policy`, ...).
        """
        control, plane, outputs = self.control, self.plane, self._outputs
        while True:
            outputs.extend(plane.outputs())
            for output in control.outputs():
                if isinstance(output, Send):
                    if not plane.send(output):
                        outputs.append(output)
                elif isinstance(output, Close):
                    outputs.append(output)
                elif isinstance(output, LookUp):
                    self._events.append(output)
                else:
                    plane.execute(output, now=now)
            reports = plane.reports()
            if not reports:
                outputs.extend(plane.outputs())
                return
            for report in reports:
                control.receive(report, now=now)
