"""A whole TURN server in one machine: the control plane with the reference data plane beside it.

The lab runs it, and so does a driver on real sockets. Its owner opens the listeners: UDP flows are served as they are,
streams when `Opened` names their listener's flow. `LookUp` comes as an event and is answered by `receive(UserFound)`.
"""

from __future__ import annotations

import random

from polynya.core.flows import FlowIds
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Datagram, IcmpError, Open, Opened, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .config import ServerConfig
from .control import TurnInput, TurnServer
from .events import TurnEvent
from .forwarder import Forwarder
from .lookups import LookUp
from .users import Directory


class RelayServer:
    """Control plane and reference data plane. `flow_ids` are those of whoever runs it."""

    def __init__(
        self,
        config: ServerConfig,
        directory: Directory,
        flow_ids: FlowIds,
        *,
        random: random.Random,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.control = TurnServer(config, directory, random=random, trace=trace)
        self.plane = Forwarder(flow_ids, random=random)
        self._outputs: list[Send | Open | Close] = []
        self._events: list[TurnEvent | LookUp] = []
        self._started = False

    def receive(self, input: TurnInput, *, now: Instant) -> None:
        """Give a packet to the plane first: what it does not know comes back for the control plane."""
        if not self._started:
            self._started = True
            self._pump(now=now)  # the rules
        match input:
            case Datagram():
                self.plane.receive(input, now=now)
            case Opened() | Closed() | IcmpError() | SendFailed() if self.plane.owns(input.flow):
                self.plane.receive(input, now=now)
            case IcmpError() | SendFailed():
                pass  # a client that does not listen: nothing is owed to it
            case _:
                self.control.receive(input, now=now)
        self._pump(now=now)

    def tick(self, *, now: Instant) -> None:
        self.control.tick(now=now)
        self._pump(now=now)

    def next_timer(self) -> Instant | None:
        return self.control.next_timer()

    def outputs(self) -> list[Send | Open | Close]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[TurnEvent | LookUp]:
        drained, self._events = self._events, []
        return drained + self.control.events()

    def settle(self, *, now: Instant) -> None:
        """Carry out what a call of the control plane's own methods (`drain`, `set_policy`, ...) has set off."""
        self._pump(now=now)

    def _pump(self, *, now: Instant) -> None:
        """Carry commands down and reports up until both are silent."""
        control, plane = self.control, self.plane
        while True:
            self._outputs += plane.outputs()
            for output in control.outputs():
                if isinstance(output, (Send, Close)):
                    self._outputs.append(output)
                elif isinstance(output, LookUp):
                    self._events.append(output)
                else:
                    plane.execute(output, now=now)
            reports = plane.reports()
            for report in reports:
                control.receive(report, now=now)
            if not reports:
                self._outputs += plane.outputs()
                return
