"""Programs that run a server's machine on a host of the virtual network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Input, Open, Output

from .processes import AnyMachine


class Listening:
    """Runs a server's machine: opens its sockets and listeners first, then passes everything through."""

    def __init__(
        self, machine: AnyMachine, sockets: Mapping[Flow, Address] | None = None, opens: Iterable[Open] = ()
    ) -> None:
        self.machine = machine
        self._opens: Queue[Output] = Queue()
        self._opens.extend(
            Open(flow=flow, transport=Transport.UDP, local=local) for flow, local in (sockets or {}).items()
        )
        self._opens.extend(opens)

    def receive(self, input: Input, *, now: Instant) -> None:
        self.machine.receive(input, now=now)

    def tick(self, *, now: Instant) -> None:
        self.machine.tick(now=now)

    def next_timer(self) -> Instant | None:
        return self.machine.next_timer()

    def outputs(self) -> list[Output]:
        return self._opens.drain() + self.machine.outputs()

    def events(self) -> list[Any]:
        return self.machine.events()
