"""Programs for hosts of the virtual network: what a machine needs around it that is not a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Input, Open, Output

from .processes import AnyMachine


class Listening:
    """A server's machine with sockets and listeners that are opened for it: all it asks for and says passes through."""

    def __init__(
        self, machine: AnyMachine, sockets: Mapping[Flow, Address] | None = None, opens: Iterable[Open] = ()
    ) -> None:
        self.machine = machine
        self._opens: list[Output] = [
            Open(flow=flow, transport=Transport.UDP, local=local) for flow, local in (sockets or {}).items()
        ]
        self._opens += opens

    def receive(self, input: Input, *, now: Instant) -> None:
        self.machine.receive(input, now=now)

    def tick(self, *, now: Instant) -> None:
        self.machine.tick(now=now)

    def next_timer(self) -> Instant | None:
        return self.machine.next_timer()

    def outputs(self) -> list[Output]:
        opens, self._opens = self._opens, []
        return opens + self.machine.outputs()

    def events(self) -> list[Any]:
        return self.machine.events()
